"""Owns the tests of `pack`: tokens and a plan to bins of cells, by design.md's "Cells"."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree
from turnpack import Plan, Tokens, kernels, plan, reference
from turnpack.nouns import CELLS

NO = -100


def tokens_of(lengths, *, weighted=False, seed=0, source=None):
    rng = np.random.default_rng(seed)
    n = int(np.sum(lengths, dtype=np.int64))
    return Tokens(
        rng.integers(0, 150_000, n).astype(np.int32),
        rng.integers(0, 2, n).astype(np.uint8),
        agree.ragged(lengths),
        source,
        rng.random(n, np.float32) if weighted else None,
    )


@pytest.fixture
def example():
    """Rows of 3, 2 and 4 tokens; the first of row 2 is marked a target, but nothing predicts it."""
    tokens = Tokens(
        np.array([10, 11, 12, 20, 21, 30, 31, 32, 33], np.int32),
        np.array([0, 1, 1, 0, 1, 1, 0, 0, 1], np.uint8),
        [0, 3, 5, 9],
        [70, 80, 90],
        np.arange(1, 10).astype(np.float32) / 2,
    )
    return tokens, Plan([2, 1, 0], [0, 2, 3], [6, 3], 7)


def test_rows_by_hand(impl, example):
    packed = impl.pack(*example, pad_id=5)
    assert packed.input_ids.tolist() == [[30, 31, 32, 33, 20, 21, 5], [10, 11, 12, 5, 5, 5, 5]]
    assert packed.labels.tolist() == [
        [NO, NO, NO, 33, NO, 21, NO],
        [NO, 11, 12, NO, NO, NO, NO],
    ]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 1, 2, 3]]
    assert packed.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0]]
    assert packed.loss_weights.tolist() == [
        [0, 3.5, 4.0, 4.5, 0, 2.5, 0],
        [0, 1.0, 1.5, 0, 0, 0, 0],
    ]
    assert packed.rows.tolist() == [2, 1, 0]
    assert packed.source.tolist() == [90, 80, 70]
    assert packed.bin_offsets.tolist() == [0, 2, 3]
    assert packed.cu_seqlens.tolist() == [0, 4, 6, 7, 10, 14]
    assert (packed.max_seqlen, packed.capacity, packed.num_bins) == (4, 7, 2)
    assert packed.layout == "rows"
    assert packed.loss_weights.dtype == np.float32
    assert {getattr(packed, name).dtype for name in CELLS} == {np.dtype(np.int32)}


def test_flat_by_hand(impl, example):
    packed = impl.pack(*example, layout="flat", dtype=np.int64)
    assert packed.input_ids.tolist() == [30, 31, 32, 33, 20, 21, 10, 11, 12]
    assert packed.labels.tolist() == [NO, NO, NO, 33, NO, 21, NO, 11, 12]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert packed.segment_ids.tolist() == [1, 1, 1, 1, 2, 2, 1, 1, 1]
    assert packed.cu_seqlens.tolist() == [0, 4, 6, 9]
    assert packed.layout == "flat"
    assert {getattr(packed, name).dtype for name in CELLS} == {np.dtype(np.int64)}


def test_padding_with_eos_keeps_eos_learned(impl):
    """Positions decide: the pad id may be an id that is a target."""
    tokens = Tokens(np.array([7, 2], np.int32), np.array([0, 1], np.uint8), [0, 2])
    packed = impl.pack(tokens, Plan([0], [0, 1], [2], 4), pad_id=2)
    assert packed.input_ids.tolist() == [[7, 2, 2, 2]]
    assert packed.labels.tolist() == [[NO, 2, NO, NO]]


def test_a_full_bin_has_no_empty_segment(impl):
    packed = impl.pack(tokens_of([4, 4]), plan([4, 4], 4))
    assert packed.cu_seqlens.tolist() == [0, 4, 8]
    assert packed.max_seqlen == 4


def test_nothing_and_a_bin_of_nothing(impl):
    none = impl.pack(tokens_of([]), plan([], 4))
    assert none.input_ids.shape == (0, 4)
    assert none.cu_seqlens.tolist() == [0]
    assert none.max_seqlen == 0
    assert impl.pack(tokens_of([]), plan([], 4), layout="flat").labels.shape == (0,)
    padding = impl.pack(tokens_of([3]), Plan([], [0, 0], [0], 4))
    assert padding.segment_ids.tolist() == [[0] * 4]
    assert padding.cu_seqlens.tolist() == [0, 4]


def test_some_rows_only(impl):
    tokens = tokens_of([3, 2, 4], source=[5, 6, 7])
    packed = impl.pack(tokens, Plan([2], [0, 1], [4], 4))
    assert packed.input_ids.tolist() == [tokens.input_ids[5:].tolist()]
    assert packed.source.tolist() == [7]


def test_read_only_tokens(impl, example):
    tokens, made = example
    expected = impl.pack(tokens, made)
    for array in (tokens.input_ids, tokens.loss_mask, tokens.offsets, tokens.loss_weights):
        array.flags.writeable = False
    assert impl.pack(tokens, made) == expected


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [False, True])
def test_out_is_overwritten(impl, layout, dtype, weighted):
    lengths = [5, 3, 2, 6, 1]
    made = plan(lengths, 8)
    first = tokens_of(lengths, weighted=weighted)
    second = tokens_of(lengths, weighted=weighted, seed=1)
    kwargs = {"layout": layout, "dtype": dtype}
    out = impl.pack(first, made, **kwargs)
    expected = impl.pack(second, made, **kwargs)
    assert out != expected
    again = impl.pack(second, made, out=out, **kwargs)
    assert again == expected
    for name in CELLS + (("loss_weights",) if weighted else ()):
        assert getattr(again, name) is getattr(out, name)


@pytest.mark.parametrize(("rows", "step"), [(1, 64), (2**12, 64), (2**18, 2**21)])
def test_new_memory_begins_with_a_line_or_a_huge_page(rows, step):
    packed = kernels.pack(tokens_of([4] * rows), plan([4] * rows, 4))
    places = [getattr(packed, name).ctypes.data for name in CELLS]
    assert [place % step for place in places] == [0] * len(CELLS)


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_out_of_any_alignment(impl, layout, dtype):
    """Streaming stores need lines of 64 bytes: the edges of an `out` are not to be overrun."""
    lengths = [700, 300, 20, 1, 333, 95, 64, 8, 31, 60]
    tokens = tokens_of(lengths, weighted=True)
    made = plan(lengths, 703)
    expected = reference.pack(tokens, made, layout=layout, dtype=dtype)
    shape = expected.labels.shape
    for shift in range(17):
        out = impl.pack(tokens, made, layout=layout, dtype=dtype)
        memory = {}
        for i, name in enumerate((*CELLS, "loss_weights")):
            whole = np.full(64 + expected.labels.size, 77, getattr(out, name).dtype)
            begin = (shift + 3 * i) % 17
            memory[name] = whole, begin, begin + expected.labels.size
            with_cells(out, **{name: whole[begin : memory[name][2]].reshape(shape)})
        assert impl.pack(tokens, made, layout=layout, dtype=dtype, out=out, threads=2) == expected
        for whole, begin, end in memory.values():
            assert (whole[:begin] == 77).all()
            assert (whole[end:] == 77).all()


def with_cells(packed, **cells):
    for name, value in cells.items():
        object.__setattr__(packed, name, value)
    return packed


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


OUTS = [
    (lambda p: 5, TypeError, "out is int, not Packed"),
    (lambda p: with_cells(p, labels=p.labels.astype(np.int64)), TypeError,
     "out.labels has dtype int64, not int32"),
    (lambda p: with_cells(p, labels=p.labels.ravel()), TypeError,
     "out.labels has 1 dimensions, not 2"),
    (lambda p: with_cells(p, labels=p.labels.T), TypeError,
     "out.labels is not C-contiguous and aligned"),
    (lambda p: with_cells(p, segment_ids=p.segment_ids[1:]), ValueError,
     "out.segment_ids has shape (1, 7), not (2, 7)"),
    (lambda p: with_cells(p, input_ids=read_only(p.input_ids)), ValueError,
     "out.input_ids is read-only"),
    (lambda p: with_cells(p, labels=p.input_ids), ValueError,
     "out.labels shares memory with another array"),
    (lambda p: with_cells(p, loss_weights=None), TypeError,
     "out.loss_weights is NoneType, not a NumPy array"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), OUTS)
def test_an_out_that_does_not_fit(impl, example, change, error, message):
    out = change(impl.pack(*example))
    with pytest.raises(error) as caught:
        impl.pack(*example, out=out)
    assert str(caught.value) == message


def test_out_may_not_be_the_input(impl, example):
    tokens, made = example
    out = impl.pack(*example)
    shared = with_cells(tokens, input_ids=out.labels.ravel()[:9])
    with pytest.raises(ValueError, match=r"^out.labels shares memory with another array$"):
        impl.pack(shared, made, out=out)


def forced(noun, **values):
    """A noun whose invariants somebody broke afterwards."""
    return with_cells(noun, **{name: np.array(value) for name, value in values.items()})


REFUSALS = [
    ({"threads": 0}, ValueError, "threads is 0, less than 1"),
    ({"pad_id": 2**31}, ValueError, "pad_id is 2147483648, beyond int32"),
    ({"pad_id": None}, TypeError, "pad_id is NoneType, not an int"),
    ({"layout": "columns"}, ValueError, "unknown layout 'columns': rows, flat"),
    ({"dtype": np.float32}, TypeError, "dtype is float32, not int32 or int64"),
    ({"dtype": "cells"}, TypeError, "dtype is cells, not int32 or int64"),
    ({"dtype": ">i4"}, TypeError, "dtype is >i4, not int32 or int64"),
    ({"tokens": []}, TypeError, "tokens is list, not Tokens"),
    ({"plan": []}, TypeError, "plan is list, not Plan"),
    ({"plan": Plan([3], [0, 1], [4], 7)}, ValueError,
     "the plan has row 3, but there are 3 rows"),
    ({"plan": forced(Plan([0], [0, 1], [3], 7), rows=[-1])}, ValueError,
     "the plan has row -1, but there are 3 rows"),
    ({"plan": forced(Plan([0, 1], [0, 2], [5], 7), rows=[1, 1])}, ValueError,
     "row 1 is in the plan twice"),
    ({"plan": Plan([0, 1, 2], [0, 3], [7], 7)}, ValueError,
     "bin 0 has 9 tokens, more than capacity 7"),
    ({"plan": Plan([0, 1], [0, 2], [7], 7)}, ValueError,
     "bin 0 has 5 tokens, but 7 in the plan: it was made for other lengths"),
    ({"plan": forced(Plan([0], [0, 1], [3], 7), offsets=[0, 2])}, ValueError,
     "plan.offsets ends at 2, not 1"),
    ({"tokens": forced(tokens_of([3, 2, 4]), offsets=[0, 3, 2, 9])}, ValueError,
     "offsets falls from 3 to 2 at 2"),
    ({"tokens": tokens_of([3, 0, 4])}, ValueError, "row 1 is empty"),
    ({"plan": Plan([0], [0, 1], [3], 2**31 + 1)}, ValueError,
     "bin 0 has 2147483649 cells, too many for int32"),
    ({"plan": Plan([0], [0, 1], [3], 2**62), "dtype": np.int64}, ValueError,
     "bins 0 to 0 have more cells than int64 can count the bytes of"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), REFUSALS)
def test_refusals(impl, example, change, error, message):
    with pytest.raises(error) as caught:
        impl.pack(**({"tokens": example[0], "plan": example[1]} | change))
    assert str(caught.value) == message


def test_more_cells_than_memory(impl):
    if hasattr(impl, "where"):
        return  # torch's allocators have errors of their own
    with pytest.raises(MemoryError):
        impl.pack(tokens_of([3]), Plan([0], [0, 1], [3], 2**58), dtype=np.int64)


def test_pack_is_flat_for_any_capacity(impl):
    packed = impl.pack(tokens_of([3, 2]), plan([3, 2], 2**62), layout="flat")
    assert packed.cu_seqlens.tolist() == [0, 3, 5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 20), max_size=25),
    st.integers(0, 12),
    st.sampled_from(["rows", "flat"]),
    st.sampled_from([np.int32, np.int64]),
    st.booleans(),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_reference_and_core(lengths, more, layout, dtype, weighted, threads, random):
    tokens = tokens_of(lengths, weighted=weighted, seed=random.randint(0, 99))
    whole = plan(lengths, max([1, *lengths]) + more)
    begin = random.randint(0, whole.num_bins)
    made = whole[begin : random.randint(begin, whole.num_bins)] if random.random() < 0.3 else whole
    kwargs = {"pad_id": -1, "layout": layout, "dtype": dtype, "threads": threads}
    kind, packed = agree.agreed("pack", tokens, made, **kwargs)
    assert kind == "result"
    for lanes in (1, 32):
        assert agree.pack_by_lanes(lanes)(tokens, made, **kwargs) == packed
    # Conservation: every placed token is in one cell, every target but a row's first is a label.
    placed = np.isin(np.arange(len(lengths)), made.rows).repeat(lengths)
    first = np.zeros(len(placed), bool)
    first[tokens.offsets[:-1]] = True
    inside = packed.segment_ids > 0
    assert np.count_nonzero(inside) == np.count_nonzero(placed)
    targets = tokens.input_ids[placed & ~first & (tokens.loss_mask == 1)]
    assert np.array_equal(np.sort(packed.labels[packed.labels != NO]), np.sort(targets))
    ids = np.sort(packed.input_ids[inside])
    assert np.array_equal(ids, np.sort(tokens.input_ids[placed]))
    # What a trainer derives from position_ids is what cu_seqlens says.
    starts = np.flatnonzero(packed.position_ids.ravel() == 0)
    assert np.array_equal(starts, packed.cu_seqlens[:-1])
    assert packed.max_seqlen == np.diff(packed.cu_seqlens).max(initial=0)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 5), max_size=4, unique=True)
)
def test_both_refuse_alike(lengths, rows):
    """A plan that was made for other rows, of three tokens each."""
    made = Plan(rows, np.arange(len(rows) + 1), [3] * len(rows), 3)
    agree.agreed("pack", tokens_of(lengths), made)


def test_70_000_rows():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 12, 70_000)
    tokens = tokens_of(lengths)
    kind, packed = agree.agreed("pack", tokens, plan(lengths, 64), threads=2)
    assert kind == "result"
    assert kernels.pack(tokens, plan(lengths, 64)) == packed
