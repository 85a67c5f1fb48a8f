"""Packing changes nothing: transformers' own models, packed, padding-free and one by one.

Models are tiny, random and float32; what would be different in a large one would be here.
"""

import functools

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from torch.utils.data import DataLoader

import emulation
from turnpack.torch import Collator, PackingBatchSampler, isolation, weighted_loss

transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # two test processes on two cores
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # so that what leaks is seen
}
KINDS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
}
ATTENTIONS = ("sdpa", "eager", "flex_attention")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def flex_attention_as_it_is(monkeypatch):
    """Run FlexAttention without compiling it, and backward too, which torch refuses on a CPU."""
    from transformers import masking_utils
    from transformers.integrations import flex_attention as integration

    def attend(query, key, value, training=False, **options):
        return flex.flex_attention(query, key, value, **options)

    def mask(*given, _compile=None, **options):
        return flex.create_block_mask(*given, **options)

    monkeypatch.setattr(flex, "_validate_device", lambda *given: None)
    monkeypatch.setattr(masking_utils, "create_block_mask", mask)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", attend)


@functools.cache
def model(kind, attention):
    name, more = KINDS[kind]
    config = getattr(transformers, name)(**SIZES, **more)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32
    )
    assert made.config._attn_implementation == attention
    return made.eval()


