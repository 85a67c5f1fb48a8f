"""The verbs in plain Python: the specification that the compiled core is compared with.

Same functions, arguments, results and errors as kernels.py, in loops over Python ints and lists
that are written to be read. Slow on purpose; never called by the rest of the package.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _arguments, _checks
from ._arguments import Indices
from .nouns import Packed, Plan, Role, Tokens

INT64_MAX = 2**63 - 1


def flatten(
    rows: Iterable[Iterable[int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """As kernels.flatten."""
    given, is_arrow = _arguments.flatten(rows)
    values: list[int] = []
    offsets = [0]
    for number, row in enumerate(given.to_pylist() if is_arrow else given):
        try:
            items = list(row)
        except TypeError:
            raise TypeError(
                f"row {number} is {type(row).__name__}, not a sequence of int"
            ) from None
        for i, item in enumerate(items):
            if not _checks.is_int(item):
                raise TypeError(f"row {number}, item {i} is {type(item).__name__}, not an int")
            if not -(2**31) <= item < 2**31:
                raise ValueError(f"row {number}, item {i} is {item}, beyond int32")
            values.append(int(item))
        offsets.append(len(values))
    return np.array(values, np.int32), np.array(offsets, np.int64)


def unflatten(values: npt.NDArray[np.int32], offsets: Indices) -> list[list[int]]:
    """As kernels.unflatten."""
    values, found = _arguments.unflatten(values, offsets)
    items = values.tolist()
    return [items[begin:end] for begin, end in _ranges("offsets", found, len(items))]


def concat(
    turn_ids: npt.NDArray[np.int32],
    turn_offsets: Indices,
    roles: Indices,
    row_offsets: Indices,
    settings: Sequence[Role],
    *,
    bos: Sequence[int] = (),
    eos: Sequence[int] = (),
    out: Tokens | None = None,
    threads: int = 1,
) -> Tokens:
    """As kernels.concat."""
    ids, turn_ends, role_of, row_ends, affixes, bos, eos, threads = _arguments.concat(
        turn_ids, turn_offsets, roles, row_offsets, settings, bos, eos, out, threads
    )
    _check_threads(threads)
    turns = [ids[begin:end].tolist() for begin, end in _ranges("turn_offsets", turn_ends, len(ids))]
    if len(role_of) != len(turns):
        raise ValueError(f"roles has {len(role_of)} entries, but there are {len(turns)} turns")
    input_ids: list[int] = []
    loss_mask: list[int] = []
    offsets = [0]

    def write(piece: Sequence[int], target: bool) -> None:
        input_ids.extend(piece)
        loss_mask.extend([int(target)] * len(piece))

    for begin, end in _ranges("row_offsets", row_ends, len(turns)):
        last_is_target = False
        write(bos, False)
        for turn in range(begin, end):
            role = int(role_of[turn])
            if not 0 <= role < len(affixes):
                raise ValueError(
                    f"turn {turn} has role {role}, but there are {len(affixes)} settings"
                )
            write(affixes[role].prefix, False)
            write(turns[turn], affixes[role].target)
            write(affixes[role].suffix, affixes[role].suffix_target)
            last_is_target = affixes[role].target
        write(eos, last_is_target)
        offsets.append(len(input_ids))
    if out is None:
        made_ids, made_mask = np.array(input_ids, np.int32), np.array(loss_mask, np.uint8)
    else:
        for name, room in (("input_ids", out.input_ids), ("loss_mask", out.loss_mask)):
            if len(room) < len(input_ids):
                raise ValueError(
                    f"out.{name} has room for {len(room)} tokens, not {len(input_ids)}"
                )
        made_ids, made_mask = out.input_ids[: len(input_ids)], out.loss_mask[: len(input_ids)]
        made_ids[:] = input_ids
        made_mask[:] = loss_mask
    return Tokens(made_ids, made_mask, np.array(offsets))


def mask_spans(
    extents: Indices,
    offsets: Indices,
    spans: Indices,
    span_offsets: Indices,
    *,
    out: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """As kernels.mask_spans."""
    extents, offsets, spans, span_offsets, out, threads = _arguments.mask_spans(
        extents, offsets, spans, span_offsets, out, threads
    )
    _check_threads(threads)
    token_ranges = _ranges("offsets", offsets, len(extents))
    span_ranges = _ranges("span_offsets", span_offsets, len(spans))
    if len(token_ranges) != len(span_ranges):
        raise ValueError(
            f"offsets has {len(token_ranges)} rows, but span_offsets has {len(span_ranges)}"
        )
    loss_mask = []
    for row in range(len(token_ranges)):
        row_extents = extents[slice(*token_ranges[row])].tolist()
        row_spans = spans[slice(*span_ranges[row])].tolist()
        for i, (begin, end) in enumerate(row_extents):
            if not 0 <= begin <= end:
                raise ValueError(f"row {row}, token {i} has extent [{begin}, {end})")
        for i, (begin, end) in enumerate(row_spans):
            if not 0 <= begin <= end:
                raise ValueError(f"row {row}, span {i} is [{begin}, {end})")
        for begin, end in row_extents:
            shared = (min(end, b) - max(begin, a) for a, b in row_spans)
            loss_mask.append(int(any(characters > 0 for characters in shared)))
    return _written(loss_mask, out)


def mask_markers(
    input_ids: npt.NDArray[np.int32],
    offsets: Indices,
    starts: Sequence[Sequence[int]],
    ends: Sequence[Sequence[int]],
    *,
    include_end: bool = True,
    out: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """As kernels.mask_markers."""
    input_ids, offsets, opening, closing, include_end, out, threads = _arguments.mask_markers(
        input_ids, offsets, starts, ends, include_end, out, threads
    )
    _check_threads(threads)
    if not opening:
        raise ValueError("starts is empty")
    for name, patterns in (("starts", opening), ("ends", closing)):
        for i, pattern in enumerate(patterns):
            if not pattern:
                raise ValueError(f"{name}[{i}] is empty")
    loss_mask: list[int] = []
    for begin, end in _ranges("offsets", offsets, len(input_ids)):
        ids = input_ids[begin:end].tolist()
        mask = [0] * len(ids)
        at = 0
        inside = False
        while at < len(ids):
            if not inside:
                found = _longest_match(opening, ids, at)
                at += found or 1
                inside = found > 0
                continue
            found = _longest_match(closing, ids, at)
            inside = not found
            if inside or include_end:
                for i in range(at, at + (found or 1)):
                    mask[i] = 1
                at += found or 1
        loss_mask.extend(mask)
    return _written(loss_mask, out)


def _written(loss_mask: list[int], out: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    if out is None:
        return np.array(loss_mask, np.uint8)
    out[:] = loss_mask
    return out


def _longest_match(patterns: list[list[int]], ids: list[int], at: int) -> int:
    found = 0
    for pattern in patterns:
        if ids[at : at + len(pattern)] == pattern:
            found = max(found, len(pattern))
    return found


def plan(
    lengths: Indices,
    capacity: int,
    *,
    strategy: Literal["best_fit", "first_fit", "in_order"] = "best_fit",
    align: int = 1,
    max_rows: int | None = None,
    threads: int = 1,
) -> Plan:
    """As kernels.plan, on one thread."""
    widened, capacity, rule, align, most, threads = _arguments.plan(
        lengths, capacity, strategy, align, max_rows, threads
    )
    _at_least_one(capacity=capacity, align=align, max_rows=most, threads=threads)
    sizes = widened.tolist()
    cells = [_cells(row, size, capacity, align) for row, size in enumerate(sizes)]
    longest_first = sorted(range(len(sizes)), key=lambda row: (-sizes[row], row))
    if rule == "best_fit":
        bins = _best_fit(longest_first, cells, capacity, most)
    elif rule == "first_fit":
        bins = _first_fit(longest_first, cells, capacity, most)
    else:
        bins = _next_fit(range(len(sizes)), cells, capacity, most)
    return _plan_of(bins, [sum(sizes[row] for row in rows) for rows in bins], capacity)


def _cells(row: int, size: int, capacity: int, align: int) -> int:
    """How much of a bin the row takes up: its size, rounded up."""
    if size < 0:
        raise ValueError(f"row {row} has {size} tokens")
    if size == 0:
        raise ValueError(f"row {row} is empty")
    cells = -(-size // align) * align
    if cells > capacity:
        aligned = "" if align == 1 else f", {cells} aligned to {align}"
        raise ValueError(f"row {row} has {size} tokens{aligned}, more than capacity {capacity}")
    return cells


def _plan_of(bins: list[list[int]], fill: list[int], capacity: int) -> Plan:
    offsets = [0]
    for rows in bins:
        offsets.append(offsets[-1] + len(rows))
    return Plan(
        np.array([row for rows in bins for row in rows], np.int64),
        np.array(offsets, np.int64),
        np.array(fill, np.int64),
        capacity,
    )


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, less than 1")


def _best_fit(
    order: Iterable[int], cells: Mapping[int, int] | list[int], capacity: int, most: int
) -> list[list[int]]:
    bins: list[list[int]] = []
    spaces: list[int] = []  # of which there are bins, rising
    waiting: dict[int, deque[int]] = {}  # the bins of each, longest there first
    for row in order:
        at = bisect_left(spaces, cells[row])
        if at < len(spaces):
            space = spaces[at]
            number = waiting[space].popleft()
            if not waiting[space]:
                del spaces[at], waiting[space]
        else:
            space = capacity
            number = len(bins)
            bins.append([])
        bins[number].append(row)
        space -= cells[row]
        if space > 0 and len(bins[number]) < most:
            if space not in waiting:
                insort(spaces, space)
                waiting[space] = deque()
            waiting[space].append(number)
    return bins


def _first_fit(order: Iterable[int], cells: list[int], capacity: int, most: int) -> list[list[int]]:
    bins: list[list[int]] = []
    spaces: list[int] = []
    for row in order:
        for number, space in enumerate(spaces):
            if space >= cells[row] and len(bins[number]) < most:
                break
        else:
            number = len(bins)
            bins.append([])
            spaces.append(capacity)
        bins[number].append(row)
        spaces[number] -= cells[row]
    return bins


def _next_fit(order: Iterable[int], cells: list[int], capacity: int, most: int) -> list[list[int]]:
    bins: list[list[int]] = []
    space = 0
    for row in order:
        if cells[row] > space or len(bins[-1]) == most:
            bins.append([])
            space = capacity
        bins[-1].append(row)
        space -= cells[row]
    return bins


class Planner:
    """As kernels.Planner."""

    def __init__(
        self, capacity: int, window: int = 4096, *, align: int = 1, max_rows: int | None = None
    ) -> None:
        capacity, window, align, most = _arguments.planner(capacity, window, align, max_rows)
        _at_least_one(capacity=capacity, window=window, align=align, max_rows=most)
        self._settings = {
            "capacity": capacity,
            "window": window,
            "align": align,
            "max_rows": None if max_rows is None else most,
        }
        self._capacity, self._window, self._align, self._most = capacity, window, align, most
        self._rows = 0  # of the stream so far
        self._waiting: dict[int, int] = {}  # lengths by the numbers of rows, which rise

    def add(self, lengths: Indices) -> Plan:
        """As kernels.Planner.add."""
        sizes = _checks.indices("lengths", lengths).tolist()
        if self._rows + len(sizes) > INT64_MAX:
            raise ValueError(f"{self._rows} + {len(sizes)} is beyond int64")
        for row, size in enumerate(sizes, start=self._rows):
            _cells(row, size, self._capacity, self._align)
        closed: list[dict[int, int]] = []
        for size in sizes:
            self._waiting[self._rows] = size
            self._rows += 1
            if len(self._waiting) == self._window:
                closed += self._close_some()
        return self._plan(closed)

    def flush(self) -> Plan:
        """As kernels.Planner.flush."""
        return self._plan(self._close(self._bins()))

    def state_dict(self) -> dict[str, Any]:
        """As kernels.Planner.state_dict."""
        return {
            **self._settings,
            "rows": self._rows,
            "waiting": list(self._waiting),
            "lengths": list(self._waiting.values()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As kernels.Planner.load_state_dict."""
        rows, waiting, lengths = _arguments.planner_state(state, self._settings)
        if rows < 0:
            raise ValueError(f"rows is {rows}, less than 0")
        before = None
        for row, size in zip(waiting.tolist(), lengths.tolist(), strict=True):
            if row < 0:
                raise ValueError(f"row id {row} is negative")
            if before is not None and row <= before:
                raise ValueError(f"row {row} comes after row {before}")
            if row >= rows:
                raise ValueError(f"row {row} waits, but there were {rows} rows")
            _cells(row, size, self._capacity, self._align)
            before = row
        if len(waiting) >= self._window:
            raise ValueError(f"{len(waiting)} rows wait, but the window is {self._window}")
        self._rows = rows
        self._waiting = dict(zip(waiting.tolist(), lengths.tolist(), strict=True))

    def _due(self, row: int) -> bool:
        return self._rows - 1 - row > 3 * self._window

    def _bins(self) -> list[list[int]]:
        """All rows that wait, planned."""
        order = sorted(
            self._waiting, key=lambda row: (not self._due(row), -self._waiting[row], row)
        )
        cells = {
            row: _cells(row, size, self._capacity, self._align)
            for row, size in self._waiting.items()
        }
        return _best_fit(order, cells, self._capacity, self._most)

    def _close_some(self) -> list[dict[int, int]]:
        bins = self._bins()
        space = [self._space(rows) for rows in bins]
        closes = {
            number
            for number, rows in enumerate(bins)
            if space[number] < self._align
            or len(rows) == self._most
            or any(self._due(row) for row in rows)
        }
        for number in sorted(range(len(bins)), key=lambda number: (space[number], number)):
            if 2 * sum(len(bins[closing]) for closing in closes) < self._window:
                closes.add(number)
        return self._close([bins[number] for number in sorted(closes)])

    def _space(self, rows: list[int]) -> int:
        sizes = [self._waiting[row] for row in rows]
        return self._capacity - sum(-(-size // self._align) * self._align for size in sizes)

    def _close(self, bins: list[list[int]]) -> list[dict[int, int]]:
        """Lengths by row of each of these bins; their rows wait no more."""
        return [{row: self._waiting.pop(row) for row in rows} for rows in bins]

    def _plan(self, closed: list[dict[int, int]]) -> Plan:
        fill = [sum(rows.values()) for rows in closed]
        return _plan_of([list(rows) for rows in closed], fill, self._capacity)


def pack(
    tokens: Tokens,
    plan: Plan,
    *,
    pad_id: int = 0,
    layout: Literal["rows", "flat"] = "rows",
    dtype: npt.DTypeLike = np.int32,
    out: Packed | None = None,
    threads: int = 1,
) -> Packed:
    """As kernels.pack, on one thread."""
    pad_id, flat, cell_type, threads = _arguments.pack(
        tokens, plan, pad_id, layout, dtype, out, threads
    )
    _check_threads(threads)
    row_ranges = _ranges("offsets", tokens.offsets, len(tokens.input_ids))
    bin_ranges = _ranges("plan.offsets", plan.offsets, len(plan.rows))
    bins = [plan.rows[begin:end].tolist() for begin, end in bin_ranges]
    sizes = [end - begin for begin, end in row_ranges]
    _check_bins(bins, sizes, plan, flat, cell_type.itemsize == 8)

    input_ids: list[int] = []
    labels: list[int] = []
    position_ids: list[int] = []
    segment_ids: list[int] = []
    loss_weights: list[float] = []
    segments: list[int] = []

    def write(ids: list[int], targets: list[int], weights: list[float], segment: int) -> None:
        for i in range(len(ids)):
            trained = i > 0 and targets[i]
            input_ids.append(ids[i])
            labels.append(ids[i] if trained else -100)
            position_ids.append(i)
            segment_ids.append(segment)
            loss_weights.append(weights[i] if i > 0 else 0.0)
        segments.append(len(ids))

    for rows in bins:
        for segment, row in enumerate(rows, start=1):
            where = slice(*row_ranges[row])
            targets = tokens.loss_mask[where].tolist()
            weights = (
                targets if tokens.loss_weights is None else tokens.loss_weights[where].tolist()
            )
            write(tokens.input_ids[where].tolist(), targets, weights, segment)
        padding = 0 if flat else plan.capacity - sum(sizes[row] for row in rows)
        if padding:
            write([pad_id] * padding, [0] * padding, [0.0] * padding, 0)

    cu_seqlens = [0]
    for size in segments:
        cu_seqlens.append(cu_seqlens[-1] + size)
    shape = (len(input_ids),) if flat else (len(bins), plan.capacity)

    def cells(name: str, values: list[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        made = np.array(values, dtype).reshape(shape)
        if out is None:
            return made
        held: npt.NDArray[Any] = getattr(out, name)
        if held.shape != shape:
            raise ValueError(f"out.{name} has shape {held.shape}, not {shape}")
        held[...] = made
        return held

    return Packed(
        cells("input_ids", input_ids, cell_type),
        cells("labels", labels, cell_type),
        cells("position_ids", position_ids, cell_type),
        cells("segment_ids", segment_ids, cell_type),
        plan.rows,
        tokens.source[plan.rows],
        plan.offsets,
        np.array(cu_seqlens, np.int64),
        max(segments, default=0),
        None if tokens.loss_weights is None else cells("loss_weights", loss_weights, np.float32),
        plan.capacity,
    )


def _check_bins(
    bins: list[list[int]], sizes: list[int], plan: Plan, flat: bool, wide: bool
) -> None:
    placed = set()
    total = 0
    for number, rows in enumerate(bins):
        for row in rows:
            if not 0 <= row < len(sizes):
                raise ValueError(f"the plan has row {row}, but there are {len(sizes)} rows")
            if row in placed:
                raise ValueError(f"row {row} is in the plan twice")
            placed.add(row)
            if sizes[row] == 0:
                raise ValueError(f"row {row} is empty")
        used = sum(sizes[row] for row in rows)
        fill = int(plan.fill[number])
        if used > plan.capacity:
            raise ValueError(f"bin {number} has {used} tokens, more than capacity {plan.capacity}")
        if used != fill:
            raise ValueError(
                f"bin {number} has {used} tokens, but {fill} in the plan: "
                "it was made for other lengths"
            )
        cells = used if flat else plan.capacity
        if not wide and cells > 2**31:
            raise ValueError(f"bin {number} has {cells} cells, too many for int32")
        total += cells
        if total > INT64_MAX // 8:
            raise ValueError(
                f"bins 0 to {number} have more cells than int64 can count the bytes of"
            )


def unpack(packed: Packed, *, threads: int = 1) -> Tokens:
    """As kernels.unpack, on one thread."""
    threads = _arguments.unpack(packed, threads)
    _check_threads(threads)
    ids, labels = packed.input_ids.ravel().tolist(), packed.labels.ravel().tolist()
    weights = None if packed.loss_weights is None else packed.loss_weights.ravel().tolist()
    rows = packed.rows.tolist()
    bin_ranges = _ranges("bin_offsets", packed.bin_offsets, len(rows))
    segments = deque(_ranges("cu_seqlens", packed.cu_seqlens, len(ids)))
    places: list[tuple[int, int, int, int]] = []  # row id, place, first cell, the cell after
    for number, (begin, end) in enumerate(bin_ranges):
        if end - begin > len(segments):
            raise ValueError(
                f"bin {number} has {end - begin} rows, "
                f"but cu_seqlens has {len(segments)} segments left"
            )
        cells = 0
        for place in range(begin, end):
            first, after = segments.popleft()
            places.append((rows[place], place, first, after))
            cells += after - first
        if packed.layout == "rows":
            if cells < packed.capacity and segments:
                first, after = segments.popleft()
                cells += after - first
            if cells != packed.capacity:
                raise ValueError(
                    f"bin {number} has {cells} cells by cu_seqlens, not {packed.capacity}"
                )
    if segments:
        total = len(packed.cu_seqlens) - 1
        raise ValueError(
            f"cu_seqlens has {total} segments, but the bins have {total - len(segments)}"
        )
    places.sort()
    for (row, *_), (next_row, *_) in pairwise(places):
        if row == next_row:
            raise ValueError(f"row {row} is in the bins twice")

    input_ids: list[int] = []
    loss_mask: list[int] = []
    loss_weights: list[float] = []
    offsets = [0]
    for _, _, first, after in places:
        for cell in range(first, after):
            if not -(2**31) <= ids[cell] < 2**31:
                raise ValueError(f"cell {cell} holds {ids[cell]}, beyond int32")
            input_ids.append(ids[cell])
            loss_mask.append(int(labels[cell] != -100))
            if weights is not None:
                loss_weights.append(weights[cell])
        offsets.append(len(input_ids))
    return Tokens(
        np.array(input_ids, np.int32),
        np.array(loss_mask, np.uint8),
        np.array(offsets, np.int64),
        np.array([packed.source[place] for _, place, _, _ in places], np.int64),
        None if weights is None else np.array(loss_weights, np.float32),
    )


def _ranges(name: str, offsets: npt.NDArray[np.int64], end: int) -> list[tuple[int, int]]:
    """The (begin, end) of each row, from offsets that are some."""
    bounds = offsets.tolist()
    if not bounds:
        raise ValueError(f"{name} is empty, it needs at least the 0")
    if bounds[0] != 0:
        raise ValueError(f"{name} starts at {bounds[0]}, not 0")
    for i in range(1, len(bounds)):
        if bounds[i] < bounds[i - 1]:
            raise ValueError(f"{name} falls from {bounds[i - 1]} to {bounds[i]} at {i}")
    if bounds[-1] != end:
        raise ValueError(f"{name} ends at {bounds[-1]}, not {end}")
    return list(pairwise(bounds))


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"threads is {threads}, less than 1")
