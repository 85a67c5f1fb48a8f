"""Owns the comparison of getting Python lists of ids into tensors, and of joining turns to rows.

Asserted equal: all ids and masks. What the peers do inside larger functions is written out here.
"""

from itertools import chain

import numpy as np
import torch
from side_by_side import Form

import baselines
from conftest import lengths_of
from turnpack import Role, kernels

SETTINGS = [Role(prefix=[3, 4], suffix=[2]), Role(prefix=[3, 5], suffix=[2], target=True)]


def compare(share):
    """Lists of ids, 10 million in all; then 8,192 turns, two to a row."""
    sizes = lengths_of(int(19_000 * share))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.random.default_rng(5).integers(0, 150_000, offsets[-1], np.int32)
    rows = kernels.unflatten(ids, offsets)

    def joined():
        return torch.tensor([token for row in rows for token in row])

    assert np.array_equal(kernels.flatten(rows)[0], ids)
    assert np.array_equal(baselines.flatten_numpy(rows)[0], ids)
    assert np.array_equal(joined(), ids)
    yield (
        f"{len(ids):,} ids out of lists",
        [
            Form("turnpack", lambda: kernels.flatten(rows)),
            Form("np.fromiter over chain", lambda: baselines.flatten_numpy(rows)),
            Form("one list, then torch.tensor", joined),
        ],
        5,
    )

    turns = int(8192 * share) // 2 * 2
    ids, offsets, rows = ids[: offsets[turns]], offsets[: turns + 1], rows[:turns]
    roles, ends = np.arange(turns, dtype=np.uint8) % 2, np.arange(0, turns + 1, 2)
    pairs = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    plain = (rows, roles.tolist(), pairs, SETTINGS, [1])
    given = (ids, offsets, roles, ends, SETTINGS)
    expected = kernels.concat(*given, bos=[1])
    made, mask = baselines.concat_plain(*plain)
    assert made == kernels.unflatten(expected.input_ids, expected.offsets)
    assert [*chain.from_iterable(mask)] == expected.loss_mask.tolist()
    yield (
        f"join {turns:,} turns to rows",
        [
            Form("turnpack", lambda: kernels.concat(*given, bos=[1])),
            Form("Python lists", lambda: baselines.concat_plain(*plain)),
        ],
        7,
    )
