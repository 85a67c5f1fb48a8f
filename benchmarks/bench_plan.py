"""Owns the benchmark of `plan`: lengths of chats, and some with a heavy tail, into bins.

`bytes_a_row` in the results: by how much a call raises the memory of the process, its result
included.
"""

from pathlib import Path

import numpy as np
import pytest

import baselines
from conftest import CAPACITY, lengths_of
from turnpack import kernels, reference


def heavy_tailed(rows, capacity):
    """Pareto lengths: as many beyond twice a length as half of those beyond it, up to capacity."""
    drawn = 60 * (1 + np.random.default_rng(0).pareto(1.0, rows))
    return np.clip(drawn, 8, capacity).astype(np.int64)


def same_as_the_reference(lengths, capacity, **how):
    """On so many rows as the reference does in a moment; every form on all of them."""
    few = lengths[:5000]
    assert kernels.plan(few, capacity, **how) == reference.plan(few, capacity, **how)


@pytest.mark.benchmark(group="plan 1,000,000 rows")
@pytest.mark.parametrize("strategy", ["best_fit", "first_fit", "in_order"])
def test_plan(benchmark, lengths, strategy):
    same_as_the_reference(lengths, CAPACITY, strategy=strategy)
    benchmark.pedantic(
        kernels.plan, (lengths, CAPACITY), {"strategy": strategy}, rounds=15, warmup_rounds=1
    )


PROCESS = Path("/proc/self")  # Linux's account of this process


def peak_of(run):
    """By how many bytes a call raises the memory of this process at its highest."""

    def status(key):
        lines = (PROCESS / "status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    (PROCESS / "clear_refs").write_text("5", "utf-8")  # the highest so far is as of now
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


@pytest.mark.parametrize("form", ["core", "core, 2 threads", "heavy tail", "8,192", "131,072"])
@pytest.mark.parametrize("rows", [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000])
def test_plan_sizes(benchmark, rows, form):
    benchmark.group = f"plan best_fit {rows:,} rows"
    capacity = int(form.replace(",", "")) if form[0].isdigit() else CAPACITY
    lengths = heavy_tailed(rows, capacity) if form == "heavy tail" else lengths_of(rows)
    threads = 2 if form == "core, 2 threads" else 1
    same_as_the_reference(lengths, capacity)
    assert kernels.plan(lengths, capacity, threads=2) == kernels.plan(lengths, capacity)
    if rows > 1_000_000:
        peak = peak_of(lambda: kernels.plan(lengths, capacity, threads=threads))
        benchmark.extra_info["bytes_a_row"] = round(peak / rows, 2)
    benchmark.pedantic(
        kernels.plan,
        (lengths, capacity),
        {"threads": threads},
        rounds=3 if rows > 10_000_000 else 7 if rows > 1_000_000 else 30,
        warmup_rounds=1,
    )


@pytest.mark.benchmark(group="plan first_fit 100,000 rows")
@pytest.mark.parametrize("form", ["core", "heavy tail"])
def test_plan_first_fit(benchmark, lengths, form):
    few = heavy_tailed(100_000, CAPACITY) if form == "heavy tail" else lengths[:100_000]
    same_as_the_reference(few, CAPACITY, strategy="first_fit")
    benchmark.pedantic(
        kernels.plan, (few, CAPACITY), {"strategy": "first_fit"}, rounds=30, warmup_rounds=1
    )


@pytest.mark.benchmark(group="plan best_fit 100,000 rows")
@pytest.mark.parametrize("form", ["bisect", "reference"])
def test_plan_forms(benchmark, lengths, form):
    few = lengths[:100_000]
    expected = kernels.plan(few, CAPACITY)
    if form == "bisect":
        bins = baselines.plan_bisect(few, CAPACITY)
        assert np.array_equal(np.concatenate(bins), expected.rows)
        benchmark.pedantic(baselines.plan_bisect, (few, CAPACITY), rounds=3)
    else:
        assert reference.plan(few, CAPACITY) == expected
        benchmark.pedantic(reference.plan, (few, CAPACITY), rounds=3)
