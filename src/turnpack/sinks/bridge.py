"""Megatron-Bridge's packed Parquet, and the JSON beside it that says how full the bins are.

Owns both layouts. The loss mask is shifted here, as Bridge wants it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .bins import Bins
from .parquet import lists, parquet_writer


def bridge_schema(weighted: bool) -> pa.Schema:
    """Return the columns that Bridge reads, and `loss_weights`, which it does not."""
    columns = [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("seq_start_id", pa.list_(pa.int32())),
    ]
    if weighted:
        columns.append(("loss_weights", pa.list_(pa.float32())))
    return pa.schema(columns)


def write_bridge(
    bins: Iterable[Bins],
    path: str | os.PathLike[str],
    *,
    capacity: int,
    weighted: bool = False,
) -> dict[str, Any]:
    """Write bins as packed Parquet; return what Bridge's metadata says of them.

    `path` should end with `.idx.parquet`. **`loss_mask` is shifted** by one within each document:
    1 where the *next* token is a target, and 0 at a document's last. Bridge makes tokens and labels
    of a document of n ids itself, n - 1 of each, and counts lengths so; its `packed_sequence_size`
    may be `capacity`. Documents are not padded: it is for a `pad_seq_to_mult` of 1.

    Bridge reads no weights. Where `weighted`, a warning says so, and they are there, shifted too,
    as a further column `loss_weights`. Raises ValueError where a document is empty or a label is
    another than its token.
    """
    if weighted:
        warnings.warn(
            "Megatron-Bridge reads no loss_weights: it counts every target alike", stacklevel=2
        )
    schema = bridge_schema(weighted)
    counted = _Metadata()
    with parquet_writer(path, schema) as writer:
        for some in bins:
            ends = np.cumsum(some.seq_lengths)
            if len(ends) and some.seq_lengths.min() < 1:
                where = some.place.holding(int(some.seq_lengths.argmin()), some.documents)
                raise ValueError(f"{where} has an empty document")
            starts = ends - some.seq_lengths
            starts -= np.repeat(some.offsets[:-1], np.diff(some.documents))
            columns = [
                lists(some.offsets, some.input_ids),
                lists(some.offsets, _shifted(some.loss_mask().view(np.int8), ends)),
                lists(some.documents, starts.astype(np.int32)),
            ]
            if weighted:
                columns.append(lists(some.offsets, _shifted(some.weights(), ends)))
            batch = pa.record_batch(columns, schema=schema)
            writer.write_batch(batch, row_group_size=max(1, len(some)))
            counted.add(some)
    return counted.said(capacity)


def _shifted(values: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Move every value to the token before; there is none behind the last of a document."""
    made = np.append(values[1:], values[:1])
    made[ends - 1] = 0
    return made


class _Metadata:
    """Counts, in tokens as Bridge counts them: one less than a document has ids."""

    def __init__(self) -> None:
        self._bins = self._documents = self._tokens = self._longest = self._most = 0
        self._least: int | None = None

    def add(self, bins: Bins) -> None:
        if not len(bins):
            return
        documents = np.diff(bins.documents)
        tokens = np.diff(bins.offsets) - documents
        self._bins += len(bins)
        self._documents += len(bins.seq_lengths)
        self._tokens += int(tokens.sum())
        self._longest = max(self._longest, int(bins.seq_lengths.max()) - 1)
        self._most = max(self._most, int(documents.max()))
        least = int(tokens.min())
        self._least = least if self._least is None else min(self._least, least)

    def said(self, capacity: int) -> dict[str, Any]:
        bins = max(1, self._bins)
        return {
            "dataset_max_seqlen": self._longest,
            "max_samples_per_bin": self._most,
            "packing_factor": round(self._documents / bins, 2),
            "packing_efficiency": round(self._tokens / bins / capacity * 100, 2),
            "pack_size": capacity,
            "min_packed_seqlen": self._least or 0,
        }
