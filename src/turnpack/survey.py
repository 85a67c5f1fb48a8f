"""The survey: one pass over packed bins that counts what a page shows, and picks rows to show.

Owns the counting and the picking. Every loop over tokens is NumPy's, and what is kept does not grow
with the set: a histogram of lengths, counts by source and turn, and the rows picked. Text it asks
of a Reader, and only of tokens that end rows and of rows picked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from . import bins, kernels, picture
from .bins import Bins, Row
from .draws import UInt64s, mixed
from .picture import Bar
from .reading import Reader

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Item = TypeVar("Item")
Strategy = Literal["best_fit", "first_fit", "in_order"]

# Rows of each kind that are picked, in the order in which they are shown.
KINDS = {
    "random": 100,
    "longest": 4,
    "shortest": 4,
    "truncated": 6,
    "multi-turn": 8,
    "tools": 8,
    "warning": 12,
}
TURNS = 32  # answers of a row that are counted one by one; what is behind them counts with the last
SOURCES = 1000  # counted one by one, likewise
ROWS = 1 << 21  # rows whose hashes are kept, and whose bins are planned anew; beyond, a sample
SCANNED = 256  # random rows whose text is searched for tools
LONGEST_SCANNED = 1 << 14  # tokens of such a row
LOOKS = 10_000  # at what may spell a control token; then it is believed
OTHERS = "all others"

TOOL_TOKENS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "<|python_tag|>",
        "<|tool|>",
        "[TOOL_CALLS]",
    ),
    *("[AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "<｜tool▁calls▁begin｜>", "<｜tool▁outputs▁begin｜>"),
)
_TOOLS = re.compile(
    r"<tools>|<tool_call>|<tool_response>|<functioncall>|\[TOOL_CALLS\]|\[AVAILABLE_TOOLS\]"
    r"|tool▁calls?▁begin|<\|python_tag\|>|\"tool_calls\"|\"function\": ?\{|\"parameters\": ?\{"
)


@dataclass(slots=True)
class Count:
    """Rows, their tokens, and the targets among these."""

    rows: int = 0
    tokens: int = 0
    targets: int = 0

    def __iadd__(self, other: Count) -> Count:
        self.rows += other.rows
        self.tokens += other.tokens
        self.targets += other.targets
        return self


@dataclass(slots=True)
class Picked:
    """A row to show, and the kinds it was picked for; `notes` say in words what to look at."""

    row: Row
    kinds: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Survey:
    """What was counted. `lengths[split][n]`: rows of n tokens. `turns[i]`: answer i of every row.

    `duplicates`: rows that are there once more; where there are more than `ROWS`, an estimate from
    one in `thinned`. `unstopped`: rows whose last target is no control token. `spelled`: rows in
    which ordinary text spells a control token, by the token.
    """

    capacity: int
    total: Count = field(default_factory=Count)
    bins: int = 0
    lengths: dict[str, Int64s] = field(default_factory=dict)
    bins_of: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Count] = field(default_factory=dict)
    turns: list[Count] = field(default_factory=list)
    masked: int = 0
    unstopped: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    spelled: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    thinned: int = 1
    picked: list[Picked] = field(default_factory=list)
    picture: list[Bar] = field(default_factory=list)

    def histogram(self) -> Int64s:
        """Rows by their tokens, over all splits."""
        size = max((len(counts) for counts in self.lengths.values()), default=1)
        return sum(
            (np.pad(counts, (0, size - len(counts))) for counts in self.lengths.values()),
            np.zeros(size, np.int64),
        )


def survey(
    paths: Sequence[Path], reader: Reader, capacity: int, *, seed: int = 0, cut: bool = False
) -> Survey:
    """Count bins in one pass. `cut`: rows were truncated, so some that end early are that."""
    counter = _Counter(Survey(capacity), reader, seed, cut)
    found = bins.read(paths)
    with ThreadPoolExecutor(1, "turnpack-survey") as pool:  # which reads while we count
        coming = pool.submit(next, found, None)
        while (here := coming.result()) is not None:
            coming = pool.submit(next, found, None)
            counter.add(here)
    return counter.finish()


class _Counter:
    def __init__(self, made: Survey, reader: Reader, seed: int, cut: bool) -> None:
        self._made = made
        self._reader = reader
        self._seed = seed
        self._unstopped_is = "truncated" if cut else "warning"
        self._hashes = Hashes()
        self._seen = _Seen()
        self._indexer = bins.Indexer()
        self._turns = np.zeros((3, TURNS), np.int64)
        self._endings: Counter[int] = Counter()
        self._sources: dict[str, Count] = {}
        self._best: dict[str, _Best[Row]] = {kind: _Best(most) for kind, most in KINDS.items()}
        self._masked: _Best[Row] = _Best(3)
        self._spelled: _Best[Row] = _Best(4)
        self._scanned: _Best[Row] = _Best(SCANNED)
        self._drawn: _Best[Bar] = _Best(picture.MOST)
        tools = map(reader.control_id, TOOL_TOKENS)
        self._tools = sorted({token for token in tools if token is not None})
        self._spellings: dict[str, list[int]] = {}
        self._asked: set[int] = set()
        self._looks = 0

    def add(self, found: Bins) -> None:
        made = self._made
        self._indexer.add(found)
        rows, targets = found.rows, found.targets
        lengths = np.diff(rows)
        sums = np.concatenate([[0], np.cumsum(targets, dtype=np.int64)])
        trained = np.diff(sums[rows])
        split = bins.split(found.file)
        made.bins += len(found.bins) - 1
        made.bins_of[split] = made.bins_of.get(split, 0) + len(found.bins) - 1
        made.total += Count(len(lengths), len(targets), int(sums[-1]))
        made.lengths[split] = _added(made.lengths.get(split), np.bincount(lengths))
        made.masked += int(np.count_nonzero(trained == 0))
        self._count_sources(found.source, lengths, trained)

        starts, ends = runs(targets, rows)
        of_row = np.searchsorted(rows, starts, side="right") - 1
        answers = np.bincount(of_row, minlength=len(lengths))
        ordinal = np.arange(len(starts)) - np.repeat(np.cumsum(answers) - answers, answers)
        self._count_turns(starts, ends, np.minimum(ordinal, TURNS - 1), rows[of_row])

        learned = np.flatnonzero(answers)
        last = found.input_ids[ends[np.cumsum(answers)[learned] - 1] - 1]
        ids, where, counts = np.unique(last, return_inverse=True, return_counts=True)
        stops = np.array([self._reader.is_control(int(token)) for token in ids], np.bool_)
        self._endings.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        unstopped = np.zeros(len(lengths), np.bool_)
        unstopped[learned] = ~stops[where]
        made.unstopped += int(np.count_nonzero(unstopped))

        number = found.first_row + np.arange(len(lengths))
        hashes = self._hashes.of(found.input_ids, rows)
        self._seen.add(hashes, number)
        chance = mixed(number.astype(np.uint64) + np.uint64(self._seed * 0x9E37 + 1))
        chance = (chance >> np.uint64(12)).astype(np.int64)
        best = self._best
        best["random"].offer(chance, True, found.row)
        best["longest"].offer(-lengths, True, found.row)
        best["shortest"].offer(lengths, True, found.row)
        best[self._unstopped_is].offer(chance, unstopped, found.row)
        best["multi-turn"].offer(chance, answers > 1, found.row)
        best["tools"].offer(chance, self._has_tools(found), found.row)
        self._masked.offer(chance, trained == 0, found.row)
        self._spelled.offer(chance, self._spells(found, last), found.row)
        self._scanned.offer(chance, lengths <= LONGEST_SCANNED, found.row)
        self._draw(found)

    def _count_sources(self, names: pa.Array, lengths: Int64s, trained: Int64s) -> None:
        coded = pc.replace_substring_regex(names, bins.PLACE, "").dictionary_encode()
        codes = np.asarray(coded.indices)
        size = len(coded.dictionary)
        counts = (
            np.bincount(codes, minlength=size).tolist(),
            *(_sums(codes, values, size) for values in (lengths, trained)),
        )
        for name, *count in zip(coded.dictionary.to_pylist(), *counts, strict=True):
            known = name in self._sources or len(self._sources) < SOURCES
            kept = self._sources.setdefault(name if known else OTHERS, Count())
            kept += Count(*count)

    def _count_turns(
        self, starts: Int64s, ends: Int64s, ordinal: Int64s, row_starts: Int64s
    ) -> None:
        # What stands before an answer, from the one before or from the row's start, is its prompt.
        before = np.concatenate([[0], ends[:-1]])[: len(starts)]
        begun = np.maximum(before, row_starts)
        self._turns[0] += np.bincount(ordinal, minlength=TURNS)
        for place, values in ((1, ends - begun), (2, ends - starts)):
            self._turns[place] += np.array(_sums(ordinal, values, TURNS), np.int64)

    def _has_tools(self, found: Bins) -> Bools:
        has = np.zeros(len(found.rows) - 1, np.bool_)
        for token in self._tools:
            at = np.flatnonzero(found.input_ids == token)
            has[np.searchsorted(found.rows, at, side="right") - 1] = True
        return has

    def _spells(self, found: Bins, last: npt.NDArray[np.int32]) -> Bools:
        """Rows in which ordinary tokens spell a control token: EOS, or one at an end of a row."""
        ids, rows = found.input_ids, found.rows
        ends = {*np.unique(ids[rows[:-1]]).tolist(), *np.unique(last).tolist()}
        eos = None if self._reader.eos is None else self._reader.control_id(self._reader.eos)
        ends |= {eos} - {None}
        self._spellings |= self._reader.spellings(ends - self._asked)
        self._asked |= ends
        any_of = np.zeros(len(rows) - 1, np.bool_)
        for text, inner in self._spellings.items():
            at = np.flatnonzero(ids[: max(0, len(ids) - len(inner) + 1)] == inner[0])
            for place, token in enumerate(inner[1:], 1):
                at = at[ids[at + place] == token]
            where = np.searchsorted(rows, at, side="right") - 1
            spelled = [
                self._is_spelled(ids[max(start - 3, rows[row]) : rows[row + 1]], inner, text)
                for start, row in zip(at.tolist(), where.tolist(), strict=True)
            ]
            where = np.unique(where[np.array(spelled, np.bool_)])
            if len(where):
                any_of[where] = True
                self._made.spelled[text] = self._made.spelled.get(text, 0) + len(where)
        return any_of

    def _is_spelled(self, ids: npt.NDArray[np.int32], inner: Sequence[int], text: str) -> bool:
        """Decode what is around the ids of a spelling, unless that was done very often already."""
        self._looks += 1
        near = ids[: len(inner) + 6].tolist()
        return self._looks > LOOKS or self._reader.spells(near, text)

    def _draw(self, found: Bins) -> None:
        """Keep some bins for the picture, each as likely as any other."""
        number = np.arange(len(found.bins) - 1) + found.first_bin
        chance = (mixed(number.astype(np.uint64)) >> np.uint64(12)).astype(np.int64)

        def take(index: int) -> Bar:
            rows = found.rows[found.bins[index] : found.bins[index + 1] + 1]
            return Bar(int(number[index]), np.diff(rows), found.targets[rows[0] : rows[-1]].copy())

        self._drawn.offer(chance, True, take)

    def finish(self) -> Survey:
        made = self._made
        made.sources = dict(sorted(self._sources.items(), key=lambda pair: -pair[1].tokens))
        behind = np.flatnonzero(self._turns[0])
        made.turns = (
            [Count(*column) for column in self._turns.T[: behind[-1] + 1].tolist()]
            if len(behind)
            else []
        )
        often = sorted(self._endings.items(), key=lambda pair: (-pair[1], pair[0]))
        made.endings = {self._reader.spelled(token): count for token, count in often[:8]}
        made.picture = sorted(self._drawn.values(), key=lambda item: item.number)
        made.duplicates, again = self._seen.twice()
        made.thinned = self._seen.one_in
        made.picked = self._pick(again)
        return made

    def _pick(self, again: Mapping[int, int]) -> list[Picked]:
        picked: dict[int, Picked] = {}

        def pick(row: Row, kind: str, note: str = "") -> None:
            kept = picked.setdefault(row.number, Picked(row))
            if kind not in kept.kinds:
                kept.kinds.append(kind)
            if note:
                kept.notes.append(note)

        if not self._best["tools"].values():
            scanned = self._scanned.values()
            has = [bool(_TOOLS.search(self._reader.text(row.input_ids))) for row in scanned]
            self._best["tools"].offer(
                np.arange(len(has)), np.array(has, np.bool_), scanned.__getitem__
            )
        for kind, best in self._best.items():
            for row in best.values():
                note = ""
                if kind == self._unstopped_is:
                    note = (
                        "the last target is no control token: the end of the answer is not learned"
                    )
                pick(row, kind, note)
        for row in self._masked.values():
            pick(row, "warning", "no token of this row is a target")
        for row in self._spelled.values():
            pick(row, "warning", "ordinary text spells a control token")
        for row in self._indexer.index().rows(again):
            pick(row, "warning", f"there are {again[row.number]:,} rows of the same tokens")
        return list(picked.values())


class _Best(Generic[Item]):
    """The `most` items with the lowest keys, of all that were offered; equal keys by order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[int, Item]] = []

    def offer(
        self, keys: npt.NDArray[Any], eligible: Bools | bool, take: Callable[[int], Item]
    ) -> None:
        """Offer items with these keys; `take(place)` makes one that is kept."""
        if len(self._kept) == self._most:
            eligible = eligible & (keys < self._kept[-1][0])
        places = np.flatnonzero(np.broadcast_to(eligible, keys.shape))
        places = places[np.argsort(keys[places], kind="stable")[: self._most]]
        made = [(int(keys[place]), take(int(place))) for place in places]
        self._kept = sorted([*self._kept, *made], key=lambda pair: pair[0])[: self._most]

    def values(self) -> list[Item]:
        """What is kept, best first."""
        return [item for _, item in self._kept]


