"""Owns the tests of `unpack`: bins of cells to the tokens they were packed from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree
from test_pack import forced, tokens_of
from turnpack import Packed, Plan, Tokens, kernels, plan


def nothing_to_lose(tokens):
    """The same tokens with no target at the first place of a row: what pack cannot keep."""
    first = tokens.offsets[:-1][tokens.lengths > 0]
    tokens.loss_mask[first] = 0
    if tokens.loss_weights is not None:
        tokens.loss_weights[first] = 0
    return tokens


def test_by_hand(impl):
    packed = Packed(
        np.array([[30, 31, 20, 21, 0], [10, 11, 12, 0, 0]], np.int32),
        np.array([[-100, 31, -100, -100, 9], [-100, -100, 12, -100, -100]], np.int32),
        np.array([[0, 1, 0, 1, 0], [0, 1, 2, 0, 1]], np.int32),
        np.array([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32),
        [9, 4, 2],
        [90, 40, 20],
        [0, 2, 3],
        [0, 2, 4, 5, 8, 10],
        3,
        None,
        5,
    )
    assert impl.unpack(packed) == Tokens(
        np.array([10, 11, 12, 20, 21, 30, 31], np.int32),
        np.array([0, 0, 1, 0, 0, 0, 1], np.uint8),
        [0, 3, 5, 7],
        [20, 40, 90],
    )


def test_only_the_first_target_of_a_row_is_lost(impl):
    tokens = Tokens(np.array([7, 8, 9], np.int32), np.ones(3, np.uint8), [0, 2, 3])
    back = impl.unpack(kernels.pack(tokens, plan(tokens.lengths, 4)))
    assert back.loss_mask.tolist() == [0, 1, 0]
    assert back.input_ids.tolist() == [7, 8, 9]


def test_a_row_of_the_slice_only(impl):
    tokens = nothing_to_lose(tokens_of([3, 2, 4, 1], source=[9, 8, 7, 6]))
    whole = plan(tokens.lengths, 5)
    back = impl.unpack(kernels.pack(tokens, whole[:1]))
    assert back.source.tolist() == [7, 6]
    assert back.input_ids.tolist() == tokens.input_ids[5:].tolist()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 20), max_size=25),
    st.integers(0, 12),
    st.sampled_from(["rows", "flat"]),
    st.sampled_from([np.int32, np.int64]),
    st.booleans(),
    st.integers(1, 4),
)
def test_there_and_back(lengths, more, layout, dtype, weighted, threads):
    source = np.arange(len(lengths))[::-1] * 3
    tokens = nothing_to_lose(tokens_of(lengths, weighted=weighted, source=source.copy()))
    made = plan(lengths, max([1, *lengths]) + more)
    packed = kernels.pack(tokens, made, layout=layout, dtype=dtype)
    assert agree.agreed("unpack", packed, threads=threads) == ("result", tokens)


def example(layout="rows", dtype=np.int32):
    tokens = tokens_of([3, 2, 4])
    return kernels.pack(tokens, Plan([2, 1, 0], [0, 2, 3], [6, 3], 7), layout=layout, dtype=dtype)


REFUSALS = [
    ([], {}, TypeError, "packed is list, not Packed"),
    (example(), {"threads": 0}, ValueError, "threads is 0, less than 1"),
    (example(), {"threads": 1.0}, TypeError, "threads is float, not an int"),
    (forced(example(), rows=[2, 1, 2]), {}, ValueError, "row 2 is in the bins twice"),
    (forced(example(), bin_offsets=[0, 2]), {}, ValueError, "bin_offsets ends at 2, not 3"),
    (forced(example(), cu_seqlens=[0, 4, 13]), {}, ValueError, "cu_seqlens ends at 13, not 14"),
    (forced(example(), cu_seqlens=[0, 14]), {}, ValueError,
     "bin 0 has 2 rows, but cu_seqlens has 1 segments left"),
    (forced(example(), cu_seqlens=[0, 4, 6, 8, 10, 14]), {}, ValueError,
     "bin 0 has 8 cells by cu_seqlens, not 7"),
    (forced(example(), bin_offsets=[0, 3, 3]), {}, ValueError,
     "bin 1 has 3 cells by cu_seqlens, not 7"),
    (forced(example("flat"), cu_seqlens=[0, 3, 4, 6, 9]), {}, ValueError,
     "cu_seqlens has 4 segments, but the bins have 3"),
    (forced(example(dtype=np.int64), input_ids=np.full((2, 7), 2**40)), {}, ValueError,
     "cell 7 holds 1099511627776, beyond int32"),
]  # fmt: skip


@pytest.mark.parametrize(("packed", "kwargs", "error", "message"), REFUSALS)
def test_refusals(impl, packed, kwargs, error, message):
    if hasattr(impl, "where") and "beyond int32" in message:
        return  # a device does not look for it
    with pytest.raises(error) as caught:
        impl.unpack(packed, **kwargs)
    assert str(caught.value) == message


@settings(deadline=None)
@given(
    st.lists(st.integers(-1, 4), max_size=4),
    st.lists(st.integers(-1, 15), max_size=6).map(sorted),
    st.sampled_from(["rows", "flat"]),
)
def test_both_refuse_alike(bin_offsets, cu_seqlens, layout):
    bin_offsets = np.array([0, *bin_offsets, 3], np.int64)
    cells = 14 if layout == "rows" else 9
    cu_seqlens = np.array([0, *cu_seqlens, cells], np.int64)
    broken = forced(example(layout), bin_offsets=bin_offsets, cu_seqlens=cu_seqlens)
    agree.agreed("unpack", broken)


def test_70_000_rows():
    lengths = np.random.default_rng(3).integers(1, 12, 70_000)
    tokens = nothing_to_lose(tokens_of(lengths))
    packed = kernels.pack(tokens, plan(lengths, 64))
    assert agree.agreed("unpack", packed, threads=2) == ("result", tokens)
