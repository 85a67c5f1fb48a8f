"""Owns the data of the benchmarks: rows as a chat data set has them, made from one seed."""

import numpy as np
import pytest

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


@pytest.fixture(scope="session")
def tokens():
    """8,192 rows of random ids; about half of the tokens are targets, no first one is."""
    sizes = lengths_of(8192)
    rng = np.random.default_rng(1)
    n = int(sizes.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    loss_mask = rng.integers(0, 2, n, np.uint8)
    loss_mask[offsets[:-1]] = 0
    return Tokens(rng.integers(0, 150_000, n, np.int32), loss_mask, offsets)


@pytest.fixture(scope="session")
def plan(tokens):
    return kernels.plan(tokens.lengths, CAPACITY)
