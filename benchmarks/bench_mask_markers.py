"""Owns the benchmark of `mask_markers`: 8,192 rows, 4.3 million tokens, a marker every 50 or so."""

import numpy as np
import pytest

import baselines
from turnpack import kernels, reference

START, END = [7, 8], [9]


@pytest.fixture(scope="module")
def arguments(tokens):
    ids = tokens.input_ids.copy()
    at = np.random.default_rng(3).choice(len(ids) - 1, len(ids) // 50, replace=False)
    opening, closing = np.array_split(at, 2)
    ids[opening], ids[opening + 1] = START
    ids[closing] = END[0]
    return ids, tokens.offsets


@pytest.mark.benchmark(group="mask_markers")
@pytest.mark.parametrize("form", ["core", "numba", "reference"])
def test_mask_markers(benchmark, arguments, form):
    expected = kernels.mask_markers(*arguments, [START], [END])
    assert expected.any()
    if form == "numba":
        mask = np.empty_like(expected)
        numba = (*arguments, np.array(START, np.int32), np.array(END, np.int32), mask)
        baselines.mask_markers_numba(*numba)
        assert np.array_equal(mask, expected)
        benchmark(baselines.mask_markers_numba, *numba)
    else:
        verb = {"core": kernels, "reference": reference}[form].mask_markers
        found = (*arguments, [START], [END])
        assert np.array_equal(verb(*found), expected)
        benchmark.pedantic(verb, found, rounds=2 if form == "reference" else 20)
