"""Owns the benchmarks of `concat`: 8,192 and 187,500 turns, two to a row.

The many are written into memory that is reused, but for `core, new memory`.
"""

from itertools import chain

import numpy as np
import pytest

import baselines
from conftest import threads_of
from turnpack import Role, kernels, reference

SETTINGS = [Role(prefix=[3, 4], suffix=[2]), Role(prefix=[3, 5], suffix=[2], target=True)]


def arguments(tokens):
    turns = len(tokens)
    roles, ends = np.arange(turns, dtype=np.uint8) % 2, np.arange(0, turns + 1, 2)
    return tokens.input_ids, tokens.offsets, roles, ends, SETTINGS


@pytest.mark.benchmark(group="concat 8,192 turns")
@pytest.mark.parametrize("form", ["core", "plain", "reference"])
def test_concat(benchmark, tokens, form):
    args = arguments(tokens)
    _, _, roles, ends, _ = args
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


@pytest.mark.benchmark(group="concat 100 million tokens")
@pytest.mark.parametrize(
    "form",
    ["core", "core, 2 threads", "core, new memory", "numba"],
)
def test_concat_many(timed, many_tokens, form):
    args = arguments(many_tokens)
    expected = kernels.concat(*args, bos=[1])
    out = kernels.concat(*args, bos=[1])
    out.input_ids.fill(-1)
    written = out.input_ids, out.loss_mask
    if form == "numba":
        prefixes = np.array([role.prefix for role in SETTINGS], np.int32)
        suffixes = np.array([role.suffix for role in SETTINGS], np.int32)
        targets = np.array([role.target for role in SETTINGS], np.uint8)
        given = *args[:4], prefixes, suffixes, targets, 1, *written
        run = lambda: baselines.concat_numba(*given)  # noqa: E731
    else:
        kwargs = {"out": None if "new" in form else out, "threads": threads_of(form)}
        run = lambda: kernels.concat(*args, bos=[1], **kwargs)  # noqa: E731
    run()
    assert "new" in form or out == expected
    moved = sum(array.nbytes for array in (*args[:4], *written, expected.offsets))
    timed(form, run, moved, 3 if form == "numba" else 15)
