"""Owns the benchmark of `concat`: 8,192 turns of 350 tokens in the middle, two to a row."""

from itertools import chain

import numpy as np
import pytest

import baselines
from turnpack import Role, kernels, reference

SETTINGS = [Role(prefix=[3, 4], suffix=[2]), Role(prefix=[3, 5], suffix=[2], target=True)]


@pytest.mark.benchmark(group="concat")
@pytest.mark.parametrize("form", ["core", "plain", "reference"])
def test_concat(benchmark, tokens, form):
    turns = len(tokens)
    roles, ends = np.arange(turns, dtype=np.uint8) % 2, np.arange(0, turns + 1, 2)
    args = (tokens.input_ids, tokens.offsets, roles, ends, SETTINGS)
    expected = kernels.concat(*args, bos=[1])
    if form == "plain":
        lists = kernels.unflatten(tokens.input_ids, tokens.offsets)
        pairs = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        plain = (lists, roles.tolist(), pairs, SETTINGS, [1])
        made, mask = baselines.concat_plain(*plain)
        assert made == kernels.unflatten(expected.input_ids, expected.offsets)
        assert [*chain.from_iterable(mask)] == expected.loss_mask.tolist()
        benchmark(baselines.concat_plain, *plain)
    else:
        verb = {"core": kernels, "reference": reference}[form].concat
        assert verb(*args, bos=[1]) == expected
        benchmark(verb, *args, bos=[1])