@functools.cache
def documents(seed=0, count=6):
    """Of 2 to 40 tokens, about half of them targets, every last one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in torch.randint(2, 41, (count,), generator=generator).tolist():
        ids = torch.randint(0, VOCABULARY, (size,), generator=generator)
        keep = torch.rand(size, generator=generator) < 0.5
        keep[-1] = True
        made.append({"input_ids": ids.tolist(), "labels": torch.where(keep, ids, -100).tolist()})
    return made


def joined(some):
    """A packed bin of these documents."""
    return {
        "input_ids": [token for each in some for token in each["input_ids"]],
        "labels": [label for each in some for label in each["labels"]],
        "seq_lengths": [len(each["input_ids"]) for each in some],
    }


def losses_and_gradients(model, batches):
    """The mean loss of every document, in order, and the gradients of their sum."""
    model.zero_grad()
    losses = []
    for batch in batches:
        labels, positions = batch["labels"], batch["position_ids"]
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        cells = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        ).view(labels.shape[0], -1)
        cells = torch.nn.functional.pad(cells, (1, 0))
        new = (positions == 0).cumsum(1)
        for row in range(len(labels)):
            for number in new[row].unique():
                ours = (new[row] == number) & (labels[row] != -100)
                if ours.any():  # the padding has none
                    losses.append(cells[row][ours].mean())
    torch.stack(losses).sum().backward()
    gradients = torch.cat([each.grad.flatten() for each in model.parameters()])
    return torch.stack(losses).detach(), gradients


def close(made, wanted):
    torch.testing.assert_close(made[0], wanted[0], rtol=0, atol=1e-5)
    error = (made[1] - wanted[1]).norm() / wanted[1].norm()
    assert error < 1e-5, f"gradients differ by {error:.1e}"


FORMS = {
    "padding-free": (Collator(), lambda some: some),
    "packed": (Collator(), lambda some: [joined(some[:4]), joined(some[4:])]),
    "padded": (Collator(pad_to_multiple_of=64), lambda some: [joined(some[:4]), joined(some[4:])]),
    "rows": (Collator("rows"), lambda some: [joined(some[:4]), joined(some[4:])]),
}


def unpacked(document):
    """The batch of a document alone, by no collator of ours."""
    return {
        "input_ids": torch.tensor([document["input_ids"]]),
        "labels": torch.tensor([[-100, *document["labels"][1:]]]),
        "position_ids": torch.arange(len(document["input_ids"]))[None],
    }


@functools.cache
def one_by_one(kind):
    batches = [unpacked(each) for each in documents()]
    return losses_and_gradients(model(kind, "eager"), batches)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_by_one(kind, attention):
    for collator, arrange in FORMS.values():
        made = losses_and_gradients(model(kind, attention), [collator(arrange(documents()))])
        assert len(made[0]) == len(documents())
        close(made, one_by_one(kind))


@pytest.mark.parametrize(("attention", "mask"), [("sdpa", "dense"), ("flex_attention", "flex")])
def test_masks_say_the_same(attention, mask):
    some = documents()
    bins = [joined(some[:4]), joined(some[4:])]
    model_ = model("llama", attention)
    for layout in ("flat", "rows"):
        batch = Collator(layout, mask=mask)(bins)
        assert isinstance(
            batch["attention_mask"], flex.BlockMask if mask == "flex" else torch.Tensor
        )
        close(
            losses_and_gradients(model_, [batch]),
            losses_and_gradients(model_, [Collator(layout)(bins)]),
        )


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layout", ["flat", "rows"])
def test_isolation_of_what_the_collator_makes(layout, attention):
    batch = Collator(layout, pad_to_multiple_of=100)([joined(documents()[:5]), documents()[5]])
    found = isolation(model("llama", attention), batch)
    assert found, str(found)
    assert (found.isolated, found.cause) == (True, None)
    # The flat layout's padding is one more segment, which is compared as well.
    assert len(found.packed_losses) == 6 + (layout == "flat")
    torch.testing.assert_close(found.packed_losses[:6], found.alone_losses[:6], rtol=0, atol=1e-5)
    assert "documents are kept apart: logits differ by up to" in str(found)


LEAKS = {
    "attention_mask is given": lambda batch: batch.update(
        attention_mask=torch.ones_like(batch["input_ids"])
    ),
    "there are no position_ids": lambda batch: batch.pop("position_ids"),
    "position_ids do not start anew": lambda batch: batch.update(
        position_ids=torch.arange(batch["input_ids"].shape[1])[None]
    ),
    "use_cache is not False": lambda batch: batch.pop("use_cache"),
}


@pytest.mark.parametrize("cause", LEAKS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_that_leak_are_seen_and_the_cause_is_named(attention, cause):
    batch = Collator()([joined(documents())])
    LEAKS[cause](batch)
    found = isolation(model("llama", attention), batch)
    assert not found
    assert found.difference > 0.1
    assert found.document > 0  # the first has nothing before it to see
    assert found.cause.startswith(cause), found.cause
    assert "; " not in found.cause
    assert "documents see each other" in str(found)


def test_several_causes_are_named_together():
    batch = Collator()([joined(documents())])
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    del batch["use_cache"]
    found = isolation(model("llama", "sdpa"), batch)
    assert found.cause.startswith("attention_mask is given")
    assert "use_cache is not False" in found.cause


def test_a_model_that_does_not_look_at_positions():
    class Sums(torch.nn.Module):
        def forward(self, input_ids, position_ids=None, use_cache=None, **kwargs):
            return torch.nn.functional.one_hot(input_ids, VOCABULARY).float().cumsum(1)

    batch = Collator()([joined(documents())])
    found = isolation(Sums(), batch)
    assert not found
    assert found.cause.startswith("the model (Sums) does not go by position_ids")


def test_isolation_needs_to_know_where_documents_end():
    some = documents()[:3]
    ids = torch.tensor([joined(some)["input_ids"]])
    with pytest.raises(ValueError, match="give seq_lengths"):
        isolation(model("llama", "sdpa"), {"input_ids": ids})
    found = isolation(
        model("llama", "sdpa"), {"input_ids": ids}, seq_lengths=joined(some)["seq_lengths"]
    )
    assert found.cause.startswith("there are no position_ids")


def test_isolation_changes_nothing():
    model_ = model("llama", "sdpa")
    model_.train()
    model_.zero_grad()
    isolation(model_, Collator()(documents()))
    assert model_.training
    assert all(each.grad is None for each in model_.parameters())
    model_.eval()


def trainer(bins, tmp_path, batch_size, accumulate, collator):
    told = []

    class Telling(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            told.append((int(num_items_in_batch), float(loss)))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.0,
        num_train_epochs=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    Telling(
        model=model("llama", "sdpa"), args=arguments, train_dataset=bins, data_collator=collator
    ).train()
    return told


@pytest.mark.parametrize("accumulate", [1, 3])
def test_trainer_counts_our_targets_and_an_epoch_has_one_loss(tmp_path, accumulate):
    some = documents(seed=1, count=22)  # nothing divides 22 evenly into batches of 3
    bins = [joined(some[n : n + 1 + n % 5]) for n in starts(22)]
    targets = sum(label != -100 for each in some for label in each["labels"][1:])
    epochs = []
    for items, size in ((bins, 2), (some, 3)):
        told = trainer(items, tmp_path, size, accumulate, Collator())
        steps = [told[n : n + accumulate] for n in range(0, len(told), accumulate)]
        # Each batch of a step is told of the targets of the whole step.
        assert all(len({count for count, _ in step}) == 1 for step in steps)
        assert sum(step[0][0] for step in steps) == targets
        epochs.append(sum(loss * count for count, loss in told) / targets)
    assert abs(epochs[0] - epochs[1]) < 1e-5


def test_trainer_moves_what_the_collator_makes_for_a_gpu(tmp_path):
    bins = [joined(documents(seed, 3)) for seed in range(5)]
    wanted = trainer(bins, tmp_path, 2, 2, Collator())
    with emulation.active():
        assert trainer(bins, tmp_path, 2, 2, Collator(device="cuda")) == wanted


def with_sampler(tmp_path, resume=None):
    """The documents of every batch of three epochs, by their first ids, under a Trainer."""
    some = [
        {"input_ids": [n] * size, "labels": [n] * size}
        for n, size in enumerate([3, 9, 1, 14, 7, 7, 2, 5, 11, 4, 6, 13, 8])
    ]
    seen = []

    class Packing(transformers.Trainer):
        def get_train_dataloader(self):
            lengths = [len(each["input_ids"]) for each in some]
            sampler = PackingBatchSampler(
                lengths, 16, 1, 0, multiple_of=self.accelerator.num_processes
            )
            return self.accelerator.prepare(
                DataLoader(some, batch_sampler=sampler, collate_fn=Collator())
            )

        def compute_loss(self, model, inputs, *given, **options):
            starts = inputs["cu_seq_lens_q"][:-1].long()
            seen.append(inputs["input_ids"][0, starts].tolist())
            return super().compute_loss(model, inputs, *given, **options)

    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=2,
        report_to=[],
        use_cpu=True,
        logging_strategy="no",
        disable_tqdm=True,
    )
    run = Packing(model=model("llama", "sdpa"), args=arguments, train_dataset=some)
    run.train(resume_from_checkpoint=resume)
    return seen


def test_trainer_with_our_batches_resumes_where_it_was(tmp_path):
    seen = with_sampler(tmp_path)
    size = len(seen) // 3
    for epoch in range(3):
        batches = seen[epoch * size : (epoch + 1) * size]
        assert sorted(number for batch in batches for number in batch) == list(range(13))
    assert seen[:size] != seen[size : 2 * size]
    for step in (2, 4, 6):  # of two batches, the last of an epoch of what is left
        taken = step // -(-size // 2) * size + step % -(-size // 2) * 2
        assert with_sampler(tmp_path / "again", tmp_path / f"checkpoint-{step}") == seen[taken:]


def starts(count):
    """Where bins of 1, 2.. 5 documents begin, as many of each as the place says."""
    at = 0
    while at < count:
        yield at
        at += 1 + at % 5


def test_weights_make_documents_count_alike():
    some = documents()
    model_ = model("llama", "sdpa")
    with torch.no_grad():
        batch = Collator(normalize="sequence")([joined(some[:4]), joined(some[4:])])
        made = weighted_loss(
            model_(
                **{k: v for k, v in batch.items() if k not in ("labels", "loss_weights")}
            ).logits,
            batch["labels"],
            batch["loss_weights"],
        )
        alone = [
            model_(**Collator()([each])).loss
            for each in some
            if any(label != -100 for label in each["labels"][1:])
        ]
    torch.testing.assert_close(made, torch.stack(alone).mean(), rtol=0, atol=1e-5)
