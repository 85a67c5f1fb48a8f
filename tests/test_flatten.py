"""Owns the tests of `flatten` and `unflatten`: lists of ids to ragged arrays and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agree
from turnpack import kernels

IDS = st.integers(-(2**31), 2**31 - 1)


def test_rows_of_every_kind(impl):
    rows = [[7, 8], (), (9,), np.array([1, 2]), np.array([3], np.uint8), range(2), iter([5])]
    values, offsets = impl.flatten(rows)
    assert values.dtype == np.int32
    assert offsets.dtype == np.int64
    assert values.tolist() == [7, 8, 9, 1, 2, 3, 0, 1, 5]
    assert offsets.tolist() == [0, 2, 2, 3, 5, 6, 8, 9]


def test_numpy_scalars_strided_and_2d_rows(impl):
    assert impl.flatten([[np.int64(3), np.uint16(4)]])[0].tolist() == [3, 4]
    assert impl.flatten([np.arange(10)[::-3]])[0].tolist() == [9, 6, 3, 0]
    assert impl.flatten(np.arange(6, dtype=">i4").reshape(2, 3))[1].tolist() == [0, 3, 6]


def test_nothing(impl):
    for rows in ([], [[]], [(), []]):
        values, offsets = impl.flatten(rows)
        assert values.tolist() == []
        assert offsets.tolist() == [0] * (len(rows) + 1)


def test_bounds_of_int32(impl):
    assert impl.flatten([[2**31 - 1, -(2**31)]])[0].tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[], [1, "a"]], TypeError, "row 1, item 1 is str, not an int"),
        ([[1], (1, 2, 3.0)], TypeError, "row 1, item 2 is float, not an int"),
        ([[True]], TypeError, "row 0, item 0 is bool, not an int"),
        ([[np.bool_(True)]], TypeError, "row 0, item 0 is bool, not an int"),
        ([[None]], TypeError, "row 0, item 0 is NoneType, not an int"),
        (["ab"], TypeError, "row 0, item 0 is str, not an int"),
        ([np.array([1.5])], TypeError, "row 0, item 0 is float64, not an int"),
        ([np.array([[1]])], TypeError, "row 0, item 0 is ndarray, not an int"),
        ([[1], 5], TypeError, "row 1 is int, not a sequence of int"),
        (5, TypeError, "rows is int, not an iterable of rows"),
        ("ab", TypeError, "rows is str, not an iterable of rows"),
        ([[0, 2**31]], ValueError, "row 0, item 1 is 2147483648, beyond int32"),
        ([[1], [-(2**31) - 1]], ValueError, "row 1, item 0 is -2147483649, beyond int32"),
        ([[2**70]], ValueError, f"row 0, item 0 is {2**70}, beyond int32"),
        ([np.array([1, 2**40])], ValueError, "row 0, item 1 is 1099511627776, beyond int32"),
        ([np.array([2**63], np.uint64)], ValueError, f"row 0, item 0 is {2**63}, beyond int32"),
    ],
)
def test_refusals(impl, rows, error, message):
    with pytest.raises(error) as caught:
        impl.flatten(rows)
    assert str(caught.value) == message


def test_numpy_bool_is_named_as_numpy_names_it(impl):
    with pytest.raises(TypeError, match="not an int"):
        impl.flatten([np.array([True])])


@given(st.lists(st.lists(IDS) | st.lists(IDS).map(tuple)))
def test_there_and_back(rows):
    kind, (values, offsets) = agree.agreed("flatten", rows)
    assert kind == "result"
    expected = [list(row) for row in rows]
    assert agree.agreed("unflatten", values, offsets) == ("result", expected)


@given(
    st.lists(st.lists(IDS | st.integers() | st.floats() | st.booleans() | st.text(), max_size=4))
)
def test_both_refuse_alike(rows):
    agree.agreed("flatten", rows)


@given(st.lists(IDS, max_size=6), st.lists(st.integers(-2, 8), max_size=5))
def test_unflatten_of_any_offsets(values, offsets):
    agree.agreed("unflatten", np.array(values, np.int32), offsets)


def test_unflatten_refusals(impl):
    values = np.arange(3, dtype=np.int32)
    for offsets, message in [
        ([], "offsets is empty, it needs at least the 0"),
        ([1, 3], "offsets starts at 1, not 0"),
        ([0, 2, 1, 3], "offsets falls from 2 to 1 at 2"),
        ([0, 2], "offsets ends at 2, not 3"),
    ]:
        with pytest.raises(ValueError) as caught:
            impl.unflatten(values, offsets)
        assert str(caught.value) == message
    with pytest.raises(TypeError, match=r"^values has dtype int64, not int32$"):
        impl.unflatten(np.arange(3), [0, 3])


def test_70_000_rows():
    rows = [[i] * (i % 4) for i in range(70_000)]
    values, offsets = agree.agreed("flatten", rows)[1]
    assert kernels.unflatten(values, offsets) == rows


def test_a_row_that_changes_while_it_is_read():
    class Evil(int):
        def __int__(self):
            row.clear()
            return 1

    row = [Evil(1 << 40), *range(100)]
    with pytest.raises(RuntimeError, match="row 0 changed while it was read"):
        kernels.flatten([row])
