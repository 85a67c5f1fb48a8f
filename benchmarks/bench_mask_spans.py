"""Owns the benchmark of `mask_spans`: 8,192 rows, 4.3 million tokens, four spans in each row."""

import numpy as np
import pytest

import baselines
from turnpack import kernels, reference


@pytest.fixture(scope="module")
def arguments(tokens):
    """Tokens of 1 to 5 characters one after the other; every second eighth of a row is a target."""
    widths = np.random.default_rng(2).integers(1, 6, len(tokens.input_ids))
    end = np.cumsum(widths)
    begin = end - widths
    first = np.repeat(begin[tokens.offsets[:-1]], tokens.lengths)
    extents = np.stack([begin - first, end - first], axis=1)
    characters = extents[tokens.offsets[1:] - 1, 1]
    eighths = np.arange(1, 9)[None, :] * characters[:, None] // 8
    return extents, tokens.offsets, eighths.reshape(-1, 2), np.arange(len(tokens) + 1) * 4


@pytest.mark.benchmark(group="mask_spans")
@pytest.mark.parametrize("form", ["core", "numba", "reference"])
def test_mask_spans(benchmark, arguments, form):
    expected = kernels.mask_spans(*arguments)
    if form == "numba":
        mask = np.empty_like(expected)
        baselines.mask_spans_numba(*arguments, mask)
        assert np.array_equal(mask, expected)
        benchmark(baselines.mask_spans_numba, *arguments, mask)
    else:
        verb = {"core": kernels, "reference": reference}[form].mask_spans
        assert np.array_equal(verb(*arguments), expected)
        benchmark.pedantic(verb, arguments, rounds=2 if form == "reference" else 20)
