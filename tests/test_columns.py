"""Columns: datasets' map gives what the encoder gives, and finds its cache again."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import turnpack as tp
from at_hand import mistral_v1, unigram
from turnpack.columns import Columns

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def chat(*texts, **last):
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    messages[-1].update(last)
    return {"messages": messages}


CHATS = [chat("Name a river.", "The Elbe."), chat("And a lake?", "Como.", "More?", "Garda.")]


def encoder():
    return tp.Encoder(mistral_v1(), tp.get_template("llama2"), max_length=64)


def encoder_of_json():
    """Of a tokenizer whose vocabulary has its control tokens, which its twin must not arrive at."""
    backend = tp.tokenizers.load(unigram(), bos="<s>", eos="</s>")
    return tp.Encoder(backend, tp.get_template("llama2"), max_length=64)


def test_map_gives_the_encoder_s_tokens(tmp_path):
    data = datasets.Dataset.from_list(CHATS)
    made = data.map(Columns(encoder()), batched=True, remove_columns=data.column_names)
    tokens = encoder()(CHATS)
    ends = tokens.offsets.tolist()
    for row, (start, end) in zip(made, pairwise(ends), strict=True):
        ids, mask = tokens.input_ids[start:end].tolist(), tokens.loss_mask[start:end].tolist()
        assert row == {
            "input_ids": ids,
            "labels": [id if m else -100 for id, m in zip(ids, mask, strict=True)],
        }


def test_weights_are_a_column():
    made = Columns(encoder(), weights=True)({"messages": [chat("a", "b", weight=0.5)["messages"]]})
    (labels,), (weights,) = made["labels"], made["loss_weights"]
    assert {w for w, label in zip(weights, labels, strict=True) if label != -100} == {0.5}


@pytest.mark.parametrize("weighted", [0, 2])
def test_weights_in_some_batches_only(weighted):
    rows = [chat("a", "b", weight=0.5 if n == weighted else 1.0) for n in range(3)]
    data = datasets.Dataset.from_list(rows)
    options = {"batched": True, "batch_size": 1, "remove_columns": data.column_names}
    made = data.map(Columns(encoder(), weights=True), **options)
    found = [max(each) for each in made["loss_weights"]]
    assert found == [0.5 if n == weighted else 1.0 for n in range(3)]
    with pytest.raises(ValueError, match=r"Columns\(weights=True\)"):
        data.map(Columns(encoder()), **options)


def test_bad_rows_raise_or_are_skipped():
    batch = {"messages": [CHATS[0]["messages"], [{"role": "bot", "content": "?"}]]}
    with pytest.raises(tp.RowError, match="unknown role"):
        Columns(encoder())(batch)
    assert len(Columns(encoder(), skip=True)(batch)["input_ids"]) == 1


@pytest.mark.parametrize("make", ["encoder", "encoder_of_json"])
def test_the_fingerprint_is_stable(make):
    from datasets.fingerprint import Hasher

    columns = Columns(globals()[make]())
    before = Hasher.hash(columns)
    columns({"messages": [each["messages"] for each in CHATS]})
    assert Hasher.hash(columns) == before
    assert (
        Hasher.hash(Columns(tp.Encoder(mistral_v1(), tp.get_template("llama2"), max_length=65)))
        != before
    )
    script = (
        "import test_columns as t; from datasets.fingerprint import Hasher\n"
        f"print(Hasher.hash(t.Columns(t.{make}())))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == before


def test_the_directory_loads(tmp_path):
    from turnpack.prepare import prepare

    sample = Path(__file__).parents[1] / "examples" / "sample" / "messages.jsonl"
    prepare(
        sample,
        tokenizer=mistral_v1(),
        template="llama2",
        max_length=256,
        output=tmp_path / "bins",
        sinks=["numpy"],
    )
    files = str(tmp_path / "bins" / "data")
    made = datasets.load_dataset("parquet", data_dir=files, split="train", cache_dir=str(tmp_path))
    assert made.column_names == ["input_ids", "labels", "seq_lengths", "source"]
    assert len(made) > 0
