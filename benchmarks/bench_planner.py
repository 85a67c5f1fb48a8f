"""Owns the benchmark of `Planner`: a million rows as a stream, in chunks of 10,000."""

import numpy as np
import pytest

import baselines
from conftest import CAPACITY
from turnpack import kernels, reference

CHUNK = 10_000


def stream(planner, lengths):
    made = [planner.add(lengths[at : at + CHUNK]) for at in range(0, len(lengths), CHUNK)]
    return [*made, planner.flush()]


def utilization(plans):
    tokens = sum(int(plan.fill.sum()) for plan in plans)
    return tokens / (CAPACITY * sum(plan.num_bins for plan in plans))


@pytest.mark.benchmark(group="planner 1,000,000 rows")
@pytest.mark.parametrize("form", ["core", "plan of all"])
def test_planner(benchmark, lengths, form):
    few = lengths[:20_000]
    made = stream(kernels.Planner(CAPACITY), few)
    assert made == stream(reference.Planner(CAPACITY), few)
    run = {
        "core": lambda: stream(kernels.Planner(CAPACITY), lengths),
        "plan of all": lambda: [kernels.plan(lengths, CAPACITY)],
    }[form]
    benchmark.extra_info["utilization"] = utilization(run())
    benchmark.pedantic(run, rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="planner 20,000 rows")
@pytest.mark.parametrize("form", ["core", "reference", "windows of 1,000 by bisect"])
def test_planner_forms(benchmark, lengths, form):
    """The last makes other bins: each window by itself, its last bins as they are."""
    few = lengths[:20_000]
    if form == "windows of 1,000 by bisect":
        made = baselines.planner_windows(few, CAPACITY, 1000)
        assert np.array_equal(np.sort(np.concatenate(made)), np.arange(len(few)))
        benchmark.extra_info["utilization"] = int(few.sum()) / (CAPACITY * len(made))
        benchmark.pedantic(baselines.planner_windows, (few, CAPACITY, 1000), rounds=5)
    else:
        planner = {"core": kernels, "reference": reference}[form].Planner
        benchmark.extra_info["utilization"] = utilization(stream(planner(CAPACITY), few))
        benchmark.pedantic(
            lambda: stream(planner(CAPACITY), few), rounds=3 if form == "reference" else 20
        )
