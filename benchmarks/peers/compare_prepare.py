"""Owns the comparison of the whole job: chats in, packed and masked training rows out.

Both sides read the same file of messages, use both cores and end with their data on disk, Parquet
here and the cache of `datasets` there (the page of our report is a form of its own); imports,
loading the tokenizer and (there) the rows are not counted. Each run begins with nothing of the one
before. Asserted equal before packing, row by row: ids, and labels but for what follows a stop
token, which is counted.
"""

import os
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from unittest import mock

import numpy as np
import orjson
import packages
from side_by_side import Form

import at_hand
from turnpack import Encoder, records, tokenizers
from turnpack.prepare import STAGES, prepare

CAPACITY = 4096
STOP = "<|im_end|>"
# ChatML with marks around what the assistant must produce, which is how TRL learns it.
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
"""


def chat_files():
    """The files that TURNPACK_CHATS names, else those of ../shared/data, else the sample."""
    if "TURNPACK_CHATS" in os.environ:
        return os.environ["TURNPACK_CHATS"].split(os.pathsep)
    if at_hand.SHARED.is_dir():
        return [at_hand.SHARED / "data" / name for name in at_hand.FILES]
    sample = Path(__file__).resolve().parents[2] / "examples" / "sample"
    return sorted(sample.glob("*.json*"))


def compare(share):
    folder = Path(tempfile.mkdtemp(prefix="bench-peers-"))
    try:
        yield from in_folder(folder, share)
    finally:
        shutil.rmtree(folder)


def in_folder(folder, share):
    tokenizer = at_hand.folder_of(at_hand.qwen(), eos_token=STOP)
    chats = folder / "messages.jsonl"
    encoder = Encoder(tokenizer, "chatml", max_length=CAPACITY)
    tokens = write_messages(chats, encoder, share)
    theirs = TRL(chats, folder)
    figures = {
        "rows": len(tokens),
        "tokens": len(tokens.input_ids),
        "bytes": chats.stat().st_size,
    }
    behind = compare_rows(tokens, theirs.prepared(packing=False)[1])
    forms = [
        *(ours(name, options, chats, tokenizer, folder, figures) for name, options in backends()),
        theirs.form({**figures, "labels_behind_a_stop_token": behind}),
    ]
    yield f"prepare {len(tokens):,} chats, {len(tokens.input_ids):,} ids", forms, 5


def write_messages(path, encoder, share):
    """The conversations as a file of messages without those the template refuses; their tokens."""
    rows = []
    for file in chat_files():
        read = [row for row in records.read([file]) if not getattr(row, "tools", True)]
        rows += read[: max(1, round(len(read) * share))]
    rejects = []
    tokens = encoder(rows, rejects)
    with path.open("wb") as lines:
        for number in np.unique(tokens.source).tolist():
            messages = [
                {
                    "role": message["role"],
                    "content": "\n".join(filter(None, (message["content"], message.get("input")))),
                }
                for message in rows[number].messages
            ]
            lines.write(orjson.dumps({"messages": messages}) + b"\n")
    return encoder(list(records.read([path])))


def backends():
    """Our forms: each tokenizer backend that this turnpack has and this machine can load."""
    exact = {"tokenizer_backend": "hf", "page": False}
    forms = [("turnpack, Hugging Face's tokenizer", exact)]
    if packages.installed("gigatoken"):
        fast = {"tokenizer_backend": "gigatoken"}
        forms = [
            ("turnpack, gigatoken", {**fast, "page": False}),
            ("turnpack, gigatoken, with the page of the report", fast),
            *forms,
        ]
    return forms


def ours(name, options, chats, tokenizer, folder, figures):
    output = folder / "bins"

    def run():
        spent, loaded = 0.0, []
        load = tokenizers.load

        def timed_load(*arguments, **keywords):
            nonlocal spent
            begun = perf_counter()
            backend = load(*arguments, **keywords)
            spent += perf_counter() - begun
            loaded.append(backend)  # to free it is loading's cost too, and TRL's is never freed
            return backend

        # `datasets` turns the tokenizer's threads off where it forks, and never on again.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        begun = perf_counter()
        with mock.patch.object(tokenizers, "load", timed_load):
            report = prepare(
                chats,
                tokenizer=tokenizer,
                template="chatml",
                max_length=CAPACITY,
                output=output,
                **options,
            )
        seconds = perf_counter() - begun - spent
        form.figures["stages_s"] = {stage: round(report.seconds[stage], 4) for stage in STAGES}
        form.figures["utilization"] = report.utilization
        assert report.tokens["total"] == figures["tokens"]
        return seconds

    def forget():
        shutil.rmtree(output)

    form = Form(name, run, own_clock=True, after=forget, figures=dict(figures))
    run()
    forget()
    return form


class TRL:
    """SFTTrainer on the file of messages, with a model of no size."""

    def __init__(self, chats, folder):
        import torch
        from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

        self.chats, self.folder = chats, folder
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=at_hand.qwen(),
            eos_token=STOP,
            pad_token="<|endoftext|>",
            chat_template=CHATML,
        )
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
        self.model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(self.tokenizer), **sizes, **heads))

    def form(self, figures):
        def run():
            seconds, packed, stages = self.prepared(packing=True)
            form.figures["stages_s"] = stages
            form.figures["utilization"] = figures["tokens"] / (len(packed) * CAPACITY)
            assert sum(map(sum, packed["seq_lengths"])) == figures["tokens"]
            return seconds

        name = f"{packages.title('trl')}, SFTTrainer's preparation"
        form = Form(name, run, own_clock=True, after=self.forget, figures=dict(figures))
        return form

    def prepared(self, packing):
        """(seconds of the preparation alone, the data set, seconds of its stages).

        Each time as if it were the first.
        """
        from datasets import Dataset, load_dataset
        from trl import SFTConfig, SFTTrainer

        self.forget()
        rows = load_dataset(
            "json", data_files=str(self.chats), split="train", cache_dir=str(self.cache)
        )
        seconds, stages, map_rows = [], {}, Dataset.map

        def timed_map(dataset, *arguments, **keywords):
            begun = perf_counter()
            made = map_rows(dataset, *arguments, **keywords)
            stage = keywords["desc"].removesuffix(" train dataset").removesuffix(" for").lower()
            stages[stage] = round(perf_counter() - begun, 4)
            return made

        class Timed(SFTTrainer):
            def _prepare_dataset(self, *arguments, **keywords):
                begun = perf_counter()
                with mock.patch.object(Dataset, "map", timed_map):
                    made = super()._prepare_dataset(*arguments, **keywords)
                seconds.append(perf_counter() - begun)
                return made

        trainer = Timed(
            self.model,
            args=SFTConfig(
                output_dir=str(self.folder / "trainer"),
                use_cpu=True,
                bf16=False,
                report_to="none",
                packing=packing,
                max_length=CAPACITY,
                assistant_only_loss=True,
                dataset_num_proc=2,
            ),
            train_dataset=rows,
            processing_class=self.tokenizer,
        )
        (only,) = seconds
        return only, trainer.train_dataset, stages

    @property
    def cache(self):
        return self.folder / "cache"

    def forget(self):
        """Remove what `datasets` has cached."""
        shutil.rmtree(self.cache, ignore_errors=True)


def compare_rows(tokens, dataset):
    """Assert that every row has our ids and labels; count their labels behind a stop token."""
    stop = at_hand.qwen().token_to_id(STOP)
    assert len(dataset) == len(tokens)
    differ = 0
    for row, (start, end) in zip(dataset, pairwise(tokens.offsets), strict=True):
        ids, mask = tokens.input_ids[start:end], tokens.loss_mask[start:end] == 1
        assert np.array_equal(row["input_ids"], ids)
        marked = np.array(row["labels"]) != -100
        behind = np.concatenate([[False], (ids[:-1] == stop) & mask[:-1]]) & ~mask
        assert np.array_equal(marked & ~behind, mask)
        differ += int((marked & behind).sum())
    return differ
