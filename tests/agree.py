"""Owns how results are compared: reference and core, values and errors, always with ==.

Knows no verb in particular.
"""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

import on_device
from turnpack import _core, cuda_available, kernels, reference

# The verbs that have a form for each instruction set, and those that have a streaming one.
ISAS = ("scalar", "avx2", "avx512")
BY_ISA = ("mask_spans", "mask_markers", "pack", "unpack")
STREAMING = ("concat", "pack")


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


@contextmanager
def machine(isa: str, stream_from: int) -> Any:
    """The core as on a machine of this instruction set, streaming outputs of so many bytes on."""
    before = _core.isa(), _core.stream_from()
    _core.set_isa(isa)
    _core.set_stream_from(stream_from)
    try:
        yield
    finally:
        _core.set_isa(before[0])
        _core.set_stream_from(before[1])


def has(isa: str) -> bool:
    try:
        with machine(isa, 0):
            return True
    except ValueError:
        return False


def core_on(isa: str, stream_from: int, verbs: tuple[str, ...]) -> Any:
    def form_of(verb: str) -> Any:
        def form(*args: Any, **kwargs: Any) -> Any:
            with machine(isa, stream_from):
                return getattr(kernels, verb)(*args, **kwargs)

        return form

    return SimpleNamespace(**{verb: form_of(verb) for verb in verbs})


IMPLEMENTATIONS = {
    "reference": reference,
    "core": kernels,
    "core-lanes": SimpleNamespace(pack=pack_by_lanes(7)),
    "core-wide": SimpleNamespace(plan=plan_wide),
    "cuda-emulated": on_device.EMULATED,
}
ABSENT = [isa for isa in ISAS if not has(isa)]
for isa in ISAS:
    if isa not in ABSENT:
        IMPLEMENTATIONS[f"core-{isa}"] = core_on(isa, 2**63 - 1, BY_ISA)
        IMPLEMENTATIONS[f"core-{isa}-streamed"] = core_on(isa, 0, STREAMING)
if cuda_available():
    IMPLEMENTATIONS["cuda"] = on_device.CUDA


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


def written_into(shift: int, verb: Any) -> None:
    """Assert that a mask goes into its `out`, which begins `shift` bytes on, and nowhere else."""
    expected = verb()
    size = len(expected)
    assert 0 < expected.sum() < size
    for room in (size, size + 10):
        memory = np.full(size + 50, 77, np.uint8)
        made = verb(out=memory[shift : shift + room], threads=2)
        assert np.array_equal(made, expected)
        assert np.shares_memory(made, memory)
        assert np.array_equal(memory[shift : shift + size], expected)
        assert (memory[:shift] == 77).all()
        assert (memory[shift + size :] == 77).all()
