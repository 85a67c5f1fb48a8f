"""Owns the benchmarks of `flatten` and `unflatten`: 8,192 lists of ids, 4.3 million in all.

`core, Arrow` takes the same rows from an Arrow list array, whose memory it shares.
"""

import numpy as np
import pyarrow as pa
import pytest

import baselines
from turnpack import kernels, reference


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


@pytest.mark.benchmark(group="flatten")
@pytest.mark.parametrize("form", FLATTEN)
def test_flatten(benchmark, rows, tokens, form):
    if form == "core, Arrow":
        rows = pa.LargeListArray.from_arrays(tokens.offsets, pa.array(tokens.input_ids))
    values, offsets = FLATTEN[form](rows)
    assert np.array_equal(values, tokens.input_ids)
    assert np.array_equal(offsets, tokens.offsets)
    benchmark(FLATTEN[form], rows)


@pytest.mark.benchmark(group="unflatten")
@pytest.mark.parametrize("form", UNFLATTEN)
def test_unflatten(benchmark, rows, tokens, form):
    assert UNFLATTEN[form](tokens.input_ids, tokens.offsets) == rows
    benchmark(UNFLATTEN[form], tokens.input_ids, tokens.offsets)