def runs(targets: Bools, rows: Int64s) -> tuple[Int64s, Int64s]:
    """Return start and end of every run of targets; none goes over the edge of a row."""
    if not len(targets):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begins, stops = targets.copy(), targets.copy()
    begins[1:] &= ~targets[:-1]
    stops[:-1] &= ~targets[1:]
    begins[rows[:-1]] = targets[rows[:-1]]
    stops[rows[1:] - 1] = targets[rows[1:] - 1]
    return np.flatnonzero(begins), np.flatnonzero(stops) + 1


class Hashes:
    """64-bit hashes of rows: the sum of each value, plus one, times a random number of its place.

    Two rows that differ collide with a chance of about 2^-46 at most.
    """

    def __init__(self) -> None:
        self._weights = np.empty(0, np.uint64)

    def of(self, values: npt.NDArray[np.generic], rows: Int64s) -> UInt64s:
        """Hash every row `values[rows[r]:rows[r + 1]]`; none is empty."""
        if len(rows) < 2:
            return np.empty(0, np.uint64)
        lengths = np.diff(rows)
        longest = int(lengths.max())
        if len(self._weights) < longest:
            self._weights = np.random.PCG64(20_26).random_raw(max(longest, 4096))
        place = np.arange(len(values))
        place -= np.repeat(rows[:-1], lengths)
        weighed = self._weights[place]
        added = values.astype(np.uint64)
        added += np.uint64(1)
        weighed *= added
        return np.add.reduceat(weighed, rows[:-1])


