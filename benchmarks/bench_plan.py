"""Owns the benchmark of `plan`: a million rows into bins of 4,096 tokens."""

import numpy as np
import pytest

import baselines
from conftest import CAPACITY
from turnpack import kernels, reference


@pytest.mark.benchmark(group="plan 1,000,000 rows")
@pytest.mark.parametrize("strategy", ["best_fit", "first_fit", "in_order"])
def test_plan(benchmark, lengths, strategy):
    few = lengths[:5000]
    assert kernels.plan(few, CAPACITY, strategy=strategy) == reference.plan(
        few, CAPACITY, strategy=strategy
    )
    benchmark.pedantic(
        kernels.plan, (lengths, CAPACITY), {"strategy": strategy}, rounds=7, warmup_rounds=1
    )


@pytest.mark.benchmark(group="plan best_fit 100,000 rows")
@pytest.mark.parametrize("form", ["core", "bisect", "reference"])
def test_plan_forms(benchmark, lengths, form):
    few = lengths[:100_000]
    expected = kernels.plan(few, CAPACITY)
    if form == "bisect":
        bins = baselines.plan_bisect(few, CAPACITY)
        assert np.array_equal(np.concatenate(bins), expected.rows)
        benchmark.pedantic(baselines.plan_bisect, (few, CAPACITY), rounds=3)
    else:
        verb = {"core": kernels, "reference": reference}[form].plan
        assert verb(few, CAPACITY) == expected
        benchmark.pedantic(verb, (few, CAPACITY), rounds=3 if form == "reference" else 20)
