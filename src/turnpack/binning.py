"""Rows → bins, by each of `prepare`'s strategies: as they come, or when all are there.

Owns which rows wait for which bins, and the order of bins in the output. What a bin is made of is
`plan`'s and `Planner`'s; nothing here sees text or a file's format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from . import kernels
from .nouns import Plan
from .rows import Rows

Int64s = npt.NDArray[np.int64]

STRATEGIES = ("stream", "best_fit", "first_fit", "in_order", "none")


class Block(NamedTuple):
    """Bins that are ready to be written, in order, and the rows that they are of."""

    rows: Rows
    plan: Plan


class Binning(Protocol):
    """What makes bins of rows that come in parts; how they are cut into parts changes no bin."""

    holds_all: bool  # whether there are no blocks before `flush`

    def add(self, rows: Rows) -> Iterator[Block]:
        """Take further rows; yield the blocks that this fills."""

    def drain(self) -> Iterator[Block]:
        """Yield the bins that are closed and wait for their block, as a block of their own."""

    def flush(self) -> Iterator[Block]:
        """Yield all that is left, when all rows are there."""

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write what waits, after `drain`, into a file of `folder` whose name begins with `name`.

        Returns the state, for JSON; its `files` are all that `load` needs.
        """

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""


def binning(
    strategy: str, capacity: int, *, window: int, seed: int | None, block_tokens: int
) -> Binning:
    """A strategy by its name; `seed` None leaves the bins in order.

    "stream": `Planner` with `window`. "in_order": the next bin begins where a row does not fit.
    "none": every row is a bin. They hold a bounded number of rows, and shuffle what comes to
    `block_tokens`. "best_fit", "first_fit": `plan`, when all rows are there. Raises ValueError for
    another name, or numbers that make no sense.
    """
    if strategy == "stream":
        rule: Rule = kernels.Planner(capacity, window)
    elif strategy == "in_order":
        rule = InOrder(capacity)
    elif strategy == "none":
        rule = Unpacked(capacity)
    elif strategy in ("best_fit", "first_fit"):
        return AllAtOnce(strategy, capacity, seed, block_tokens)
    else:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    return Streamed(rule, window, seed, block_tokens)