class _Seen:
    """Counts rows whose hash was there before; where they are many, of one in `one_in` of them."""

    def __init__(self) -> None:
        self.one_in = 1
        self._parts: list[tuple[UInt64s, Int64s]] = []
        self._kept = 0

    def add(self, hashes: UInt64s, numbers: Int64s) -> None:
        self._keep(mixed(hashes), numbers)
        while self._kept > ROWS:
            self.one_in *= 2
            parts, self._parts, self._kept = self._parts, [], 0
            self._keep(*map(np.concatenate, zip(*parts, strict=True)))

    def _keep(self, hashes: UInt64s, numbers: Int64s) -> None:
        if self.one_in > 1:
            kept = hashes % np.uint64(self.one_in) == 0
            hashes, numbers = hashes[kept], numbers[kept]
        self._parts.append((hashes, numbers))
        self._kept += len(hashes)

    def twice(self, shown: int = 4) -> tuple[int, dict[int, int]]:
        """How many rows are there once more, and how often the most frequent are, by number."""
        if not self._kept:
            return 0, {}
        hashes, numbers = map(np.concatenate, zip(*self._parts, strict=True))
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sizes = np.diff(np.append(starts, len(ordered)))
        often = np.argsort(-sizes, kind="stable")[:shown]
        again = {int(numbers[order[starts[i]]]): int(sizes[i]) for i in often if sizes[i] > 1}
        return (len(ordered) - len(starts)) * self.one_in, again


