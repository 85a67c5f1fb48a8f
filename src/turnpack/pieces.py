"""The input of a job on many machines, cut into pieces that are made one by one.

Owns where files are cut: plain JSONL behind lines, Parquet between row groups, others nowhere. What
is made of a piece is piecework.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .records import Slice

# What a range of bytes is told about.
COUNTED = pa.schema(
    {"path": pa.string(), **dict.fromkeys(("start", "stop", "lines", "first"), pa.int64())}
)
Map = Callable[[Callable[[pa.Table], pa.Table], Sequence[Mapping[str, Any]]], Iterator[Any]]


class Piece(NamedTuple):
    """Files of a part of the job that are read together, or a slice of one."""

    part: int
    files: list[str | Slice]


def cut(files: Sequence[Sequence[str]], most: int, mapped: Map) -> list[Piece]:
    """Cut the files of each part into pieces of about `most` bytes, in order.

    Small files are put together. `mapped`: maps a function of tables over rows, in order.
    """
    sizes = {path: os.path.getsize(path) for part in files for path in part}
    counted: dict[str, list[dict[str, Any]]] = {}
    ranges = [each for path, size in sizes.items() for each in _ranges(path, size, most)]
    for told in mapped(_count_lines, ranges) if ranges else ():
        counted.setdefault(told["path"], []).append(told)
    pieces: list[Piece] = []
    for number, part in enumerate(files):
        held = most + 1
        for path in part:
            slices = _line_slices(path, sizes[path], counted.get(path)) or _group_slices(path, most)
            if len(slices) > 1:
                pieces += [Piece(number, [each]) for each in slices]
                held = most + 1
            elif held + sizes[path] > most:
                pieces.append(Piece(number, [path]))
                held = sizes[path]
            else:
                pieces[-1].files.append(path)
                held += sizes[path]
    return pieces


def _ranges(path: str, size: int, most: int) -> Iterator[dict[str, Any]]:
    """Ranges of `most` bytes of a file that is larger, if it is plain JSONL."""
    if size > most and path.lower().endswith((".jsonl", ".ndjson")):
        for start in range(0, size, most):
            yield {"path": path, "start": start, "stop": min(start + most, size)}


def _count_lines(batch: pa.Table) -> pa.Table:
    """Add to each range of a file how many lines end in it, and where the first of them does."""
    told = []
    for row in batch.to_pylist():
        lines, first, at = 0, None, row["start"]
        try:
            with open(row["path"], "rb") as file:
                file.seek(at)
                while at < row["stop"] and (data := file.read(min(1 << 20, row["stop"] - at))):
                    if first is None and (place := data.find(b"\n")) >= 0:
                        first = at + place
                    lines += data.count(b"\n")
                    at += len(data)
            told.append({**row, "lines": lines, "first": first})
        except OSError:
            told.append({**row, "lines": None, "first": None})
    return pa.Table.from_pylist(told, COUNTED)


def _line_slices(path: str, size: int, counted: list[dict[str, Any]] | None) -> list[Slice]:
    """Cut a file behind the first line that ends in each of its ranges but the first."""
    if not counted or any(told["lines"] is None for told in counted):
        return []  # where it cannot be read is for the reader to say
    cuts, lines = [(0, 1)], counted[0]["lines"]
    for told in counted[1:]:
        if told["first"] is not None and told["first"] + 1 < size:
            cuts.append((told["first"] + 1, lines + 2))
        lines += told["lines"]
    stops = [*(start for start, _ in cuts[1:]), size]
    return [Slice(path, start, stop, line) for (start, line), stop in zip(cuts, stops, strict=True)]


def _group_slices(path: str, most: int) -> list[Slice]:
    """Cut a file that is Parquet between row groups."""
    if not path.lower().endswith(".parquet"):
        return []
    slices: list[Slice] = []
    index, held = 0, most + 1
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if held + group.total_byte_size > most:
                    slices.append(Slice(path, number, number, index))
                    held = 0
                slices[-1] = slices[-1]._replace(stop=number + 1)
                held += group.total_byte_size
                index += group.num_rows
    except (OSError, ValueError, pa.ArrowException):
        return []  # the reader says what is wrong with it
    return slices
