"""Compare: what changed between two preparations, row by row.

Owns the pairing of rows by their sources and what is shown of those that differ. It sees hashes of
rows until it shows some; texts are reading.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from . import bins, preview, report
from .bins import Index, Row
from .draws import UInt64s, mixed
from .reading import Piece, Reader, one_line
from .survey import Hashes

Int64s = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]

CONTEXT = 12  # pieces around a difference that are shown


@dataclass(frozen=True, slots=True)
class Side:
    """One preparation: hashes of every row's source, ids and targets, and where rows lie."""

    folder: Path
    report: Mapping[str, Any]
    reader: Reader
    source: UInt64s
    ids: UInt64s
    targets: UInt64s
    file: npt.NDArray[np.int32]
    files: Sequence[str]
    index: Index


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs. Pairs are int64 `[n, 2]`, row numbers in A and in B; the others row numbers."""

    before: Side
    after: Side
    settings: Sequence[tuple[str, str, str]]
    same: int
    targets: Pairs
    ids: Pairs
    only_before: Int64s
    only_after: Int64s

    @property
    def differs(self) -> bool:
        """Whether any row differs; settings may, as long as they change nothing."""
        return any(map(len, (self.targets, self.ids, self.only_before, self.only_after)))


def compare(before: Path, after: Path) -> Comparison:
    """Pair the rows of two output directories by source, and tell which differ and in what.

    Where no source is in both, files are taken for the same by their names without folders. Raises
    FileNotFoundError and ValueError where a directory is not what `prepare` writes.
    """
    a, b = side(before), side(after)
    if not np.isin(a.source, b.source).any():
        a, b = side(before, names_only=True), side(after, names_only=True)
    return Comparison(a, b, _settings(a.report, b.report), *_paired(a, b))


def side(folder: Path, names_only: bool = False) -> Side:
    """Read one output directory in one pass; 28 bytes a row stay in memory."""
    found = report.read(folder)
    hashes, of_names = Hashes(), Hashes()
    parts: list[tuple[UInt64s, UInt64s, UInt64s, npt.NDArray[np.int32]]] = []
    files: dict[str, int] = {}
    indexer = bins.Indexer()
    for some in bins.read(bins.files(folder)):
        indexer.add(some)
        names = some.source
        if names_only:
            names = pc.replace_substring_regex(names, r"^.*/", "")
        parts.append(
            (
                of_names.of(*_bytes(names)),
                hashes.of(some.input_ids, some.rows),
                hashes.of(some.targets, some.rows),
                _file_numbers(names, files),
            )
        )
    no = np.empty(0, np.uint64)
    parts.append((no, no, no, np.empty(0, np.int32)))
    source, ids, targets, file = map(np.concatenate, zip(*parts, strict=True))
    reader = Reader(report.tokenizer(folder, found.get("options") or {}))
    return Side(folder, found, reader, source, ids, targets, file, list(files), indexer.index())


def _bytes(names: pa.Array) -> tuple[npt.NDArray[np.uint8], Int64s]:
    """UTF-8 of strings, back to back, with an end mark, so that none is empty."""
    ended = pc.binary_join_element_wise(names, "\n", "").cast(pa.large_string())
    _, offsets, data = ended.buffers()
    at = np.frombuffer(offsets, np.int64)[ended.offset : ended.offset + len(ended) + 1]
    return np.frombuffer(data, np.uint8)[at[0] : at[-1]], at - at[0]


def _file_numbers(names: pa.Array, known: dict[str, int]) -> npt.NDArray[np.int32]:
    coded = pc.replace_substring_regex(names, bins.PLACE, "").dictionary_encode()
    numbers = [known.setdefault(name, len(known)) for name in coded.dictionary.to_pylist()]
    codes: npt.NDArray[np.int32] = np.asarray(coded.indices)
    return np.array(numbers, np.int32)[codes]


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was asked for otherwise, and what it was made with."""

    def flat(found: Mapping[str, Any]) -> dict[str, Any]:
        values = {"turnpack": found.get("turnpack"), **(found.get("options") or {})}
        for key in ("tokenizer", "template"):
            value = found.get(key) or {}
            values[key] = f"{value.get('name')} ({str(value.get('sha256'))[:12]})"
        return values

    before, after = flat(a), flat(b)
    return [
        (key, str(before.get(key)), str(after.get(key)))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _paired(a: Side, b: Side) -> tuple[int, Pairs, Pairs, Int64s, Int64s]:
    """Equal rows first; of what is left of a source those of equal ids, then the rest in order."""
    found: list[Pairs] = []
    left = [np.arange(len(a.source)), np.arange(len(b.source))]
    for names in (("source", "ids", "targets"), ("source", "ids"), ("source",)):
        keys = [_together(part, names)[at] for part, at in zip((a, b), left, strict=True)]
        places = _matches(*keys)
        pairs = np.stack([at[place] for at, place in zip(left, places, strict=True)], axis=1)
        found.append(pairs[np.argsort(pairs[:, 0], kind="stable")])
        left = [np.delete(at, place) for at, place in zip(left, places, strict=True)]
    return len(found[0]), found[1], found[2], left[0], left[1]


def _together(part: Side, names: Sequence[str]) -> UInt64s:
    """One hash of several."""
    hashes = np.zeros(len(part.source), np.uint64)
    for name in names:
        hashes = mixed(hashes + getattr(part, name))
    return hashes


def _matches(a: UInt64s, b: UInt64s) -> tuple[Int64s, Int64s]:
    """Places of equal values in a and in b; those of a value that is there often, in order."""
    _, values = np.unique(np.concatenate([a, b]), return_inverse=True)
    once = [_counted(part, len(values)) for part in (values[: len(a)], values[len(a) :])]
    _, at_a, at_b = np.intersect1d(once[0], once[1], assume_unique=True, return_indices=True)
    return at_a, at_b


def _counted(values: Int64s, size: int) -> Int64s:
    """Values, all different: each with the number of equal ones before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counted = np.empty(len(values), np.int64)
    counted[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered, side="left")
    return values * (size + 1) + counted


# -- what is shown -------------------------------------------------------------------------------


def show(console: Console, found: Comparison, rows: int) -> None:
    """Print what differs, and the first `rows` rows of each kind."""
    a, b = found.before, found.after
    _print(console, f"A {one_line(str(a.folder))}", "bold")
    _print(console, f"B {one_line(str(b.folder))}", "bold")
    for name, was, now in found.settings:
        _print(console, f"{name}: {one_line(was)} → {one_line(now)}")
    pairs = [
        ("equal", found.same, None),
        ("with other targets", len(found.targets), _by_file(a, found.targets[:, 0])),
        ("with other ids", len(found.ids), _by_file(a, found.ids[:, 0])),
        ("in A only", len(found.only_before), _by_file(a, found.only_before)),
        ("in B only", len(found.only_after), _by_file(b, found.only_after)),
    ]
    width = max(len(f"{number:,}") for _, number, _ in pairs)
    _print(console, "rows")
    for said, number, files in pairs:
        _print(console, f"  {number:>{width},} {said}")
        for name, count in files or ():
            _print(console, f"  {'':{width}}   {count:,} of {one_line(name)}", "dim")
    if not found.differs or not rows:
        return
    preview.show_legend(console)
    for said, chosen in (("other targets", found.targets), ("other ids", found.ids)):
        some = chosen[:rows]
        before, after = _rows(a, some[:, 0]), _rows(b, some[:, 1])
        for one, other in some.tolist():
            _title(console, said, before[one])
            _show_difference(console, a, before[one], b, after[other])
    for where, which, only in (("A", a, found.only_before), ("B", b, found.only_after)):
        for row in _rows(which, np.sort(only)[:rows]).values():
            _title(console, f"in {where} only", row)
            shown = which.reader.document("", row.input_ids, row.targets).pieces
            _show_pieces(console, "-" if where == "A" else "+", shown[: 4 * CONTEXT], len(shown))


def _by_file(which: Side, numbers: Int64s) -> list[tuple[str, int]]:
    counts = Counter(which.file[numbers].tolist()).most_common(10)
    return [(which.files[file], count) for file, count in counts]


def _rows(which: Side, numbers: Int64s) -> dict[int, Row]:
    return {row.number: row for row in which.index.rows(numbers.tolist())}


def _title(console: Console, said: str, row: Row) -> None:
    _print(console, f"── {said} · {one_line(row.source)}", "bold")


def _show_difference(console: Console, a: Side, one: Row, b: Side, other: Row) -> None:
    before = list(a.reader.document("", one.input_ids, one.targets).pieces)
    after = list(b.reader.document("", other.input_ids, other.targets).pieces)
    shortest = min(len(before), len(after))
    start = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    end = next(
        (i for i in range(shortest - start) if before[-1 - i] != after[-1 - i]), shortest - start
    )
    first, keep = max(0, start - CONTEXT), max(0, end - CONTEXT)
    for sign, pieces in (("-", before), ("+", after)):
        shown = pieces[first : len(pieces) - keep]
        _show_pieces(console, sign, shown, len(pieces), first)


def _show_pieces(
    console: Console, sign: str, pieces: Sequence[Piece], of: int, skipped: int = 0
) -> None:
    """Print pieces as lines that begin with a sign, as in a diff."""
    styled = preview.is_styled(console)
    left = max(0, len(pieces) - 12 * CONTEXT)
    shown = pieces[: 12 * CONTEXT]
    painted = preview.paint(shown, styled=styled)
    before = Text("… " if skipped else "")
    after = Text(" …" if left or skipped + len(pieces) < of else "")
    for line in (before + painted + after).split("\n"):
        console.print(Text(f"{sign} ", _SIGNS[sign] if styled else "") + line, soft_wrap=True)


_SIGNS = {"-": "bold red", "+": "bold green"}


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style if preview.is_styled(console) else ""), soft_wrap=True)
