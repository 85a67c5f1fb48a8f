"""The verbs on NumPy arrays: each checks dtypes and layouts and calls the compiled core.

Rules of order and ties are in csrc/kernels.h; turnpack.reference has the same functions in plain
Python. Computes nothing itself, and never falls back to the reference.

Lengths and offsets are int32 or int64 arrays of any stride or sequences of int, widened to int64.
Token arrays are taken as they are: 1-D, C-contiguous, of exactly the dtype named, else TypeError.

The core takes the best of the instruction sets that the machine has, or the one that the
environment variable TURNPACK_ISA names: scalar, avx2 or avx512. Results are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _arguments, _buffers, _checks, _core, _ingest
from ._arguments import Indices
from ._checks import Int64s
from .nouns import Packed, Plan, Role, Tokens, trusted

if os.environ.get("TURNPACK_ISA"):
    try:
        _core.set_isa(os.environ["TURNPACK_ISA"])
    except ValueError as error:
        raise ValueError(f"TURNPACK_ISA: {error}") from None

__all__ = [
    "Planner",
    "concat",
    "flatten",
    "mask_markers",
    "mask_spans",
    "pack",
    "plan",
    "unflatten",
    "unpack",
]


def flatten(
    rows: Iterable[Iterable[int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Ragged arrays from rows of ids: values int32 `[n]`, offsets int64 `[rows + 1]`.

    A row may be a list, a tuple, an integer array or any other iterable of int. `rows` may also be
    a matrix of integers or anything with the interface of Arrow (a ListArray, a column of a table,
    an awkward array): int32 values, and int64 offsets from 0, are then not copied, so that the
    results share memory with `rows` and may be read-only.

    Raises TypeError for an item that is not an int (a bool is none), ValueError for one beyond
    int32.

    >>> flatten([[7, 8], [], (9,)])
    (array([7, 8, 9], dtype=int32), array([0, 2, 2, 3]))
    """
    given, is_arrow = _arguments.flatten(rows)
    if is_arrow:
        return _buffers.from_arrow(given) or _ingest.flatten(given.to_pylist())
    if type(given) is np.ndarray:
        return _buffers.from_matrix(given) or _ingest.flatten(given)
    return _ingest.flatten(given)


def unflatten(values: npt.NDArray[np.int32], offsets: Indices) -> list[list[int]]:
    """Rows of ids as lists, from ragged values int32 `[n]` and offsets `[rows + 1]`.

    >>> unflatten(np.array([7, 8, 9], np.int32), [0, 2, 2, 3])
    [[7, 8], [], [9]]
    """
    values, found = _arguments.unflatten(values, offsets)
    _checks.offsets("offsets", found, len(values))
    return _ingest.unflatten(values, found)


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
    """Rows and their loss mask from turns that are tokenized already.

    `turn_ids` int32 `[n]`, ragged by `turn_offsets` `[turns + 1]`. `roles` `[turns]`: which of the
    `settings` a turn has. `row_offsets` `[rows + 1]`: which turns make a row. A row is `bos`, for
    each turn the prefix of its role, its ids and the suffix, then `eos`. `bos` and prefixes are no
    targets; a turn's ids and its suffix are if its `Role` says so; `eos` is if the last turn is.
    With `out`, an earlier result with room for as many tokens, these are written into its memory,
    which the result then holds. `threads` work on ranges of rows.

    Raises ValueError for offsets that are none, for a role without settings and for an `out` that
    has no room.

    Two exchanges as Firefly trains on them, `<s>`=1 once and `</s>`=2 after each turn:

    >>> turns = np.array([10, 11, 12, 13], np.int32)
    >>> human, assistant = Role(suffix=[2]), Role(suffix=[2], target=True)
    >>> made = concat(
    ...     turns, [0, 1, 2, 3, 4], [0, 1, 0, 1], [0, 4], [human, assistant], bos=[1])
    >>> made.input_ids.tolist()
    [1, 10, 2, 11, 2, 12, 2, 13, 2]
    >>> made.loss_mask.tolist()
    [0, 0, 0, 1, 1, 0, 0, 1, 1]
    """
    ids, turn_ends, role_of, row_ends, affixes, bos, eos, threads = _arguments.concat(
        turn_ids, turn_offsets, roles, row_offsets, settings, bos, eos, out, threads
    )
    input_ids, loss_mask, offsets = _core.concat(
        ids,
        turn_ends,
        role_of,
        row_ends,
        *_ingest.flatten([ids for role in affixes for ids in (role.prefix, role.suffix)]),
        np.array([role.target for role in affixes], np.uint8),
        np.array([role.suffix_target for role in affixes], np.uint8),
        np.array(bos, np.int32),
        np.array(eos, np.int32),
        out,
        threads,
    )
    return trusted(
        Tokens, input_ids, loss_mask, offsets, np.arange(len(offsets) - 1, dtype=np.int64), None
    )


