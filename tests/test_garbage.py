"""The threshold of Python's garbage collection is as before when the last block has ended."""

import gc
from contextlib import ExitStack

import pytest

from turnpack.garbage import COLLECT_EVERY, seldom_collecting


@pytest.fixture(autouse=True)
def threshold():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_blocks_may_lie_across_each_other():
    first, second = ExitStack(), ExitStack()
    for block in (first, second):
        block.enter_context(seldom_collecting())
        assert gc.get_threshold() == (COLLECT_EVERY, 10, 10)
    first.close()
    assert gc.get_threshold() == (COLLECT_EVERY, 10, 10)
    second.close()
    assert gc.get_threshold() == (700, 10, 10)


def test_an_error_ends_a_block():
    with pytest.raises(KeyError), seldom_collecting():
        raise KeyError
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("first", [0, 2 * COLLECT_EVERY])
def test_who_wants_less_has_less(first):
    gc.set_threshold(first, 10, 10)
    with seldom_collecting():
        assert gc.get_threshold() == (first, 10, 10)
