"""Owns the tests of `mask_markers`: marker patterns in tokenized rows to a loss mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree


def mask(impl, ids, starts, ends, **kwargs):
    made = impl.mask_markers(np.array(ids, np.int32), [0, len(ids)], starts, ends, **kwargs)
    assert made.dtype == np.uint8
    return made.tolist()


def test_from_after_the_start_through_the_end(impl):
    ids = [1, 5, 6, 20, 21, 2, 30, 5, 6, 22, 2]
    assert mask(impl, ids, [[5, 6]], [[2]]) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert mask(impl, ids, [[5, 6]], [[2]], include_end=False) == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]


def test_never_closed(impl):
    assert mask(impl, [5, 7, 8], [[5]], [[2]]) == [0, 1, 1]
    assert mask(impl, [5, 7, 8], [[5]], []) == [0, 1, 1]
    assert mask(impl, [7, 8, 5], [[5]], [[2]]) == [0, 0, 0]


def test_the_longest_pattern_matches(impl):
    assert mask(impl, [5, 6, 7, 8], [[5], [5, 6, 7], [5, 6]], []) == [0, 0, 0, 1]
    assert mask(impl, [5, 1, 2, 3, 9], [[5]], [[2], [2, 3]]) == [0, 1, 1, 1, 0]


def test_a_start_inside_is_a_token(impl):
    assert mask(impl, [5, 5, 2, 5, 2], [[5]], [[2]]) == [0, 1, 1, 0, 1]


def test_without_the_end_it_may_open_again(impl):
    """The next turn's header ends an answer and begins another."""
    ids = [3, 4, 20, 3, 4, 21]
    assert mask(impl, ids, [[3, 4]], [[3]], include_end=False) == [0, 0, 1, 0, 0, 1]
    assert mask(impl, ids, [[3, 4]], [[3]], include_end=True) == [0, 0, 1, 1, 0, 0]
    assert mask(impl, [1, 1, 1, 1], [[1]], [[1]], include_end=False) == [0, 0, 0, 0]
    assert mask(impl, [1, 1, 1, 1], [[1]], [[1]]) == [0, 1, 0, 1]


def test_patterns_end_with_the_row(impl):
    ids = np.array([5, 6, 20, 5, 6, 21], np.int32)
    assert impl.mask_markers(ids, [0, 1, 4, 6], [[5, 6]], [[2]]).tolist() == [0] * 6


def test_nothing(impl):
    assert mask(impl, [], [[5]], [[2]]) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"starts": []}, ValueError, "starts is empty"),
        ({"starts": [[1], []]}, ValueError, "starts[1] is empty"),
        ({"ends": [[]]}, ValueError, "ends[0] is empty"),
        ({"starts": [1]}, TypeError, "starts[0] is int, not a sequence of int"),
        ({"starts": [["a"]]}, TypeError, "starts[0][0] is str, not an int"),
        ({"ends": "</s>"}, TypeError, "ends is str, not a sequence of sequences of int"),
        ({"ends": [[2**31]]}, ValueError, "ends[0][0] is 2147483648, beyond int32"),
        ({"offsets": [0, 4]}, ValueError, "offsets ends at 4, not 3"),
        ({"offsets": [0, 2, 1, 3]}, ValueError, "offsets falls from 2 to 1 at 2"),
        ({"include_end": 1}, TypeError, "include_end is int, not a bool"),
        ({"threads": 0, "starts": []}, ValueError, "threads is 0, less than 1"),
        ({"threads": None}, TypeError, "threads is NoneType, not an int"),
        ({"input_ids": np.arange(3)}, TypeError, "input_ids has dtype int64, not int32"),
        ({"input_ids": np.arange(3, dtype=">i4")}, TypeError,
         "input_ids has dtype >i4, not int32"),
        ({"input_ids": np.arange(6, dtype=np.int32)[::2]}, TypeError,
         "input_ids is not C-contiguous and aligned"),
        ({"input_ids": np.zeros((3, 1), np.int32)}, TypeError,
         "input_ids has 2 dimensions, not 1"),
    ],
)  # fmt: skip
def test_refusals(impl, change, error, message):
    arguments = {
        "input_ids": np.arange(3, dtype=np.int32),
        "offsets": [0, 3],
        "starts": [[1]],
        "ends": [[2]],
    }
    with pytest.raises(error) as caught:
        impl.mask_markers(**(arguments | change))
    assert str(caught.value) == message


@pytest.mark.parametrize("shift", range(3))
def test_into_memory_that_is_there(impl, shift):
    ids, ends = np.array([5, 8, 8, 2, 9] * 50, np.int32), [0, 40, 40, 43, 250]
    agree.written_into(shift, lambda **kwargs: impl.mask_markers(ids, ends, [[5]], [[2]], **kwargs))


IDS = np.arange(3, dtype=np.int32)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([0, 0, 0], TypeError, "out is list, not a NumPy array"),
        (np.zeros(3, bool), TypeError, "out has dtype bool, not uint8"),
        (np.zeros(6, np.uint8)[::2], TypeError, "out is not C-contiguous and aligned"),
        (np.zeros(2, np.uint8), ValueError, "out has room for 2 tokens, not 3"),
        (np.frombuffer(bytes(3), np.uint8), ValueError, "out is read-only"),
        (IDS.view(np.uint8), ValueError, "out shares memory with another array"),
    ],
)
def test_an_out_that_does_not_fit(impl, out, error, message):
    with pytest.raises(error) as caught:
        impl.mask_markers(IDS, [0, 3], [[1]], [[2]], out=out)
    assert str(caught.value) == message


PATTERNS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3)
OFFSETS = st.lists(st.integers(0, 6), max_size=4)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4),
    PATTERNS,
    PATTERNS,
    st.booleans(),
)
def test_reference_and_core(rows, starts, ends, include_end):
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = agree.ragged([len(row) for row in rows])
    agree.agreed("mask_markers", ids, offsets, starts, ends, include_end=include_end)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=150), max_size=4),
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=2), max_size=3),
    st.booleans(),
    st.integers(1, 5),
)
def test_long_rows_many_patterns_and_threads(rows, starts, ends, include_end, threads):
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = agree.ragged([len(row) for row in rows])
    kwargs = {"include_end": include_end, "threads": threads}
    kind, _ = agree.agreed("mask_markers", ids, offsets, starts, ends, **kwargs)
    assert kind == "result"


@pytest.mark.parametrize("place", range(40))
def test_a_marker_at_every_place(impl, place):
    """Rows are read sixteen ids at a time: none is overlooked, none of the next row is seen."""
    ids = np.full(80, 7, np.int32)
    ids[place] = 5
    ids[place + 40] = 2
    for length in (place + 1, 40):
        made = impl.mask_markers(ids[: length + 1].copy(), [0, length, length + 1], [[5]], [[2]])
        assert made.tolist() == [0] * (place + 1) + [1] * (length - place - 1) + [0]


def test_70_000_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 70_000)
    ids = rng.integers(0, 5, lengths.sum()).astype(np.int32)
    ids.flags.writeable = False
    kind, made = agree.agreed(
        "mask_markers", ids, agree.ragged(lengths), [[1], [2, 3]], [[4], [0, 0]], threads=2
    )
    assert kind == "result"
    assert 0 < made.sum() < len(ids)
