"""Owns the benchmarks of `flatten` and `unflatten`: 18,750 lists of ids, 10 million in all.

`core, Arrow` takes the same rows from an Arrow list array, whose memory it shares.
"""

import numpy as np
import pyarrow as pa
import pytest

import baselines
from conftest import tokens_of
from turnpack import kernels, reference


@pytest.fixture(scope="module")
def tokens():
    return tokens_of(18_750)


@pytest.fixture(scope="module")
def rows(tokens):
    return kernels.unflatten(tokens.input_ids, tokens.offsets)


FLATTEN = {
    "core": kernels.flatten,
    "core, Arrow": kernels.flatten,
    "numpy": baselines.flatten_numpy,
    "reference": reference.flatten,
}
UNFLATTEN = {
    "core": kernels.unflatten,
    "numpy": baselines.unflatten_numpy,
    "reference": reference.unflatten,
}


@pytest.mark.benchmark(group="flatten 10 million ids")
@pytest.mark.parametrize("form", FLATTEN)
def test_flatten(benchmark, rows, tokens, form):
    if form == "core, Arrow":
        rows = pa.LargeListArray.from_arrays(tokens.offsets, pa.array(tokens.input_ids))
    values, offsets = FLATTEN[form](rows)
    assert np.array_equal(values, tokens.input_ids)
    assert np.array_equal(offsets, tokens.offsets)
    in_few_rounds(benchmark, form, FLATTEN[form], rows)


@pytest.mark.benchmark(group="unflatten 10 million ids")
@pytest.mark.parametrize("form", UNFLATTEN)
def test_unflatten(benchmark, rows, tokens, form):
    assert UNFLATTEN[form](tokens.input_ids, tokens.offsets) == rows
    in_few_rounds(benchmark, form, UNFLATTEN[form], tokens.input_ids, tokens.offsets)


def in_few_rounds(benchmark, form, verb, *args):
    benchmark.pedantic(verb, args, rounds=1 if form == "reference" else 7)
