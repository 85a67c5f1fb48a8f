"""Packed bins → Parquet: what is read back is what was packed, in the columns a trainer expects."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnpack import kernels
from turnpack.nouns import Tokens
from turnpack.sinks import ParquetSink, parquet_batch, parquet_schema

NAMES = pa.array([f"chats.jsonl:{line}" for line in range(1, 9)], pa.large_string())


def made(lengths, weights=None):
    total = sum(lengths)
    return Tokens(
        input_ids=np.arange(1000, 1000 + total, dtype=np.int32),
        loss_mask=(np.arange(total) % 3 != 0).astype(np.uint8),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        source=np.arange(len(lengths))[::-1].astype(np.int64),
        loss_weights=weights,
    )


def flat(tokens, capacity):
    plan = kernels.plan(tokens.lengths, capacity, strategy="in_order")
    return kernels.pack(tokens, plan, layout="flat")


def test_a_bin_is_a_row_and_a_batch_a_row_group(tmp_path):
    packed = flat(made([3, 2, 4]), 6)
    path = tmp_path / "bins.parquet"
    with ParquetSink(path) as sink:
        sink.write(packed, NAMES)
        sink.write(packed, NAMES)
    assert pq.read_metadata(path).num_row_groups == 2
    assert pq.read_table(path).to_pylist()[:2] == [
        {
            "input_ids": [1000, 1001, 1002, 1003, 1004],
            "labels": [-100, 1001, 1002, -100, 1004],
            "seq_lengths": [3, 2],
            "source": ["chats.jsonl:3", "chats.jsonl:2"],
        },
        {
            "input_ids": [1005, 1006, 1007, 1008],
            "labels": [-100, -100, 1007, 1008],
            "seq_lengths": [4],
            "source": ["chats.jsonl:1"],
        },
    ]


def test_the_schema_is_plain_lists():
    assert [(column.name, str(column.type)) for column in parquet_schema(weighted=True)] == [
        ("input_ids", "list<item: int32>"),
        ("labels", "list<item: int32>"),
        ("seq_lengths", "list<item: int32>"),
        ("source", "list<item: string>"),
        ("loss_weights", "list<item: float>"),
    ]
    assert "loss_weights" not in parquet_schema(weighted=False).names


def test_weights_are_those_of_the_targets():
    weights = np.array([9, 2, 2, 9, 0.5], np.float32)
    batch = parquet_batch(flat(made([3, 2], weights), 8), NAMES, weighted=True)
    assert batch.to_pylist()[0]["labels"] == [-100, 1001, 1002, -100, 1004]
    assert batch.to_pylist()[0]["loss_weights"] == [0, 2, 2, 0, 0.5]


def test_rows_without_weights_count_once_among_weighted_ones():
    batch = parquet_batch(flat(made([3]), 8), NAMES, weighted=True)
    assert batch.to_pylist()[0]["loss_weights"] == [0, 1, 1]


def test_ids_and_labels_are_not_copied():
    packed = flat(made([3, 2, 4]), 6)
    batch = parquet_batch(packed, NAMES, weighted=False)
    for name in ("input_ids", "labels"):
        column = batch.column(name).values
        assert column.buffers()[1].address == getattr(packed, name).ctypes.data


def test_lengths_that_are_not_those_of_the_rows_are_refused():
    packed = flat(made([3, 2, 4]), 8)
    split = dataclasses.replace(packed, cu_seqlens=np.array([0, 1, 3, 5, 9]))
    with pytest.raises(ValueError, match="3 rows, but 4 lengths"):
        parquet_batch(split, NAMES, weighted=False)


def test_rows_layout_and_int64_are_refused():
    tokens = made([3, 2])
    plan = kernels.plan(tokens.lengths, 8)
    with pytest.raises(TypeError, match="must be flat int32, not rows int32"):
        parquet_batch(kernels.pack(tokens, plan), NAMES, weighted=False)
    with pytest.raises(TypeError, match="must be flat int32, not flat int64"):
        parquet_batch(
            kernels.pack(tokens, plan, layout="flat", dtype=np.int64), NAMES, weighted=False
        )


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(9, 20))
def test_every_row_is_there_with_its_length_and_source(lengths, capacity):
    tokens = made(lengths)
    bins = parquet_batch(flat(tokens, capacity), NAMES, weighted=False).to_pylist()
    for row in bins:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"])
        assert len(row["source"]) == len(row["seq_lengths"])
    assert [id for row in bins for id in row["input_ids"]] == tokens.input_ids.tolist()
    assert [length for row in bins for length in row["seq_lengths"]] == lengths
    assert [name for row in bins for name in row["source"]] == [
        NAMES[number].as_py() for number in tokens.source
    ]
