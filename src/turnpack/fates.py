"""Conversations as a choice among them sees them, and the count of what became of each.

Owns what is known of a conversation besides its tokens, and what can become of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import orjson

from .nouns import Conversation, Source
from .rows import Rows

Int64s = npt.NDArray[np.int64]

FATES = ("filtered", "duplicates", "sampled_out", "kept", "packed")


@dataclass(frozen=True, slots=True)
class Input:
    """A file of a source: which part of the job that is, what it is called, and its bytes."""

    part: int
    source: str
    file: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Described:
    """What tokens do not tell of conversations: `turns` and `places` int64 of each, and digests.

    `places` `[n, 2]`: line and index, -1 where there is none. `digests`: of messages and tools.
    """

    numbers: Int64s
    turns: Int64s
    places: Int64s
    digests: list[bytes] | None

    def take(self, numbers: Int64s) -> Described:
        """Those of these numbers, in this order."""
        at = np.searchsorted(self.numbers, numbers)
        digests = self.digests
        return Described(
            numbers,
            self.turns[at],
            self.places[at],
            None if digests is None else [digests[place] for place in at.tolist()],
        )


def describe(
    numbers: Sequence[int], conversations: Sequence[Conversation], digests: bool
) -> Described:
    """Describe conversations, which are numbered in ascending order."""
    turns = [sum(m["role"] == "assistant" for m in c.messages) for c in conversations]
    places = [
        (-1 if s.line is None else s.line, -1 if s.index is None else s.index)
        for s in (cast(Source, conversation.source) for conversation in conversations)
    ]
    return Described(
        np.array(numbers, np.int64),
        np.array(turns, np.int64),
        np.array(places, np.int64).reshape(-1, 2),
        [_digest(conversation) for conversation in conversations] if digests else None,
    )


def _digest(conversation: Conversation) -> bytes:
    value = [conversation.messages, conversation.tools]
    try:
        text = orjson.dumps(value, default=repr, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, or an integer past 64 bits
        text = json.dumps(value, default=repr, sort_keys=True).encode()
    return blake2b(text, digest_size=16).digest()


def add_by_number(
    sums: dict[str, list[int]], numbers: npt.NDArray[Any], *values: npt.NDArray[Any]
) -> None:
    """Add integers to the sums of their numbers, which are spelled as JSON's keys are."""
    found, which = np.unique(numbers, return_inverse=True)
    added = np.zeros((len(values), len(found)), np.int64)
    for each, of_number in zip(values, added, strict=True):
        np.add.at(of_number, which, each)
    for number, more in zip(found.tolist(), added.T.tolist(), strict=True):
        before = sums.get(str(number), [0] * len(values))
        sums[str(number)] = [a + b for a, b in zip(before, more, strict=True)]


@dataclass(slots=True)
class Fates:
    """What became of encoded conversations, in JSON's types.

    `counts`: by fate and input, conversations and tokens. What is "kept" is "packed", repeats
    counted. `reasons`: why conversations were filtered, by source.
    """

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, fate: str, inputs: npt.NDArray[Any], tokens: Int64s, times: Any = None) -> None:
        """Count conversations by the number of their input; each so many times, or once."""
        times = np.ones(len(inputs), np.int64) if times is None else times
        add_by_number(self.counts.setdefault(fate, {}), inputs, times, tokens * times)

    def merge(self, more: Fates) -> None:
        """Count what became of others as well."""
        for fate, by_input in more.counts.items():
            counted = self.counts.setdefault(fate, {})
            for number, counts in by_input.items():
                before = counted.get(number, [0, 0])
                counted[number] = [a + b for a, b in zip(before, counts, strict=True)]
        for source, reasons in more.reasons.items():
            known = self.reasons.setdefault(source, {})
            for reason, number_of in reasons.items():
                known[reason] = known.get(reason, 0) + number_of

    def of(self, fate: str, inputs: Sequence[int]) -> tuple[int, int]:
        """Conversations and tokens of some inputs."""
        counts = [self.counts.get(fate, {}).get(str(number), (0, 0)) for number in inputs]
        return sum(number for number, _ in counts), sum(tokens for _, tokens in counts)


@dataclass(frozen=True, slots=True)
class Conversations:
    """Rows by conversation: where each starts and ends, its input and its tokens."""

    rows: Rows
    starts: Int64s
    stops: Int64s
    inputs: npt.NDArray[np.int32]
    tokens: Int64s

    @classmethod
    def of(cls, rows: Rows) -> Conversations:
        """Find where conversations begin."""
        starts = np.flatnonzero(rows.first)
        stops = np.append(starts[1:], len(rows))[: len(starts)]
        offsets = rows.tokens.offsets
        return cls(rows, starts, stops, rows.files[starts], offsets[stops] - offsets[starts])

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, chosen: Int64s) -> Rows:
        """The rows of the chosen ones, in this order."""
        if len(chosen) == len(self) and (chosen == np.arange(len(self))).all():
            return self.rows
        sizes = (self.stops - self.starts)[chosen]
        before = np.cumsum(sizes) - sizes
        return self.rows.take(np.repeat(self.starts[chosen] - before, sizes) + _count(sizes))

    def repeated(self, copies: Int64s) -> Iterator[Rows]:
        """All of them once, then all that come twice, and so on: copies are far from each other."""
        for number in range(int(copies.max(initial=0))):
            yield self.take(np.flatnonzero(copies > number))


def _count(sizes: Int64s) -> Int64s:
    return np.arange(int(sizes.sum()))
