"""Bins as they are stored, a batch at a time: flat arrays in which every length agrees.

Owns what a sink may take for granted of the bins it is given. It writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# Bins that are decoded at a time; no more than a row group.
BATCH = 64
COLUMNS = ("input_ids", "labels", "loss_mask", "seq_lengths", "loss_weights")
_INT32 = np.iinfo(np.int32)


class Place(NamedTuple):
    """Where bins were read, for messages: the file and the number in it of the first one."""

    file: str = ""
    first: int = 0

    def bin(self, number: int) -> str:
        """How the bin behind `number` others is called."""
        return f"{self.file}{': ' if self.file else ''}bin {self.first + number}"

    def holding(self, cell: int, offsets: npt.NDArray[np.int64]) -> str:
        """How the bin is called that holds a cell."""
        return self.bin(int(np.searchsorted(offsets, cell, "right")) - 1)


NOWHERE = Place()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """Some bins of a set, back to back.

    `input_ids`, `labels` int32 `[n]` (unshifted, -100 where nothing is trained on) and
    `loss_weights` float32 `[n]` or None; bin i has the cells from `offsets[i]` (int64 `[bins + 1]`)
    and the documents from `documents[i]` (int64 `[bins + 1]`), which have `seq_lengths` tokens each
    (int64). Raises ValueError where that does not fit together.
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    seq_lengths: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    loss_weights: npt.NDArray[np.float32] | None = None
    place: Place = NOWHERE

    def __post_init__(self) -> None:
        tokens, documents = np.diff(self.offsets), np.diff(self.documents)
        if not len(tokens):
            return
        long = tokens > _INT32.max
        if long.any():
            at = int(long.argmax())
            raise ValueError(
                f"{self.place.bin(at)} has {tokens[at]} tokens, more than int32 counts"
            )
        ends = np.concatenate([[0], np.cumsum(self.seq_lengths)])
        sums = np.diff(ends[self.documents])
        wrong = (sums != tokens) | (documents < 1)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"{self.place.bin(at)} has {tokens[at]} tokens, but its documents {sums[at]}"
            )
        if self.seq_lengths.min() < 0:
            at = int(self.seq_lengths.argmin())
            where = self.place.holding(at, self.documents)
            raise ValueError(f"{where} has a document of {self.seq_lengths[at]} tokens")

    @classmethod
    def of(cls, batch: pa.RecordBatch | pa.Table, place: Place = NOWHERE) -> Bins:
        """Take the bins out of columns as `parquet_schema` has them, or `loss_mask` for `labels`.

        Without `seq_lengths` each bin is one document. Raises ValueError where something is null,
        is no list of numbers, or has other lengths than `input_ids`.
        """
        names = batch.schema.names
        if "input_ids" not in names:
            raise ValueError(f"{place.file or 'the batch'} has no column input_ids")
        offsets, values = _column(batch, "input_ids", place)
        ids = _int32("input_ids", values, offsets, place)

        def alike(name: str) -> npt.NDArray[Any]:
            found, values = _column(batch, name, place)
            if not np.array_equal(found, offsets):
                at = int((np.diff(found) != np.diff(offsets)).argmax())
                raise ValueError(f"{place.bin(at)} has other lengths in {name} than in input_ids")
            return values

        if "labels" in names:
            labels = _int32("labels", alike("labels"), offsets, place)
        elif "loss_mask" in names:
            labels = np.where(alike("loss_mask") != 0, ids, np.int32(-100))
        else:
            raise ValueError(f"{place.bin(0)}: there is neither a column labels nor one loss_mask")
        if "seq_lengths" in names:
            documents, lengths = _column(batch, "seq_lengths", place)
            seq_lengths = _int32("seq_lengths", lengths, documents, place).astype(np.int64)
        else:
            documents, seq_lengths = np.arange(len(offsets)), np.diff(offsets)
        weights = alike("loss_weights").astype(np.float32) if "loss_weights" in names else None
        return cls(
            input_ids=ids,
            labels=labels,
            seq_lengths=seq_lengths,
            offsets=offsets,
            documents=documents,
            loss_weights=weights,
            place=place,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def loss_mask(self) -> npt.NDArray[np.uint8]:
        """Return 1 for every target, unshifted, for a format in which a label is its token.

        Raises ValueError where a label is another.
        """
        targets: npt.NDArray[np.bool_] = self.labels != -100
        other = targets & (self.labels != self.input_ids)
        if other.any():
            cell = int(other.argmax())
            raise ValueError(
                f"{self.place.holding(cell, self.offsets)} has the label {self.labels[cell]} "
                f"where its token is {self.input_ids[cell]}"
            )
        return targets.astype(np.uint8)

    def weights(self) -> npt.NDArray[np.float32]:
        """Return `loss_weights`; raises ValueError where there are none."""
        if self.loss_weights is None:
            raise ValueError(f"{self.place.bin(0)} has no loss_weights")
        return self.loss_weights


def stored(files: Iterable[str | os.PathLike[str]]) -> Iterator[Bins]:
    """Read the bins of Parquet files in order, in the memory of some bins of one row group.

    Raises ValueError, with the file's name, where it holds no bins.
    """
    for path in files:
        with pq.ParquetFile(path) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            place = Place(os.fspath(path))
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=names):
                    yield Bins.of(batch, place)
                    place = place._replace(first=place.first + batch.num_rows)


def _column(
    batch: pa.RecordBatch | pa.Table, name: str, place: Place
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Offsets from 0 and values of a column of lists of numbers."""
    column = batch.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{place.bin(0)}: column {name} is {column.type}, not lists")
    if column.null_count:
        at = column.is_null().index(True).as_py()
        raise ValueError(f"{place.bin(at)} is null in {name}")
    offsets = np.asarray(column.offsets).astype(np.int64)
    offsets -= offsets[0]
    values = column.flatten()
    if values.null_count:
        cell = values.is_null().index(True).as_py()
        raise ValueError(f"{place.holding(cell, offsets)} has a null in {name}")
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    kind, wanted = "integers", pa.types.is_integer(values.type)
    if name == "loss_weights":
        kind, wanted = "numbers", wanted or pa.types.is_floating(values.type)
    if len(values) and not wanted:
        raise ValueError(f"{place.bin(0)}: column {name} is {column.type}, not lists of {kind}")
    return offsets, values.to_numpy(zero_copy_only=False)


def _int32(
    name: str, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], place: Place
) -> npt.NDArray[np.int32]:
    if values.dtype != np.int32:
        wrong = (values < _INT32.min) | (values > _INT32.max)
        if wrong.any():
            cell = int(wrong.argmax())
            where = place.holding(cell, offsets)
            raise ValueError(f"{where} has {values[cell]} in {name}, more than int32 holds")
    return values.astype(np.int32, copy=False)
