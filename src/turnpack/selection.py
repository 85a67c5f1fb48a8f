"""Which conversations of a source are kept, and how often: filters, duplicates, weight and cap.

Owns what is decided about a conversation that was encoded; what became of each is fates.py's count.
All of it depends on the order of the input and the seed, not on how the input comes in chunks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .draws import Draws
from .duplicates import Duplicates
from .fates import Conversations, Described, Fates, Int64s
from .rows import Rows
from .spool import Spool

DUPLICATES = ("keep", "within", "across")
UNITS = ("rows", "tokens")
# Conversations, and tokens of them, among which one draw decides which are left out or repeated.
# They wait in memory until they are complete.
GROUP = 4096
GROUP_TOKENS = 1 << 22


# -- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filters:
    """The bounds of a conversation, None where there is none.

    `tokens` as encoded, `trained`: the share of them that are targets, `turns`: answers.
    """

    min_tokens: int | None = None
    max_tokens: int | None = None
    min_trained: float | None = None
    max_trained: float | None = None
    min_turns: int | None = None
    max_turns: int | None = None

    def __bool__(self) -> bool:
        return bool(self.to_dict())

    def to_dict(self) -> dict[str, float]:
        """The bounds that there are, for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be chosen of a source.

    `weight`: how often a conversation is taken, on average; exact for all of them, counted `by`
    "rows" or "tokens". `cap_rows`, `cap_tokens`: how many there may be after that.
    """

    filters: Filters = Filters()
    weight: float = 1.0
    by: str = "rows"
    cap_rows: int | None = None
    cap_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is not as by default, for JSON."""
        return {
            item.name: value.to_dict() if isinstance(value, Filters) else value
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self.cap_rows is not None or self.cap_tokens is not None


# -- the choice ------------------------------------------------------------------------------------


class Selection:
    """The choice among the conversations of one source, as they come.

    `number` is the source's, its files in `folder`, what became of all is counted in `fates`.
    """

    def __init__(
        self,
        choice: Choice,
        number: int,
        seed: int,
        duplicates: Duplicates | None,
        fates: Fates,
        folder: Path,
    ) -> None:
        self._choice = choice
        self._number = number
        self._duplicates = duplicates
        self._fates = fates
        self._weight = None
        if choice.weight != 1:
            self._weight = _Weight(choice.weight, choice.by, Draws(seed, f"weight {number}"))
        self._cap = None
        if choice.capped:
            draws = Draws(seed, f"cap {number}")
            self._cap = _Cap(choice.cap_rows, choice.cap_tokens, draws, fates, folder, number)

    @property
    def holds_all(self) -> bool:
        """Whether nothing goes on before the source is at its end."""
        return self._cap is not None

    def add(self, rows: Rows, described: Described | None) -> Iterator[Rows]:
        """Take what was encoded of a chunk; yield what goes on of it and those before."""
        if described is not None:
            rows, described = self._filter(rows, described)
            if self._duplicates is not None:
                rows = self._duplicates.remove(rows, described, self._number, self._fates)
        if self._weight is None:
            here = Conversations.of(rows)
            yield from self._keep(here, np.ones(len(here), np.int64))
            return
        for group in self._weight.add(rows):
            yield from self._sampled(group)

    def end(self) -> Iterator[Rows]:
        """Yield what still waits, when the source is at its end."""
        if self._weight is not None:
            for group in self._weight.end():
                yield from self._sampled(group)
        if self._cap is not None:
            yield from self._cap.end()

    def _filter(self, rows: Rows, described: Described) -> tuple[Rows, Described]:
        if not self._choice.filters:
            return rows, described
        filters, here = self._choice.filters, Conversations.of(rows)
        before = np.append(0, np.cumsum(rows.tokens.loss_mask, dtype=np.int64))
        offsets = rows.tokens.offsets
        trained = before[offsets[here.stops]] - before[offsets[here.starts]]
        known = {"tokens": here.tokens, "trained": trained / here.tokens, "turns": described.turns}
        out = np.zeros(len(here), bool)
        for item in fields(filters):
            bound = getattr(filters, item.name)
            if bound is None:
                continue
            which, _, what = item.name.partition("_")
            outside = known[what] < bound if which == "min" else known[what] > bound
            number = int(np.count_nonzero(outside & ~out))
            if number:
                reasons = self._fates.reasons.setdefault(str(self._number), {})
                reasons[item.name] = reasons.get(item.name, 0) + number
            out |= outside
        self._fates.add("filtered", here.inputs[out], here.tokens[out])
        left = np.flatnonzero(~out)
        return here.take(left), described.take(described.numbers[left])

    def _sampled(self, group: tuple[Conversations, Int64s]) -> Iterator[Rows]:
        here, copies = group
        out = copies == 0
        self._fates.add("sampled_out", here.inputs[out], here.tokens[out])
        return self._keep(here, copies)

    def _keep(self, here: Conversations, copies: Int64s) -> Iterator[Rows]:
        if self._cap is not None:
            self._cap.add(here, copies)
            return
        kept = copies > 0
        self._fates.add("kept", here.inputs[kept], here.tokens[kept])
        self._fates.add("packed", here.inputs, here.tokens, copies)
        yield from here.repeated(copies)

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write what waits to files of `folder`, which the state's `files` lists."""
        state: dict[str, Any] = {"files": []}
        for key, part in (("weight", self._weight), ("cap", self._cap)):
            if part is not None:
                state[key] = part.save(folder, f"{name}-{key}")
                state["files"] += state[key]["files"]
        return state

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        for key, part in (("weight", self._weight), ("cap", self._cap)):
            if part is not None:
                part.load(folder, state[key])


class _Weight:
    """How often each conversation is taken, so that the sum is exact at every group's end."""

    def __init__(self, weight: float, by: str, draws: Draws) -> None:
        self._weight = weight
        self._by = by
        self._draws = draws
        self._parts: list[Rows] = []
        self._count = self._tokens = 0  # of those that wait
        self._decided = 0  # conversations
        self._seen = self._given = 0  # conversations, or tokens, of those decided

    def add(self, rows: Rows) -> Iterator[tuple[Conversations, Int64s]]:
        """Take further rows; yield complete groups, and the copies of each conversation."""
        while len(rows):
            here = Conversations.of(rows)
            tokens = self._tokens + np.cumsum(here.tokens)
            full = int(np.searchsorted(tokens, GROUP_TOKENS)) + 1
            taken = min(full, GROUP - self._count, len(here))
            stop = int(here.stops[taken - 1])
            self._parts.append(rows.slice(0, stop))
            self._count += taken
            self._tokens = int(tokens[taken - 1])
            rows = rows.slice(stop, len(rows))
            if self._count == GROUP or self._tokens >= GROUP_TOKENS:
                yield from self.end()

    def end(self) -> Iterator[tuple[Conversations, Int64s]]:
        """Yield what waits as a group."""
        if self._parts:
            here = Conversations.of(Rows.join(self._parts))
            self._parts, self._count, self._tokens = [], 0, 0
            copies = self._copies(here)
            self._decided += len(here)
            yield here, copies

    def _copies(self, here: Conversations) -> Int64s:
        """All as often as the weight's whole part says, and some once more, drawn by lot."""
        cost = here.tokens if self._by == "tokens" else np.ones(len(here), np.int64)
        whole = math.floor(self._weight)
        self._seen += int(cost.sum())
        wanted = math.floor(self._weight * self._seen + 0.5) - self._given
        wanted -= whole * int(cost.sum())
        lots = np.argsort(self._draws.take(self._decided, len(here)))
        sums = np.append(0, np.cumsum(cost[lots]))
        more = lots[: int(np.argmin(np.abs(sums - wanted)))]
        copies = np.full(len(here), whole, np.int64)
        copies[more] += 1
        self._given += int((copies * cost).sum())
        return copies

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        files = []
        if self._parts:
            files = [f"{name}.arrow"]
            Rows.join(self._parts).save(folder / files[0])
        numbers = {"decided": self._decided, "seen": self._seen, "given": self._given}
        waiting = {"count": self._count, "tokens": self._tokens}
        return {"files": files, **numbers, **waiting}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._parts = [Rows.load(folder / name) for name in state["files"]]
        self._decided, self._seen, self._given = state["decided"], state["seen"], state["given"]
        self._count, self._tokens = state["count"], state["tokens"]


class _Cap:
    """As many conversations as the cap allows, all equally likely: those with the lowest draws.

    Those that may still be among them wait on the disk; of each only four numbers are in memory.
    """

    def __init__(
        self,
        rows: int | None,
        tokens: int | None,
        draws: Draws,
        fates: Fates,
        folder: Path,
        number: int,
    ) -> None:
        self._most = math.inf if rows is None else rows, math.inf if tokens is None else tokens
        self._draws = draws
        self._fates = fates
        self._path = folder / f"cap-{number}"
        self._spool = Spool(self._path)
        self._seen = 0
        self._limit = np.uint64(2**64 - 1)  # the highest draw that may be among them
        self._keys = np.empty(0, np.uint64)
        # Of each that may be: its input, copies and tokens.
        self._facts = np.empty((0, 3), np.int64)
        self._sorted = 0

    def add(self, here: Conversations, copies: Int64s) -> None:
        """Take conversations, so many copies of each."""
        keys = self._draws.take(self._seen, len(here))
        self._seen += len(here)
        facts = np.stack([here.inputs.astype(np.int64), copies, here.tokens], axis=1)
        may = (copies > 0) & (keys <= self._limit)
        out = (copies > 0) & ~may
        self._fates.add("sampled_out", here.inputs[out], here.tokens[out])
        chosen = np.flatnonzero(may)
        if not len(chosen):
            return
        self._keys = np.append(self._keys, keys[chosen])
        self._facts = np.concatenate([self._facts, facts[chosen]])
        sizes = (here.stops - here.starts)[chosen]
        columns = {
            "key": np.repeat(keys[chosen], sizes),
            "copies": np.repeat(copies[chosen], sizes),
        }
        self._spool.append(here.take(chosen), columns)
        if len(self._keys) > 2 * self._sorted + GROUP:
            self._prune()

    def _prune(self) -> None:
        """Leave out what is above the cap, were this all."""
        order = np.argsort(self._keys)
        keys, facts = self._keys[order], self._facts[order]
        most_rows, most_tokens = self._most
        fits = np.cumsum(facts[:, 1]) <= most_rows
        fits &= np.cumsum(facts[:, 1] * facts[:, 2]) <= most_tokens
        count = len(keys) if fits.all() else int(np.argmin(fits))
        if count < len(keys):
            self._limit = keys[count] - np.uint64(1)
            self._fates.add("sampled_out", facts[count:, 0], facts[count:, 2])
        self._keys, self._facts, self._sorted = keys[:count], facts[:count], count

    def end(self) -> Iterator[Rows]:
        """Yield the rows of those that are left, in the order in which they came."""
        self._prune()
        inputs, copies, tokens = self._facts.T
        self._fates.add("kept", inputs, tokens)
        self._fates.add("packed", inputs, tokens, copies)
        for rows, columns in self._spool.read():
            here = Conversations.of(rows)
            keys, copies = columns["key"][here.starts], columns["copies"][here.starts]
            yield from here.repeated(np.where(keys <= self._limit, copies, 0))

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        with (folder / f"{name}.npz").open("wb") as file:
            np.savez(file, keys=self._keys, facts=self._facts)
            file.flush()
            os.fsync(file.fileno())
        files = [f"{name}.npz", *([self._path.name] if self._spool.bytes else [])]
        numbers = {"seen": self._seen, "limit": str(self._limit), "sorted": self._sorted}
        return {"files": files, "spool": self._spool.to_dict(), **numbers}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        with np.load(folder / state["files"][0]) as arrays:
            self._keys, self._facts = arrays["keys"], arrays["facts"]
        self._seen, self._sorted = state["seen"], state["sorted"]
        self._limit = np.uint64(int(state["limit"]))
        self._spool = Spool(self._path, state["spool"])
