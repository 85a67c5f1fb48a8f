"""No call keeps what it was given or made, whether it ends with a result or with an error."""

import gc
import sys
from contextlib import suppress

import numpy as np
import pytest

import turnpack as tp
from turnpack import kernels

IDS, MASK, ROOM = np.arange(6, dtype=np.int32), np.ones(6, np.uint8), np.zeros(8, np.uint8)
OFFSETS, FALLS, LENGTHS = np.array([0, 2, 6]), np.array([0, 7, 6]), np.array([2, 4])
TOKENS, PLAN = tp.Tokens(IDS, MASK, OFFSETS), tp.Plan([0, 1], [0, 2], [6], 8)
LIES = tp.Plan([0, 1], [0, 2], [5], 8)
PACKED = kernels.pack(TOKENS, PLAN)
TWICE = kernels.pack(TOKENS, tp.Plan([0, 1], [0, 2], [6], 8))
TWICE.rows[:] = 1
EXTENTS, ROLES = np.tile([[0, 1]], (6, 1)), [tp.Role([1], [2], True)]
LISTS, WRONG = [[1, 2], [3]], [[1, 2], [object()]]
ARGUMENTS = [IDS, MASK, OFFSETS, FALLS, LENGTHS, TOKENS, PLAN, LIES, PACKED, TWICE, EXTENTS, LISTS]
ARGUMENTS += [ROLES, WRONG, ROOM]


def stream(lengths):
    planner = kernels.Planner(8, window=2)
    planner.add(lengths)
    planner.load_state_dict(planner.state_dict())
    planner.flush()


def concat(offsets):
    kernels.concat(IDS, offsets, np.zeros(2, np.int64), [0, 2], ROLES)


CALLS = {
    "flatten": (lambda: kernels.flatten(LISTS), lambda: kernels.flatten(WRONG)),
    "unflatten": (lambda: kernels.unflatten(IDS, OFFSETS), lambda: kernels.unflatten(IDS, FALLS)),
    "concat": (lambda: concat(OFFSETS), lambda: concat(FALLS)),
    "mask_spans": (
        lambda: kernels.mask_spans(EXTENTS, OFFSETS, EXTENTS, OFFSETS),
        lambda: kernels.mask_spans(EXTENTS, FALLS, EXTENTS, OFFSETS),
    ),
    "mask_markers": (
        lambda: kernels.mask_markers(IDS, OFFSETS, [[1]], [[2]], out=ROOM),
        lambda: kernels.mask_markers(IDS, FALLS, [[1]], [[2]]),
    ),
    "plan": (lambda: tp.plan(LENGTHS, 8), lambda: tp.plan(LENGTHS, 3)),
    "planner": (lambda: stream(LENGTHS), lambda: stream(FALLS)),
    "pack": (lambda: tp.pack(TOKENS, PLAN), lambda: tp.pack(TOKENS, LIES)),
    "unpack": (lambda: tp.unpack(PACKED), lambda: tp.unpack(TWICE)),
}


def held():
    gc.collect()
    return [sys.getrefcount(argument) for argument in ARGUMENTS], sys.getallocatedblocks()


@pytest.mark.parametrize("calls", [1000, pytest.param(100_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("verb", CALLS)
def test_nothing_is_kept(verb, calls):
    works, fails = CALLS[verb]
    with pytest.raises((TypeError, ValueError)):
        fails()

    def repeat(count):
        for _ in range(count):
            works()
            with suppress(TypeError, ValueError):
                fails()

    repeat(100)  # what is made once
    references, blocks = held()
    repeat(calls)
    after, blocks_after = held()
    assert after == references
    assert blocks_after - blocks < calls // 10