def _added(a: Int64s | None, b: Int64s) -> Int64s:
    if a is None or len(a) < len(b):
        a, b = b, np.empty(0, np.int64) if a is None else a
    a[: len(b)] += b
    return a


def _sums(places: npt.NDArray[np.integer], values: Int64s, size: int) -> list[int]:
    """Sums of values by place; floats hold those of one batch exactly."""
    return [int(total) for total in np.bincount(places, values, minlength=size)]


# -- what other plans would need -----------------------------------------------------------------


def lower_bound(histogram: Int64s, capacity: int) -> int:
    """Bins that any plan needs for rows of these lengths (the bound L2 of Martello and Toth).

    For every k: rows of more than half a bin stand alone among themselves. Those longer than
    capacity - k take no row of k or more; what rows from k to half a bin do not find room for
    beside the others needs bins of its own. For k = 0 that is tokens by capacity.
    """
    lengths = np.arange(len(histogram), dtype=np.int64)
    rows_upto = np.concatenate([[0], np.cumsum(histogram)])
    tokens_upto = np.concatenate([[0], np.cumsum(histogram * lengths)])
    size = len(histogram)
    k = np.arange(0, capacity // 2 + 1)
    half = min(capacity // 2 + 1, size)  # the first length of more than half a bin
    large = np.clip(capacity - k + 1, half, size)  # the first one that takes no row of k
    middle_rows = rows_upto[large] - rows_upto[half]
    room = middle_rows * capacity - (tokens_upto[large] - tokens_upto[half])
    over = tokens_upto[half] - tokens_upto[np.minimum(k, half)] - room
    alone = rows_upto[size] - rows_upto[half]
    return int((alone + np.maximum(0, -(-over // capacity))).max())


@dataclass(frozen=True, slots=True)
class Needs:
    """Bins that a strategy needs; `own`: that this run used.

    `estimated`: planned for a part of the rows and scaled.
    """

    name: str
    bins: int
    own: bool = False
    estimated: bool = False


def strategies(made: Survey, strategy: str) -> list[Needs]:
    """What the strategies need for the rows of a survey, worst first; this run's own as it is."""
    names: dict[str, Strategy | None] = {
        "none": None,
        "in_order": "in_order",
        "first_fit": "first_fit",
        "best_fit": "best_fit",
    }
    needs = []
    for name, plan in names.items():
        if name == strategy:
            needs.append(Needs(name, made.bins, own=True))
        elif plan is None:
            needs.append(Needs(name, made.total.rows))
        else:
            found = [_planned(counts, made.capacity, plan) for counts in made.lengths.values()]
            estimated = any(part for _, part in found)
            needs.append(Needs(name, sum(number for number, _ in found), estimated=estimated))
    if strategy not in names:
        needs.append(Needs(strategy, made.bins, own=True))
    bound = sum(lower_bound(counts, made.capacity) for counts in made.lengths.values())
    return [*needs, Needs("lower bound", bound)]


def _planned(histogram: Int64s, capacity: int, strategy: Strategy) -> tuple[int, bool]:
    """Bins for rows of these lengths, which for "in_order" come in a random order."""
    total = int(histogram.sum())
    if total > ROWS:
        thinned = np.diff(np.concatenate([[0], np.cumsum(histogram) * ROWS // total]))
        found, _ = _planned(thinned, capacity, strategy)
        return round(found * total / ROWS), True
    lengths = np.repeat(np.arange(len(histogram)), histogram)
    if strategy == "in_order":
        lengths = lengths[np.argsort(np.random.PCG64(0).random_raw(len(lengths)), kind="stable")]
    return kernels.plan(lengths, capacity, strategy=strategy).num_bins, False