def shuffled(plan: Plan, seed: int | None, block: int | None = None) -> Plan:
    """Put a plan's bins into an order that depends on `seed`, `block` and their number alone.

    The order sorts raw draws of PCG64, as NumPy promises to keep those for ever, and promises
    nothing of the kind for `Generator.permutation`.
    """
    if seed is None:
        return plan
    draws = np.random.PCG64(seed if block is None else np.random.SeedSequence([seed, block]))
    order = np.argsort(draws.random_raw(plan.num_bins), kind="stable")
    sizes = np.diff(plan.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    # A row stands as far behind the start of its bin as before.
    shift = np.repeat(plan.offsets[:-1][order] - offsets[:-1], sizes)
    rows = plan.rows[np.arange(len(plan.rows)) + shift]
    return Plan(rows=rows, offsets=offsets, fill=plan.fill[order], capacity=plan.capacity)


class Rule(Protocol):
    """Lengths as a stream → bins, as `Planner` does it: rows are numbered over the stream."""

    def add(self, lengths: Int64s) -> Plan:
        """Take further rows; return the bins that this closes."""

    def flush(self) -> Plan:
        """Return the bins of all rows that wait."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, for JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class Streamed:
    """Bins of a rule that closes them as rows come; shuffled block by block.

    The rule gets `window` rows at a time. Rows lie as they came until a block is made of some of
    them, so that those that wait are moved once a block.
    """

    holds_all = False

    def __init__(self, rule: Rule, window: int, seed: int | None, block_tokens: int) -> None:
        self._rule = rule
        self._window = window
        self._seed = seed
        self._block_tokens = block_tokens
        self._blocks = 0
        self._held: list[Rows] = []
        self._numbers = np.empty(0, np.int64)  # of all these rows, over the stream
        self._coming = np.empty(0, np.int64)  # lengths of the last of them, which no rule saw yet
        self._seen = 0
        self._closed: list[Plan] = []  # by numbers

    def add(self, rows: Rows) -> Iterator[Block]:
        """See Binning."""
        for start in range(0, len(rows), self._window):  # a block moves what is held
            self._hold(rows.slice(start, min(start + self._window, len(rows))))
            while len(self._coming) >= self._window:
                self._see(self._window)
                if sum(int(plan.fill.sum()) for plan in self._closed) >= self._block_tokens:
                    yield from self.drain()

    def drain(self) -> Iterator[Block]:
        """See Binning."""
        if self._closed:
            numbers, sizes, fills = (
                np.concatenate(arrays)
                for arrays in zip(
                    *((p.rows, np.diff(p.offsets), p.fill) for p in self._closed), strict=True
                )
            )
            places = np.searchsorted(self._numbers, numbers)
            capacity = self._closed[0].capacity
            plan = Plan(places, np.append(0, np.cumsum(sizes)), fills, capacity)
            rows = Rows.join(self._held)
            left = np.delete(np.arange(len(rows)), places)
            self._held, self._numbers = [rows.take(left)], self._numbers[left]
            self._closed = []
            self._blocks += 1
            yield Block(rows, shuffled(plan, self._seed, self._blocks))

    def flush(self) -> Iterator[Block]:
        """See Binning."""
        self._see(len(self._coming))
        self._close(self._rule.flush())
        yield from self.drain()

    def _hold(self, rows: Rows) -> None:
        first = self._seen + len(self._coming)
        self._held.append(rows)
        self._numbers = np.append(self._numbers, np.arange(first, first + len(rows)))
        self._coming = np.append(self._coming, rows.tokens.lengths)

    def _see(self, rows: int) -> None:
        """Let the rule have so many of the rows that come."""
        lengths, self._coming = np.split(self._coming, [rows])
        self._seen += rows
        self._close(self._rule.add(lengths))

    def _close(self, plan: Plan) -> None:
        if plan.num_bins:
            self._closed.append(plan)

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """See Binning."""
        if self._closed:
            raise RuntimeError("closed bins wait for their block")
        Rows.join(self._held).save(folder / f"{name}.arrow")
        return {
            "files": [f"{name}.arrow"],
            "numbers": self._numbers[: len(self._numbers) - len(self._coming)].tolist(),
            "seen": self._seen,
            "blocks": self._blocks,
            "rule": self._rule.state_dict(),
        }

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """See Binning."""
        (name,) = state["files"]
        self._seen, self._blocks = state["seen"], state["blocks"]
        rows, numbers = Rows.load(folder / name), np.array(state["numbers"], np.int64)
        self._held = [rows]
        self._coming = rows.tokens.lengths[len(numbers) :]
        self._numbers = np.append(numbers, np.arange(self._seen, self._seen + len(self._coming)))
        self._rule.load_state_dict(state["rule"])


class AllAtOnce:
    """Bins of `plan`, when all rows are there, shuffled as a whole."""

    holds_all = True

    def __init__(self, strategy: str, capacity: int, seed: int | None, block_tokens: int) -> None:
        self._strategy = cast("Literal['best_fit', 'first_fit']", strategy)
        self._capacity = capacity
        self._seed = seed
        self._block_tokens = block_tokens
        self._parts: list[Rows] = []
        self._saved = 0
        self._files: list[str] = []
        kernels.plan([1], capacity)

    def add(self, rows: Rows) -> Iterator[Block]:
        """See Binning."""
        self._parts.append(rows)
        return iter(())

    def drain(self) -> Iterator[Block]:
        """See Binning."""
        return iter(())

    def flush(self) -> Iterator[Block]:
        """See Binning."""
        rows = Rows.join(self._parts)
        self._parts = []
        plan = kernels.plan(rows.tokens.lengths, self._capacity, strategy=self._strategy)
        plan = shuffled(plan, self._seed)
        for start, stop in stretches(plan.fill, self._block_tokens):
            yield Block(rows, plan[start:stop])

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """See Binning."""
        fresh = self._parts[self._saved :]
        if fresh:
            Rows.join(fresh).save(folder / f"{name}.arrow")
            self._files.append(f"{name}.arrow")
            self._saved = len(self._parts)
        return {"files": list(self._files)}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """See Binning."""
        self._files = list(state["files"])
        self._parts = [Rows.load(folder / name) for name in self._files]
        self._saved = len(self._parts)


class InOrder:
    """The rule of `plan(strategy="in_order")` for a stream: only the last bin waits."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._seen = 0
        self._waiting: list[int] = []  # lengths of the rows of the open bin
        kernels.plan([1], capacity)

    def add(self, lengths: Int64s) -> Plan:
        """See Rule."""
        plan = self._plan(lengths)
        last = int(plan.offsets[-2]) if plan.num_bins else 0
        self._waiting = [*self._waiting, *lengths.tolist()][last:]
        return plan[: max(0, plan.num_bins - 1)]

    def flush(self) -> Plan:
        """See Rule."""
        plan = self._plan(np.empty(0, np.int64))
        self._waiting = []
        return plan

    def _plan(self, lengths: Int64s) -> Plan:
        first = self._seen - len(self._waiting)
        self._seen += len(lengths)
        known = np.append(np.array(self._waiting, np.int64), lengths)
        plan = kernels.plan(known, self._capacity, strategy="in_order")
        return Plan(plan.rows + first, plan.offsets, plan.fill, self._capacity)

    def state_dict(self) -> dict[str, Any]:
        """See Rule."""
        return {"seen": self._seen, "waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Rule."""
        self._seen, self._waiting = state["seen"], list(state["waiting"])


class Unpacked:
    """The rule that makes every row a bin of its own."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._seen = 0
        kernels.plan([1], capacity)

    def add(self, lengths: Int64s) -> Plan:
        """See Rule."""
        rows = np.arange(self._seen, self._seen + len(lengths))
        self._seen += len(lengths)
        return Plan(rows, np.arange(len(lengths) + 1), lengths, self._capacity)

    def flush(self) -> Plan:
        """See Rule."""
        return self.add(np.empty(0, np.int64))

    def state_dict(self) -> dict[str, Any]:
        """See Rule."""
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Rule."""
        self._seen = state["seen"]


def stretches(fill: Int64s, most: int) -> Iterator[tuple[int, int]]:
    """Cut bins into stretches of no more than `most` tokens, of one bin at least."""
    ends = np.cumsum(fill)
    start = 0
    while start < len(fill):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start = stop
