"""Owns the data of the benchmarks: rows as a chat data set has them, made from one seed."""

from statistics import median
from time import perf_counter

import numpy as np
import pytest

import baselines
from turnpack import Tokens, kernels

CAPACITY = 4096


def lengths_of(rows):
    """Lognormal lengths: median 350, sigma 0.9, from 8 to the capacity."""
    drawn = np.random.default_rng(0).lognormal(np.log(350), 0.9, rows)
    return np.clip(drawn, 8, CAPACITY).astype(np.int64)


@pytest.fixture(scope="session")
def lengths():
    """A million rows, for plan."""
    return lengths_of(1_000_000)


def tokens_of(rows):
    """Rows of random ids; about half of the tokens are targets, no first one is."""
    sizes = lengths_of(rows)
    rng = np.random.default_rng(1)
    n = int(sizes.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    loss_mask = rng.integers(0, 2, n, np.uint8)
    loss_mask[offsets[:-1]] = 0
    return Tokens(rng.integers(0, 150_000, n, np.int32), loss_mask, offsets)


@pytest.fixture(scope="session")
def tokens():
    """8,192 rows, 4.3 million tokens."""
    return tokens_of(8192)


@pytest.fixture(scope="session")
def plan(tokens):
    return kernels.plan(tokens.lengths, CAPACITY)


@pytest.fixture(scope="module")
def many_tokens():
    """187,500 rows, 100 million tokens."""
    return tokens_of(187_500)


def seconds_of(run):
    begun = perf_counter()
    run()
    return perf_counter() - begun


@pytest.fixture(scope="session")
def buffers():
    """What memcpy copies, from one into the other: 100 MB each, more than any cache holds."""
    source = np.ones(25_000_000, np.int32)
    return np.ones_like(source), source


@pytest.fixture
def timed(benchmark, buffers):
    """Time a form that moves so many bytes, in rounds that take turns with memcpy.

    Bytes are those that the work must read and those it must write; memcpy's are counted alike, and
    it has as many threads. The form has been run before, by who asserted its result.
    """

    def time(form, run, moved, rounds):
        taken, threads = [], threads_of(form)

        def memcpy():
            taken.append(seconds_of(lambda: baselines.memcpy(*buffers, threads=threads)))

        benchmark.pedantic(run, setup=memcpy, rounds=rounds)
        rate = 2 * buffers[0].nbytes / median(taken)
        benchmark.extra_info.update(bytes=int(moved), memcpy_gb_s=round(rate / 1e9, 3))

    return time


def threads_of(form):
    return 2 if form.endswith("2 threads") else 1
