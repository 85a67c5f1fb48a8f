"""Owns the benchmarks of `pack`: into bins of 4,096 cells, into memory that is reused.

8,192 rows on every form; 37,500 rows, more than any cache holds, beside memcpy. There `core, new
memory` allocates its output, and `first touch` only writes a number to each page of as much.
"""

import numpy as np
import pytest

import baselines
from conftest import CAPACITY, threads_of
from turnpack import kernels, reference
from turnpack.nouns import CELLS


def form_of(name, tokens, plan, dtype=np.int32):
    """What to time, and the result it writes to."""
    out = kernels.pack(tokens, plan, dtype=dtype)
    cells = [getattr(out, cell) for cell in CELLS]
    for array in cells:
        array.fill(-1)
    if name.startswith("core"):
        kwargs = {"dtype": dtype, "threads": threads_of(name)}
        return (lambda: kernels.pack(tokens, plan, out=out, **kwargs)), out
    if name.startswith("numba"):
        given = tokens.input_ids, tokens.loss_mask, tokens.offsets, plan.rows, plan.offsets
        loop = baselines.pack_numba if name == "numba" else baselines.pack_numba_by_array
        return (lambda: loop(*given, plan.capacity, 0, *cells)), out
    if name == "numpy":
        return (lambda: baselines.pack_numpy(tokens, plan, 0, *cells)), out
    return (lambda: reference.pack(tokens, plan, out=out)), out


FORMS = {
    "core": 60,
    "core, 2 threads": 60,
    "numba": 60,
    "numba, a loop for each array": 60,
    "numpy": 10,
    "reference": 1,
}


@pytest.mark.benchmark(group="pack 8,192 rows at 4,096")
@pytest.mark.parametrize("form", FORMS)
def test_pack(benchmark, tokens, plan, form):
    run, out = form_of(form, tokens, plan)
    run()
    assert out == kernels.pack(tokens, plan)
    benchmark.pedantic(run, rounds=FORMS[form])


LARGE = {
    "core": 15,
    "core, 2 threads": 15,
    "core, new memory": 7,
    "first touch": 7,
    "numba": 5,
    "numba, a loop for each array": 7,
    "numpy": 3,
    "memcpy": 15,
    "memcpy, 2 threads": 15,
}


@pytest.fixture(scope="module")
def many_plan(many_tokens):
    return kernels.plan(many_tokens.lengths, CAPACITY)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("form", LARGE)
def test_pack_many(benchmark, timed, many_tokens, many_plan, form, dtype):
    benchmark.group = f"pack 20 million tokens, {dtype}"
    cells = many_plan.num_bins * CAPACITY
    moved = 5 * len(many_tokens.input_ids) + 4 * cells * np.dtype(dtype).itemsize
    run = None
    if form == "core, new memory":
        run = lambda: kernels.pack(many_tokens, many_plan, dtype=dtype)  # noqa: E731
    elif form == "first touch":
        run = lambda: [touched(cells, dtype) for _ in CELLS]  # noqa: E731
    elif not form.startswith("memcpy"):
        run, out = form_of(form, many_tokens, many_plan, np.dtype(dtype))
        run()
        assert out == kernels.pack(many_tokens, many_plan, dtype=dtype)
    timed(form, run, moved, LARGE[form])


def touched(cells, dtype):
    array = np.empty(cells, dtype)
    array[:: 4096 // array.itemsize] = 0
    return array
