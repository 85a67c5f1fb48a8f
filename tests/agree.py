"""Owns how results are compared: reference and core, values and errors, always with ==.

Knows no verb in particular.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from turnpack import kernels, reference


def pack_by_lanes(lanes: int) -> Any:
    """kernels.pack by the arithmetic of index.h, as a block of so many threads runs it."""

    def pack(
        tokens,
        plan,
        *,
        pad_id=0,
        layout="rows",
        dtype=np.int32,
        out=None,
        threads=1,
    ):
        return kernels._pack(tokens, plan, pad_id, layout, dtype, out, threads, lanes)

    return pack


def plan_wide(lengths, capacity, *, strategy="best_fit", align=1, max_rows=None, threads=1) -> Any:
    """kernels.plan by the form for 2**31 rows and more."""
    return kernels._plan(lengths, capacity, strategy, align, max_rows, threads, wide=True)


IMPLEMENTATIONS = {
    "reference": reference,
    "core": kernels,
    "core-lanes": SimpleNamespace(pack=pack_by_lanes(7)),
    "core-wide": SimpleNamespace(plan=plan_wide),
}


def implementations(verb: str) -> dict[str, Any]:
    """The implementations that have a form of their own for this verb."""
    verb = {"planner": "Planner"}.get(verb, verb)  # the one that is a class
    return {name: impl for name, impl in IMPLEMENTATIONS.items() if hasattr(impl, verb)}


def equal(a: Any, b: Any) -> bool:
    """By value and by dtype."""
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


def outcome(verb: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """What a call comes to: its result, or the type and the text of its error."""
    try:
        return ("result", verb(*args, **kwargs))
    except (TypeError, ValueError) as error:
        return (type(error), str(error))


def agreed(verb: str, *args: Any, **kwargs: Any) -> Any:
    """The outcome, after asserting that every implementation comes to the same."""
    return agreed_by(verb, lambda called: called(*args, **kwargs))


def agreed_by(verb: str, use: Any) -> Any:
    """The outcome of use(verb), after asserting that with every implementation it is the same."""
    outcomes = {
        name: outcome(use, getattr(impl, verb)) for name, impl in implementations(verb).items()
    }
    expected = outcomes.pop("reference")
    for name, found in outcomes.items():
        assert equal(found, expected), f"{name}: {found} instead of {expected}"
    return expected


def ragged(lengths: Any) -> np.ndarray:
    """Offsets of rows of these lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
