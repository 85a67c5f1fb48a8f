"""Owns the benchmark of `unpack`: 8,192 rows out of bins of 4,096 cells."""

import numpy as np
import pytest

import baselines
from turnpack import kernels, reference


@pytest.mark.benchmark(group="unpack 8,192 rows at 4,096")
@pytest.mark.parametrize("form", ["core", "numba", "reference"])
def test_unpack(benchmark, tokens, plan, form):
    packed = kernels.pack(tokens, plan)
    if form == "numba":
        starts = np.empty(len(tokens), np.int64)
        ends = np.cumsum(tokens.lengths[plan.rows])
        in_bin = np.repeat(ends[plan.offsets[1:] - 1] - plan.fill, np.diff(plan.offsets))
        bins = np.repeat(np.arange(plan.num_bins), np.diff(plan.offsets))
        starts[plan.rows] = ends - tokens.lengths[plan.rows] - in_bin + bins * plan.capacity
        ids, mask = np.empty_like(tokens.input_ids), np.empty_like(tokens.loss_mask)
        given = packed.input_ids.ravel(), packed.labels.ravel(), starts, tokens.offsets, ids, mask
        baselines.unpack_numba(*given)
        assert np.array_equal(ids, tokens.input_ids)
        assert np.array_equal(mask, tokens.loss_mask)
        benchmark(baselines.unpack_numba, *given)
    else:
        verb = {"core": kernels, "reference": reference}[form].unpack
        assert verb(packed) == tokens
        benchmark.pedantic(verb, (packed,), rounds=2 if form == "reference" else 30)
