"""Owns the benchmark of `pack`: 8,192 rows into bins of 4,096 cells, into memory that is reused.

The line `memcpy` copies as many bytes as are written: what the machine can do.
"""

import numpy as np
import pytest

import baselines
from turnpack import kernels, reference
from turnpack.nouns import CELLS


def form_of(name, tokens, plan):
    """What to time, and the result it writes to."""
    out = kernels.pack(tokens, plan)
    cells = [getattr(out, cell) for cell in CELLS]
    for array in cells:
        array.fill(-1)
    if name.startswith("core"):
        threads = 2 if name == "core, 2 threads" else 1
        return (lambda: kernels.pack(tokens, plan, out=out, threads=threads)), out
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


@pytest.mark.benchmark(group="pack 8,192 rows at 4,096")
def test_pack_memcpy(benchmark, plan):
    source = np.ones(4 * plan.num_bins * plan.capacity, np.int32)
    target = np.empty_like(source)
    benchmark.pedantic(np.copyto, (target, source), rounds=60, warmup_rounds=1)