def mask_spans(
    extents: Indices,
    offsets: Indices,
    spans: Indices,
    span_offsets: Indices,
    *,
    out: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """Loss mask uint8 `[n]` of the tokens that share a character with a target span.

    `extents` `[n, 2]`: half-open characters of each token, ragged by `offsets` `[rows + 1]`;
    `spans` `[m, 2]`: half-open target spans, ragged by `span_offsets` `[rows + 1]`. Neither has to
    be in order, and spans may overlap. What is zero wide never shares a character. With `out`,
    uint8 with room for as many tokens, the mask is written there. `threads` work on ranges of rows.

    Raises ValueError for offsets that are none, for an extent or span that is negative or ends
    before it begins (part of `out` is written then) and for an `out` that has no room.

    >>> mask_spans([[0, 2], [2, 2], [2, 5], [5, 7]], [0, 4], [[4, 6]], [0, 1])
    array([0, 0, 1, 1], dtype=uint8)
    """
    return _core.mask_spans(
        *_arguments.mask_spans(extents, offsets, spans, span_offsets, out, threads)
    )


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
    """Loss mask uint8 `[n]` of what stands between markers, for rows that are tokenized already.

    `input_ids` int32 `[n]`, ragged by `offsets` `[rows + 1]`; `starts`, `ends`: patterns of ids.
    Targets begin after a start pattern and run through the next end pattern (up to it without
    `include_end`; then it may be part of a start pattern), or to the end of the row. Where several
    patterns match, the longest does. With `out`, uint8 with room for as many tokens, the mask is
    written there. `threads` work on ranges of rows.

    Raises ValueError for offsets that are none, an empty pattern, no start pattern, and an `out`
    that has no room.

    >>> ids = np.array([1, 5, 6, 20, 21, 2, 5, 30], np.int32)
    >>> mask_markers(ids, [0, 8], starts=[[5, 6]], ends=[[2]])
    array([0, 0, 0, 1, 1, 1, 0, 0], dtype=uint8)
    """
    input_ids, found, opening, closing, include_end, out, threads = _arguments.mask_markers(
        input_ids, offsets, starts, ends, include_end, out, threads
    )
    patterns = *_ingest.flatten(opening), *_ingest.flatten(closing)
    return _core.mask_markers(input_ids, found, *patterns, include_end, out, threads)


def plan(
    lengths: Indices,
    capacity: int,
    *,
    strategy: Literal["best_fit", "first_fit", "in_order"] = "best_fit",
    align: int = 1,
    max_rows: int | None = None,
    threads: int = 1,
) -> Plan:
    """Which rows share a bin of `capacity` tokens; `lengths` `[rows]` in tokens.

    - `best_fit`: longest row first, into the fullest bin with room; equal lengths by row id, equal
      room by which bin has had that room longest.
    - `first_fit`: longest row first, into the lowest-numbered bin with room.
    - `in_order`: rows as they come, a new bin whenever the last has no room.

    With `align`, a row takes up its length rounded up to a multiple of it, so that whoever pads
    each document to one stays within capacity; `fill` and `utilization` count tokens all the same
    (and `pack` puts rows back to back). `max_rows`: rows a bin may have. The plan is the same for
    any number of `threads`.

    Raises ValueError for a row that is empty, negative or longer than capacity (the first such
    row), and for a capacity, align, max_rows or threads below 1.

    >>> made = plan([5, 3, 7, 2], 10)
    >>> [made.rows[a:b].tolist() for a, b in zip(made.offsets, made.offsets[1:])]
    [[2, 1], [0, 3]]
    >>> made.fill.tolist(), made.utilization
    ([10, 7], 0.85)
    """
    return _plan(lengths, capacity, strategy, align, max_rows, threads, wide=False)


def _plan(
    lengths: Indices,
    capacity: int,
    strategy: str,
    align: int,
    max_rows: int | None,
    threads: int,
    wide: bool,
) -> Plan:
    """As `plan`; with `wide`, by the form for 2**31 rows and more (for tests)."""
    checked = _arguments.plan(lengths, capacity, strategy, align, max_rows, threads)
    rows, offsets, fill = _core.plan(*checked, wide)
    return trusted(Plan, rows, offsets, fill, checked[1])


class Planner:
    """Bins for rows that come as a stream: nearly the plan of all of them, in bounded memory.

    Rows wait until `window` of them do; then they are planned by best fit, and the bins that are
    full are closed, and so are those of rows that have waited for long. So a row waits for at most
    4 * `window` later ones. Rows are numbered from 0 over the stream, and how it is cut into calls
    changes no bin. `capacity`, `align` and `max_rows` are those of `plan`; the whole rule is in
    csrc/kernels.h. At a window of 4,096 and usual chat lengths the bins are as full as `plan`'s,
    within 0.01 percentage points. A planner can be pickled.

    Raises ValueError for a capacity, window, align or max_rows below 1.

    >>> planner = Planner(10, window=4)
    >>> planner.add([5, 3, 7])
    Plan(rows=0, bins=0, capacity=10, utilization=0.000)
    >>> made = planner.add([2, 6])                  # 7 and 3 fill a bin; 5, 2 and 6 wait
    >>> made.rows.tolist(), made.offsets.tolist(), made.fill.tolist()
    ([2, 1], [0, 2], [10])
    >>> planner.flush().rows.tolist()
    [4, 3, 0]
    """

    def __init__(
        self, capacity: int, window: int = 4096, *, align: int = 1, max_rows: int | None = None
    ) -> None:
        self._begin(capacity, window, align, max_rows)

    def _begin(self, capacity: int, window: int, align: int, max_rows: int | None) -> None:
        capacity, window, align, most = _arguments.planner(capacity, window, align, max_rows)
        self._core = _core.Planner(capacity, window, align, most)
        self._settings = {
            "capacity": capacity,
            "window": window,
            "align": align,
            "max_rows": None if max_rows is None else most,
        }

    def add(self, lengths: Indices) -> Plan:
        """Take further rows, of `lengths` `[rows]` in tokens; the bins that this closes.

        Raises ValueError for a row that `plan` would refuse, by its number in the stream; then none
        of these rows is taken.
        """
        return self._plan(self._core.add(_checks.indices("lengths", lengths)))

    def flush(self) -> Plan:
        """The bins of all rows that wait. The stream may go on, with the numbers that follow."""
        return self._plan(self._core.flush())

    def state_dict(self) -> dict[str, Any]:
        """Everything a planner of the same settings needs to go on from here, for JSON.

        The settings, how many `rows` the stream has had, and the numbers (`waiting`) and `lengths`
        of those that wait.
        """
        rows, waiting, lengths = self._core.state()
        return {
            **self._settings,
            "rows": rows,
            "waiting": waiting.tolist(),
            "lengths": lengths.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a planner of the same settings.

        Raises ValueError for a state of other settings or one that no planner gives; then nothing
        changes.
        """
        self._core.load(*_arguments.planner_state(state, self._settings))

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._begin(state["capacity"], state["window"], state["align"], state["max_rows"])
        self.load_state_dict(state)

    def _plan(self, bins: tuple[Int64s, Int64s, Int64s]) -> Plan:
        return trusted(Plan, *bins, self._settings["capacity"])


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
    """Bins of cells from tokens and a plan of all or some of their rows.

    `layout` "rows" makes cells `[bins, capacity]`, "flat" makes `[total]` without padding. `dtype`
    of the cells: int32 or int64. With `out`, an earlier result of the same layout, shape and dtype,
    its cells are overwritten and held by the result. `threads` work on ranges of bins.

    The first label of every row is -100 (nothing predicts it), and its loss weight is 0. Labels
    come from `loss_mask`, never from ids, so `pad_id` may be the id of EOS.

    Raises ValueError for a row of the plan that is missing, empty or there twice, for a bin whose
    tokens are more than capacity or other than the plan's fill, and for an `out` of another shape;
    MemoryError where the cells do not fit into memory.

    >>> ids, mask = np.array([7, 8, 9, 4], np.int32), np.array([0, 1, 1, 1], np.uint8)
    >>> tokens = Tokens(ids, mask, [0, 3, 4])
    >>> packed = pack(tokens, Plan([0, 1], [0, 2], [4], 6))
    >>> packed.input_ids.tolist(), packed.labels.tolist()
    ([[7, 8, 9, 4, 0, 0]], [[-100, 8, 9, -100, -100, -100]])
    >>> packed.position_ids.tolist(), packed.segment_ids.tolist()
    ([[0, 1, 2, 0, 0, 1]], [[1, 1, 1, 2, 0, 0]])
    >>> packed.cu_seqlens.tolist(), packed.max_seqlen
    ([0, 3, 4, 6], 3)
    """
    return _pack(tokens, plan, pad_id, layout, dtype, out, threads, lanes=0)


def _pack(
    tokens: Tokens,
    plan: Plan,
    pad_id: int,
    layout: str,
    dtype: npt.DTypeLike,
    out: Packed | None,
    threads: int,
    lanes: int,
) -> Packed:
    """As `pack`; with `lanes`, by the arithmetic of index.h, each lane in turn (for tests)."""
    pad_id, flat, cells, threads = _arguments.pack(
        tokens, plan, pad_id, layout, dtype, out, threads
    )
    input_ids, labels, position_ids, segment_ids, cu_seqlens, max_seqlen, weights = _core.pack(
        tokens.input_ids,
        tokens.loss_mask,
        tokens.offsets,
        tokens.loss_weights,
        plan.rows,
        plan.offsets,
        plan.fill,
        plan.capacity,
        pad_id,
        flat,
        cells.itemsize == 8,
        out,
        threads,
        lanes,
    )
    return trusted(
        Packed,
        input_ids,
        labels,
        position_ids,
        segment_ids,
        plan.rows,
        tokens.source[plan.rows],
        plan.offsets,
        cu_seqlens,
        max_seqlen,
        weights,
        plan.capacity,
    )


def unpack(packed: Packed, *, threads: int = 1) -> Tokens:
    """Give the rows of the bins by rising row id: what `pack` was given, if the plan had all of it.

    Only the loss mask and weight of each row's first token are lost, they become 0. A token is a
    target where its label is not -100 (so the id -100 never is one). `threads` work on ranges of
    rows.

    Raises ValueError for a row that is there twice, for `cu_seqlens` that do not agree with
    `bin_offsets`, and for ids beyond int32.

    >>> ids, mask = np.array([7, 8, 9, 4], np.int32), np.array([0, 1, 1, 0], np.uint8)
    >>> tokens = Tokens(ids, mask, [0, 3, 4])
    >>> unpack(pack(tokens, Plan([1, 0], [0, 2], [4], 6))) == tokens
    True
    """
    threads = _arguments.unpack(packed, threads)
    input_ids, loss_mask, offsets, order, weights = _core.unpack(
        packed.input_ids,
        packed.labels,
        packed.rows,
        packed.bin_offsets,
        packed.cu_seqlens,
        packed.loss_weights,
        0 if packed.layout == "flat" else packed.capacity,
        threads,
    )
    return trusted(Tokens, input_ids, loss_mask, offsets, packed.source[order], weights)
