"""Owns the benchmarks of `pack`: into bins of 4,096 cells, into memory that is reused or new.

8,192 rows on every form; 375,000 rows, 200 million tokens, beside memcpy and, where memory is new,
beside the least that it costs: what touches it first, which writes a number to each page of as
much memory, and the kernel.
"""

from statistics import median

import numpy as np
import pytest

import baselines
from conftest import CAPACITY, seconds_of, threads_of, tokens_of
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
    "core": 11,
    "core, 2 threads": 11,
    "numba": 3,
    "numba, a loop for each array": 5,
    "numpy": 3,
}
DTYPES = ("int32", "int64")


@pytest.fixture(scope="module")
def many_tokens():
    return tokens_of(375_000)


@pytest.fixture(scope="module")
def many_plan(many_tokens):
    return kernels.plan(many_tokens.lengths, CAPACITY)


def moved_by(tokens, plan, dtype):
    """Bytes: ids and mask are read, four arrays of cells are written."""
    cells = plan.num_bins * plan.capacity
    return 5 * len(tokens.input_ids) + len(CELLS) * cells * np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", LARGE)
def test_pack_many(benchmark, timed, many_tokens, many_plan, form, dtype):
    benchmark.group = f"pack 200 million tokens, {dtype}"
    run, out = form_of(form, many_tokens, many_plan, dtype)
    run()
    # Memory does not hold two results of this size, so they are compared in chunks of bins.
    for first in range(0, many_plan.num_bins, 512):
        chunk = slice(first, first + 512)
        expected = kernels.pack(many_tokens, many_plan[chunk], dtype=dtype)
        for cells in CELLS:
            assert np.array_equal(getattr(out, cells)[chunk], getattr(expected, cells))
    timed(form, run, moved_by(many_tokens, many_plan, dtype), LARGE[form])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["core, new memory"])
def test_pack_into_new_memory(benchmark, many_tokens, many_plan, form, dtype):
    """In turns: a first touch, `pack` into new memory, and `pack` into that memory once more."""
    benchmark.group = f"pack 200 million tokens, {dtype}"
    packed, touches, kernel = [], [], []
    cells = many_plan.num_bins * CAPACITY

    def first_touch():
        packed.clear()
        touches.append(seconds_of(lambda: [touched(cells, dtype) for _ in CELLS]))

    def pack(out=None):
        return kernels.pack(many_tokens, many_plan, dtype=dtype, out=out)

    def again():
        kernel.append(seconds_of(lambda: pack(packed[0])))

    # The first round is a warm-up.
    run = lambda: packed.append(pack())  # noqa: E731
    benchmark.pedantic(run, setup=first_touch, teardown=again, rounds=3, warmup_rounds=1)
    benchmark.extra_info["touch_and_kernel_ms"] = round(
        (median(touches[1:]) + median(kernel[1:])) * 1e3, 4
    )


def touched(cells, dtype):
    array = np.empty(cells, dtype)
    array[:: 4096 // array.itemsize] = 0
    return array
