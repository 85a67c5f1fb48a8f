"""Owns the benchmarks of `mask_spans`: 8,192 and 187,500 rows, four spans in each."""

import numpy as np
import pytest

import baselines
from conftest import threads_of
from turnpack import kernels, reference


def arguments(lengths):
    """Tokens of 1 to 5 characters one after the other; every second eighth of a row is a target."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    widths = np.random.default_rng(2).integers(1, 6, offsets[-1])
    extents = np.empty((len(widths), 2), np.int64)
    np.cumsum(widths, out=extents[:, 1])
    extents[:, 1] -= np.repeat(extents[offsets[:-1], 1] - widths[offsets[:-1]], lengths)
    np.subtract(extents[:, 1], widths, out=extents[:, 0])
    characters = extents[offsets[1:] - 1, 1]
    eighths = np.arange(1, 9)[None, :] * characters[:, None] // 8
    return extents, offsets, eighths.reshape(-1, 2), np.arange(len(lengths) + 1) * 4


@pytest.fixture(scope="module")
def few(tokens):
    return arguments(tokens.lengths)


@pytest.fixture(scope="module")
def many(many_tokens):
    return arguments(many_tokens.lengths)


def numba_form(given, expected):
    mask = np.empty_like(expected)
    baselines.mask_spans_numba(*given, mask)
    assert np.array_equal(mask, expected)
    return lambda: baselines.mask_spans_numba(*given, mask)


@pytest.mark.benchmark(group="mask_spans 8,192 rows")
@pytest.mark.parametrize("form", ["core", "numba", "reference"])
def test_mask_spans(benchmark, few, form):
    expected = kernels.mask_spans(*few)
    assert expected.any()
    if form == "numba":
        benchmark(numba_form(few, expected))
    else:
        verb = {"core": kernels, "reference": reference}[form].mask_spans
        assert np.array_equal(verb(*few), expected)
        benchmark.pedantic(verb, few, rounds=2 if form == "reference" else 20)


@pytest.mark.benchmark(group="mask_spans 100 million tokens")
@pytest.mark.parametrize("form", ["core", "core, 2 threads", "core, new memory", "numba"])
def test_mask_spans_many(timed, many, form):
    expected = kernels.mask_spans(*many)
    mask = np.empty_like(expected)
    if form == "numba":
        rounds, run = 3, numba_form(many, expected)
    else:
        rounds = 15
        kwargs = {"out": None if "new" in form else mask, "threads": threads_of(form)}
        run = lambda: kernels.mask_spans(*many, **kwargs)  # noqa: E731
        assert np.array_equal(run(), expected)
    timed(form, run, sum(array.nbytes for array in (*many, expected)), rounds)
