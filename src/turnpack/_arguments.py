"""The arguments of each verb, checked for type, dtype and layout and widened: one function a verb.

Shared by kernels.py and reference.py, so that both refuse the same things in the same order and
words. Looks at no value beyond the integer type it has to fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _buffers, _checks
from ._checks import Int64s
from .nouns import CELLS, Packed, Plan, Role, Tokens

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]
Indices: TypeAlias = "npt.NDArray[np.integer[Any]] | Sequence[Any]"

STRATEGIES = ("best_fit", "first_fit", "in_order")
LAYOUTS = ("rows", "flat")


class Affixes(NamedTuple):
    """A `Role` with its ids checked and `suffix_target` decided."""

    prefix: list[int]
    suffix: list[int]
    target: bool
    suffix_target: bool


def flatten(rows: Any) -> tuple[Any, bool]:
    """The rows, if they can be iterated over, and whether they are an Arrow array now."""
    if _buffers.is_arrow(rows):
        return _buffers.arrow(rows), True
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise TypeError(f"rows is {type(rows).__name__}, not an iterable of rows")
    return rows, False


def unflatten(values: object, offsets: object) -> tuple[Ids, Int64s]:
    """values, offsets."""
    return _checks.array("values", values, np.int32), _checks.indices("offsets", offsets)


def concat(
    turn_ids: object,
    turn_offsets: object,
    roles: object,
    row_offsets: object,
    settings: object,
    bos: object,
    eos: object,
    out: object,
    threads: object,
) -> tuple[Ids, Int64s, Int64s, Int64s, list[Affixes], list[int], list[int], int]:
    """All of them but out in this order."""
    checked = (
        _checks.array("turn_ids", turn_ids, np.int32),
        _checks.indices("turn_offsets", turn_offsets),
        _checks.indices("roles", roles, small=True),
        _checks.indices("row_offsets", row_offsets),
        _affixes(settings),
        _checks.ids("bos", bos),
        _checks.ids("eos", eos),
        _checks.number("threads", threads),
    )
    if out is not None:
        _checks.instance("out", out, Tokens)
        _writable(out, {"input_ids": np.int32, "loss_mask": np.uint8}, 1, [*checked[:4]])
    return checked


def _affixes(settings: object) -> list[Affixes]:
    if not isinstance(settings, Sequence) or isinstance(settings, Role):
        raise TypeError(f"settings is {type(settings).__name__}, not a sequence of Role")
    checked = []
    for i, role in enumerate(settings):
        _checks.instance(f"settings[{i}]", role, Role)
        target = _checks.boolean(f"settings[{i}].target", role.target)
        suffix_target = target
        if role.suffix_target is not None:
            suffix_target = _checks.boolean(f"settings[{i}].suffix_target", role.suffix_target)
        prefix = _checks.ids(f"settings[{i}].prefix", role.prefix)
        suffix = _checks.ids(f"settings[{i}].suffix", role.suffix)
        checked.append(Affixes(prefix, suffix, target, suffix_target))
    return checked


def mask_spans(
    extents: object,
    offsets: object,
    spans: object,
    span_offsets: object,
    out: object,
    threads: object,
) -> tuple[Int64s, Int64s, Int64s, Int64s, Mask | None, int]:
    """All of them in this order; of out what will be written."""
    arrays = (
        _checks.indices("extents", extents, pairs=True),
        _checks.indices("offsets", offsets),
        _checks.indices("spans", spans, pairs=True),
        _checks.indices("span_offsets", span_offsets),
    )
    threads = _checks.number("threads", threads)
    return (*arrays, _mask(out, len(arrays[0]), [*arrays]), threads)


def mask_markers(
    input_ids: object,
    offsets: object,
    starts: object,
    ends: object,
    include_end: object,
    out: object,
    threads: object,
) -> tuple[Ids, Int64s, list[list[int]], list[list[int]], bool, Mask | None, int]:
    """All of them in this order; of out what will be written."""
    ids = _checks.array("input_ids", input_ids, np.int32)
    ends_of_rows = _checks.indices("offsets", offsets)
    patterns = _checks.id_lists("starts", starts), _checks.id_lists("ends", ends)
    include_end = _checks.boolean("include_end", include_end)
    threads = _checks.number("threads", threads)
    held = [ids, ends_of_rows]
    return ids, ends_of_rows, *patterns, include_end, _mask(out, len(ids), held), threads


def _mask(out: object, tokens: int, held: list[Any]) -> Mask | None:
    if out is None:
        return None
    mask = _writable_array("out", out, np.uint8, 1, held)
    if len(mask) < tokens:
        raise ValueError(f"out has room for {len(mask)} tokens, not {tokens}")
    return mask[:tokens]


def plan(
    lengths: object,
    capacity: object,
    strategy: object,
    align: object,
    max_rows: object,
    threads: object,
) -> tuple[Int64s, int, str, int, int, int]:
    """All of them in this order; without max_rows as many as there can be."""
    return (
        _checks.indices("lengths", lengths),
        _checks.number("capacity", capacity),
        _checks.choice("strategy", strategy, STRATEGIES),
        _checks.number("align", align),
        _most(max_rows),
        _checks.number("threads", threads),
    )


def _most(max_rows: object) -> int:
    return int(np.iinfo(np.int64).max) if max_rows is None else _checks.number("max_rows", max_rows)


def planner(
    capacity: object, window: object, align: object, max_rows: object
) -> tuple[int, int, int, int]:
    """All of them in this order; without max_rows as many as there can be."""
    return (
        _checks.number("capacity", capacity),
        _checks.number("window", window),
        _checks.number("align", align),
        _most(max_rows),
    )


def planner_state(state: object, settings: Mapping[str, object]) -> tuple[int, Int64s, Int64s]:
    """rows, waiting and lengths of a state that a planner of these settings gave."""
    _checks.instance("state", state, Mapping)
    assert isinstance(state, Mapping)
    for name in (*settings, "rows", "waiting", "lengths"):
        if name not in state:
            raise ValueError(f"state has no {name}")
    for name, value in settings.items():
        if state[name] != value:
            raise ValueError(f"state is of {name} {state[name]}, not {value}")
    waiting = _checks.indices("waiting", state["waiting"])
    lengths = _checks.indices("lengths", state["lengths"])
    _checks.size("lengths", lengths, len(waiting))
    return _checks.number("rows", state["rows"]), waiting, lengths


def pack(
    tokens: object,
    plan: object,
    pad_id: object,
    layout: object,
    dtype: object,
    out: object,
    threads: object,
) -> tuple[int, bool, np.dtype[Any], int]:
    """pad_id, whether the layout is flat, dtype, threads."""
    _checks.instance("tokens", tokens, Tokens)
    _checks.instance("plan", plan, Plan)
    flat = _checks.choice("layout", layout, LAYOUTS) == "flat"
    cells = _checks.cell_dtype(dtype)
    if out is not None:
        _checks.instance("out", out, Packed)
        assert isinstance(tokens, Tokens)
        written: dict[str, npt.DTypeLike] = dict.fromkeys(CELLS, cells)
        if tokens.loss_weights is not None:
            written["loss_weights"] = np.float32
        _writable(out, written, 1 if flat else 2, [*_arrays(tokens), *_arrays(plan)])
    return _checks.int32("pad_id", pad_id), flat, cells, _checks.number("threads", threads)


def _writable(out: object, dtypes: Mapping[str, npt.DTypeLike], ndim: int, held: list[Any]) -> None:
    for name, dtype in dtypes.items():
        held.append(_writable_array(f"out.{name}", getattr(out, name), dtype, ndim, held))


def _writable_array(
    name: str, value: object, dtype: npt.DTypeLike, ndim: int, held: list[Any]
) -> npt.NDArray[Any]:
    array = _checks.array(name, value, dtype, ndim=ndim)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if any(np.may_share_memory(array, other) for other in held):
        raise ValueError(f"{name} shares memory with another array")
    return array


def _arrays(noun: Any) -> list[npt.NDArray[Any]]:
    held = [getattr(noun, item.name) for item in fields(noun)]
    return [value for value in held if isinstance(value, np.ndarray)]


def unpack(packed: object, threads: object) -> int:
    """Threads."""
    _checks.instance("packed", packed, Packed)
    return _checks.number("threads", threads)
