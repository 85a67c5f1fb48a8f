"""Bins as they lie in Parquet → flat arrays, a bounded number of tokens at a time.

Owns in which order rows are numbered and how one is found again. Counts nothing and knows no text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .sinks import bins as stored

COLUMNS = ("input_ids", "labels", "seq_lengths", "source")
# Tokens that are read at a time, as far as the mean bin tells.
TOKENS = 1 << 20

# How a source's place in its file is spelled, behind the file's name.
PLACE = r"(:[0-9]+|\[[0-9]+\])$"

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a bin: `number` counts rows and `bin` bins over all files, from 0.

    `bin` is None where rows are not packed yet.

    `input_ids` int32 `[n]`; `targets` bool `[n]`, True where there is a label.
    """

    number: int
    bin: int | None
    source: str
    input_ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins, back to back: bin b is rows `bins[b]:bins[b + 1]`, row r tokens `rows[r]:rows[r + 1]`.

    `first_bin`, `first_row`: their numbers over all files. `file` holds them in its row group
    `group`. `rows` and `bins` are offsets from 0, int64.
    """

    file: Path
    group: int
    first_bin: int
    first_row: int
    input_ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]
    rows: Int64s
    bins: Int64s
    source: pa.Array

    def row(self, index: int) -> Row:
        """Return a row by its place here; its arrays are copies, which hold nothing else."""
        start, end = self.rows[index], self.rows[index + 1]
        return Row(
            self.first_row + index,
            self.first_bin + int(np.searchsorted(self.bins, index, side="right")) - 1,
            self.source[index].as_py(),
            self.input_ids[start:end].copy(),
            self.targets[start:end].copy(),
        )


def files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the Parquet files of what `prepare` wrote, training bins first; or the one file."""
    given = Path(path)
    if not given.is_dir():
        return [given]
    return sorted((given / "data").glob("*.parquet"), key=lambda file: (split(file), file.name))


def split(file: Path) -> str:
    """Return what a file's bins are for: the word before the first dash of its name."""
    return file.stem.partition("-")[0]


def is_bins(path: Path) -> bool:
    """Tell whether a file holds packed bins rather than chat data."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        return set(COLUMNS) <= set(pq.read_schema(path).names)
    except pa.ArrowInvalid:
        return False


def read(paths: Iterable[Path], most: int | None = None) -> Iterator[Bins]:
    """Read bins in order, `most` at a time, by default as many as have some `TOKENS` tokens.

    Raises ValueError where a file's columns are not those of bins.
    """
    bins = rows = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for found in _group(file, path, group, most, bins, rows):
                    yield found
                    bins += len(found.bins) - 1
                    rows += len(found.rows) - 1


def _group(
    file: pq.ParquetFile, path: Path, group: int, most: int | None, bins: int, rows: int
) -> Iterator[Bins]:
    if most is None:
        told = file.metadata.row_group(group)
        tokens = max(_values(told, "input_ids"), 1)
        most = max(1, TOKENS * told.num_rows // tokens)
    for batch in file.iter_batches(most, row_groups=[group], columns=list(COLUMNS)):
        found = _flat(batch, path, group, bins, rows)
        yield found
        bins += len(found.bins) - 1
        rows += len(found.rows) - 1


def _values(group: Any, name: str) -> int:
    """Return how many values a column of lists has in a row group, from its metadata."""
    columns = (group.column(index) for index in range(group.num_columns))
    return next((c.num_values for c in columns if c.path_in_schema.split(".")[0] == name), 0)


def _flat(batch: pa.RecordBatch, path: Path, group: int, first_bin: int, first_row: int) -> Bins:
    made = stored.Bins.of(batch, stored.Place(str(path), first_bin))
    names = batch.column("source")
    if not np.array_equal(np.diff(made.documents), np.asarray(names.value_lengths())):
        raise ValueError(f"{path}: not every document has a source")
    ends = np.concatenate([[0], np.cumsum(made.seq_lengths)])
    targets = made.labels != -100
    return Bins(
        path,
        group,
        first_bin,
        first_row,
        made.input_ids,
        targets,
        ends,
        made.documents,
        names.flatten(),
    )


@dataclass(frozen=True, slots=True)
class Index:
    """Where rows lie: group g of `places` begins with row `first_row[g]` and bin `first_bin[g]`."""

    places: Sequence[tuple[Path, int]]
    first_row: Int64s
    first_bin: Int64s

    def rows(self, numbers: Iterable[int]) -> Iterator[Row]:
        """Read rows by their numbers, in rising order; a row group is read once."""

        def group_of(number: int) -> int:
            return int(np.searchsorted(self.first_row, number, side="right")) - 1

        for group, wanted in groupby(sorted(numbers), group_of):
            path, place = self.places[group]
            left = list(wanted)
            with pq.ParquetFile(path) as file:
                first = int(self.first_bin[group]), int(self.first_row[group])
                for found in _group(file, path, place, None, *first):
                    end = found.first_row + len(found.rows) - 1
                    while left and left[0] < end:
                        yield found.row(left.pop(0) - found.first_row)


class Indexer:
    """Makes an Index of bins as they are read."""

    def __init__(self) -> None:
        self._places: list[tuple[Path, int]] = []
        self._first: list[tuple[int, int]] = []

    def add(self, found: Bins) -> None:
        """Note where these bins lie."""
        if not self._places or self._places[-1] != (found.file, found.group):
            self._places.append((found.file, found.group))
            self._first.append((found.first_row, found.first_bin))

    def index(self) -> Index:
        """Return the index of what was added."""
        first = np.array(self._first, np.int64).reshape(-1, 2)
        return Index(self._places, first[:, 0], first[:, 1])
