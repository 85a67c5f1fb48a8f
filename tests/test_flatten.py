"""Owns the tests of `flatten` and `unflatten`: lists of ids to ragged arrays and back."""

import numpy as np
import pyarrow as pa
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


def lists(rows, offsets=np.int32, values=np.int32):
    """An Arrow array of lists, from arrays whose memory it shares."""
    kind = pa.ListArray if offsets == np.int32 else pa.LargeListArray
    ids = np.array([i for row in rows for i in row], values)
    return kind.from_arrays(agree.ragged([len(row) for row in rows]).astype(offsets), pa.array(ids))


@pytest.mark.parametrize("values", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("offsets", [np.int32, np.int64])
def test_arrow_lists(impl, offsets, values):
    rows = [[7, 8], [], [9], [1, 2, 3]]
    made = lists(rows, offsets, values)
    table = pa.table({"ids": pa.chunked_array([made, made[2:]])})
    for whole, expected in [
        (made, rows),
        (made[1:3], rows[1:3]),
        (made[4:], []),
        (table["ids"], rows + rows[2:]),
        (pa.chunked_array([made]), rows),
        (pa.chunked_array([], made.type), []),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)), [[1, 2], [3, 4]]),
    ]:
        ids, ends = impl.flatten(whole)
        assert (ids.dtype, ends.dtype) == (np.int32, np.int64)
        assert kernels.unflatten(ids, ends) == expected


def test_arrow_lists_that_are_none(impl):
    for whole, error, message in [
        (pa.array([[1], None]), TypeError, "row 1 is NoneType, not a sequence of int"),
        (pa.array([[1], [2, None]]), TypeError, "row 1, item 1 is NoneType, not an int"),
        (pa.array([[1], [True, False]][1:]), TypeError, "row 0, item 0 is bool, not an int"),
        (pa.array([[1.0]]), TypeError, "row 0, item 0 is float, not an int"),
        (pa.array([[1], [2, 2**31]]), ValueError, "row 1, item 1 is 2147483648, beyond int32"),
        (pa.array([1, 2]), TypeError, "row 0 is int, not a sequence of int"),
        (pa.array(["ab"]), TypeError, "row 0, item 0 is str, not an int"),
    ]:
        with pytest.raises(error) as caught:
            impl.flatten(whole)
        assert str(caught.value) == message
    hidden = pa.array([[2**40], [None], [5]])[2:]  # what a slice leaves out is not looked at
    assert impl.flatten(hidden)[0].tolist() == [5]


def test_an_object_with_arrow_s_interface(impl):
    class Column:
        def __arrow_array__(self, type=None):
            return lists([[1, 2], [3]])

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.chunked_array([lists([[1, 2]]), lists([[3]])]).__arrow_c_stream__()

    for whole in (Column(), Stream()):
        ids, ends = impl.flatten(whole)
        assert (ids.tolist(), ends.tolist()) == ([1, 2, 3], [0, 2, 3])


def test_buffers_are_not_copied():
    ids, ends = np.arange(6, dtype=np.int32), np.array([0, 2, 6])
    array = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(ids))
    found, found_ends = kernels.flatten(array)
    assert np.shares_memory(found, ids)
    assert np.shares_memory(found_ends, ends)
    assert np.shares_memory(kernels.flatten(array[1:])[0], ids)
    assert np.shares_memory(kernels.flatten(pa.chunked_array([array]))[0], ids)
    assert np.shares_memory(kernels.flatten(ids.reshape(2, 3))[0], ids)


@pytest.mark.parametrize("dtype", [np.uint8, ">i4", np.int32, np.int64])
def test_matrices(impl, dtype):
    matrix = np.arange(12, dtype=dtype).reshape(4, 3)
    for whole in (matrix, matrix[::-2], matrix.T, matrix[:, :0], matrix[:0]):
        ids, ends = impl.flatten(whole)
        assert (ids.dtype, ends.dtype) == (np.int32, np.int64)
        assert kernels.unflatten(ids, ends) == whole.tolist()


def test_matrices_that_are_none(impl):
    for whole, error, message in [
        (np.array([[1], [2**31]]), ValueError, "row 1, item 0 is 2147483648, beyond int32"),
        (np.array([[1.0]]), TypeError, "row 0, item 0 is float64, not an int"),
        (np.array([1]), TypeError, "row 0 is int64, not a sequence of int"),
        (np.array([[[1]]]), TypeError, "row 0, item 0 is ndarray, not an int"),
        (np.array(1), TypeError, "iteration over a 0-d array"),
    ]:
        with pytest.raises(error) as caught:
            impl.flatten(whole)
        assert str(caught.value) == message


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
        ([[np.True_]], TypeError, f"row 0, item 0 is {np.bool_.__name__}, not an int"),
        ([[np.timedelta64(1)]], TypeError, "row 0, item 0 is timedelta64, not an int"),
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
        ([np.ma.array([1], mask=[1])], TypeError, "row 0, item 0 is MaskedConstant, not an int"),
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


@pytest.mark.parametrize("place", [0, 1, 15, 16, 17, 39])
def test_an_item_of_another_kind_at_every_place(impl, place):
    """Plain ints are read many at a time; what stands between them is not overlooked."""
    for item, value in [(np.int16(-5), -5), (2**30, 2**30), (-(2**31), -(2**31)), (0, 0)]:
        row = list(range(-20, 20))
        row[place] = item
        expected = [*range(-20, 20)]
        expected[place] = value
        for whole in (row, tuple(row)):
            assert impl.flatten([whole, whole])[0].tolist() == expected * 2
    row = list(range(40))
    row[place] = "a"
    with pytest.raises(TypeError, match=rf"^row 1, item {place} is str, not an int$"):
        impl.flatten([[1], row])
