"""Owns the benchmarks of `mask_markers`: 8,192 and 187,500 rows, a marker every 50 tokens or so."""

from itertools import chain

import numpy as np
import pytest

import baselines
from conftest import threads_of
from turnpack import kernels, reference

START, END = [7, 8], [9]


def arguments(tokens):
    ids = tokens.input_ids.copy()
    at = np.random.default_rng(3).choice(len(ids) - 1, len(ids) // 50, replace=False)
    opening, closing = np.array_split(at, 2)
    ids[opening], ids[opening + 1] = START
    ids[closing] = END[0]
    return ids, tokens.offsets


@pytest.fixture(scope="module")
def few(tokens):
    return arguments(tokens)


@pytest.fixture(scope="module")
def many(many_tokens):
    return arguments(many_tokens)


def numba_form(given, expected):
    mask = np.empty_like(expected)
    numba = (*given, np.array(START, np.int32), np.array(END, np.int32), mask)
    baselines.mask_markers_numba(*numba)
    assert np.array_equal(mask, expected)
    return lambda: baselines.mask_markers_numba(*numba)


@pytest.mark.benchmark(group="mask_markers 8,192 rows")
@pytest.mark.parametrize("form", ["core", "numba", "plain", "reference"])
def test_mask_markers(benchmark, few, form):
    expected = kernels.mask_markers(*few, [START], [END])
    assert expected.any()
    if form == "numba":
        benchmark(numba_form(few, expected))
    elif form == "plain":
        lists = kernels.unflatten(*few)
        made = baselines.mask_markers_plain(lists, START, END)
        assert [*chain.from_iterable(made)] == expected.tolist()
        benchmark.pedantic(baselines.mask_markers_plain, (lists, START, END), rounds=3)
    else:
        verb = {"core": kernels, "reference": reference}[form].mask_markers
        found = (*few, [START], [END])
        assert np.array_equal(verb(*found), expected)
        benchmark.pedantic(verb, found, rounds=2 if form == "reference" else 20)


@pytest.mark.benchmark(group="mask_markers 100 million tokens")
@pytest.mark.parametrize("form", ["core", "core, 2 threads", "core, new memory", "numba"])
def test_mask_markers_many(timed, many, form):
    expected = kernels.mask_markers(*many, [START], [END])
    mask = np.empty_like(expected)
    if form == "numba":
        rounds, run = 3, numba_form(many, expected)
    else:
        rounds = 15
        kwargs = {"out": None if "new" in form else mask, "threads": threads_of(form)}
        run = lambda: kernels.mask_markers(*many, [START], [END], **kwargs)  # noqa: E731
        assert np.array_equal(run(), expected)
    timed(form, run, many[0].nbytes + expected.nbytes + many[1].nbytes, rounds)
