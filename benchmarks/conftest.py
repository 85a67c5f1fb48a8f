"""Owns the data of the benchmarks: rows as a chat data set has them, made from one seed."""

from functools import partial

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
    """37,500 rows, 20 million tokens: more than any cache holds."""
    return tokens_of(37_500)


@pytest.fixture(scope="session")
def buffers():
    """What memcpy copies, from one into the other: 200 MB each."""
    source = np.ones(50_000_000, np.int32)
    return np.ones_like(source), source


@pytest.fixture
def timed(benchmark, buffers):
    """Time a form that moves so many bytes, or memcpy, whose bytes are counted in the same way.

    Bytes are those that the work must read and those it must write.
    """

    def time(form, run, moved, rounds):
        if form.startswith("memcpy"):
            moved = 2 * buffers[0].nbytes
            run = partial(baselines.memcpy, *buffers, threads=threads_of(form))
        benchmark.extra_info["bytes"] = int(moved)
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)

    return time


def threads_of(form):
    return 2 if form.endswith("2 threads") else 1
