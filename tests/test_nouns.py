"""Owns the tests of the array nouns: what Tokens, Plan and Packed accept, hold and refuse."""

import copy
import pickle

import numpy as np
import pytest

from turnpack import Packed, Plan, Tokens, kernels


def ids(*values):
    return np.array(values, np.int32)


def mask(*values):
    return np.array(values, np.uint8)


@pytest.fixture
def tokens():
    return Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 2, 2, 3])


def test_tokens_hold_their_arrays():
    input_ids, loss_mask, offsets = ids(7, 8, 9), mask(0, 1, 1), np.array([0, 2, 3])
    made = Tokens(input_ids=input_ids, loss_mask=loss_mask, offsets=offsets)
    assert made.input_ids is input_ids
    assert made.loss_mask is loss_mask
    assert made.offsets is offsets
    assert made.source.tolist() == [0, 1]
    assert made.source.dtype == made.offsets.dtype == made.lengths.dtype == np.int64


def test_tokens_count_rows(tokens):
    assert len(tokens) == 3
    assert tokens.lengths.tolist() == [2, 0, 1]
    assert repr(tokens) == "Tokens(rows=3, tokens=3, targets=2)"


def test_offsets_are_widened():
    for offsets in ([0, 2, 3], (0, 2, 3), np.array([0, 2, 3], np.int32)):
        made = Tokens(ids(7, 8, 9), mask(0, 1, 1), offsets)
        assert made.offsets.dtype == np.int64
        assert made == Tokens(ids(7, 8, 9), mask(0, 1, 1), np.array([0, 2, 3]))


def test_equality_is_by_value(tokens):
    weights = np.ones(3, np.float32)
    assert tokens == Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 2, 2, 3])
    assert tokens != Tokens(ids(7, 8, 8), mask(0, 1, 1), [0, 2, 2, 3])
    assert tokens != Tokens(ids(7, 8, 9), mask(0, 1, 0), [0, 2, 2, 3])
    assert tokens != Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 1, 2, 3])
    assert tokens != Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 2, 2, 3], [0, 1, 3])
    assert tokens != Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 2, 2, 3], None, weights)
    assert tokens != "tokens"
    with pytest.raises(TypeError, match="unhashable"):
        hash(tokens)


def test_nouns_travel(tokens):
    made = kernels.plan([2, 1], 4)
    packed = kernels.pack(Tokens(ids(7, 8, 9), mask(0, 1, 1), [0, 2, 3]), made)
    for noun in (tokens, made, packed):
        assert pickle.loads(pickle.dumps(noun)) == noun
        assert copy.deepcopy(noun) == noun


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": [7, 8, 9]}, TypeError, "input_ids is list, not a NumPy array"),
        ({"input_ids": np.arange(3)}, TypeError, "input_ids has dtype int64, not int32"),
        ({"input_ids": np.arange(3, dtype=">i4")}, TypeError,
         "input_ids has dtype >i4, not int32"),
        ({"input_ids": np.arange(6, dtype=np.int32)[::2]}, TypeError,
         "input_ids is not C-contiguous and aligned"),
        ({"input_ids": np.frombuffer(b"\0" * 13, np.int32, 3, 1)}, TypeError,
         "input_ids is not C-contiguous and aligned"),
        ({"input_ids": np.zeros((3, 1), np.int32)}, TypeError, "input_ids has 2 dimensions, not 1"),
        ({"loss_mask": np.zeros(3, bool)}, TypeError, "loss_mask has dtype bool, not uint8"),
        ({"loss_mask": mask(0, 1)}, ValueError, "loss_mask has 2 entries, not 3"),
        ({"loss_mask": mask(0, 1, 3)}, ValueError, "loss_mask[2] is 3, not 0 or 1"),
        ({"offsets": []}, ValueError, "offsets is empty, it needs at least the 0"),
        ({"offsets": [1, 3]}, ValueError, "offsets starts at 1, not 0"),
        ({"offsets": [0, 2, 1, 3]}, ValueError, "offsets falls from 2 to 1 at 2"),
        ({"offsets": [0, 2]}, ValueError, "offsets ends at 2, not 3"),
        ({"offsets": [0.0, 3.0]}, TypeError, "offsets[0] is float, not an int"),
        ({"source": [1]}, ValueError, "source has 1 entries, not 2"),
        ({"loss_weights": np.ones(3)}, TypeError, "loss_weights has dtype float64, not float32"),
        ({"loss_weights": np.ones(2, np.float32)}, ValueError,
         "loss_weights has 2 entries, not 3"),
    ],
)  # fmt: skip
def test_tokens_refuse(change, error, message):
    arguments = {"input_ids": ids(7, 8, 9), "loss_mask": mask(0, 1, 1), "offsets": [0, 2, 3]}
    with pytest.raises(error) as caught:
        Tokens(**(arguments | change))
    assert str(caught.value) == message


def test_join(tokens):
    other = Tokens(ids(5), mask(1), [0, 0, 1], [40, 41], np.array([0.5], np.float32))
    assert Tokens.join([tokens, tokens]) == Tokens(
        ids(7, 8, 9, 7, 8, 9), mask(0, 1, 1, 0, 1, 1), [0, 2, 2, 3, 5, 5, 6], [0, 1, 2, 0, 1, 2]
    )
    assert Tokens.join([tokens, other]) == Tokens(
        ids(7, 8, 9, 5),
        mask(0, 1, 1, 1),
        [0, 2, 2, 3, 3, 4],
        [0, 1, 2, 40, 41],
        np.array([0, 1, 1, 0.5], np.float32),
    )
    assert Tokens.join([other]) == other
    assert Tokens.join([]) == Tokens(ids(), mask(), [0])


def test_plan_slices():
    whole = Plan([4, 0, 2, 1, 3], [0, 2, 2, 5], [9, 0, 10], 10)
    assert whole[:] == whole
    assert whole[1:] == Plan([2, 1, 3], [0, 0, 3], [0, 10], 10)
    assert whole[:1] == Plan([4, 0], [0, 2], [9], 10)
    assert whole[-1:] == Plan([2, 1, 3], [0, 3], [10], 10)
    assert whole[2:1] == Plan([], [0], [], 10)
    assert whole[9:] == Plan([], [0], [], 10)
    with pytest.raises(ValueError, match=r"^a slice of bins has step 1, not 2$"):
        whole[::2]
    with pytest.raises(TypeError, match=r"^a plan takes a slice of bins, not int$"):
        whole[0]


def test_plan_counts():
    whole = Plan([4, 0, 2, 1, 3], [0, 2, 2, 5], [9, 0, 10], 10)
    assert (whole.num_bins, len(whole), whole.utilization) == (3, 3, 19 / 30)
    assert (Plan([], [0], [], 10).num_bins, Plan([], [0], [], 10).utilization) == (0, 0.0)
    huge = Plan([0, 1, 2], [0, 1, 2, 3], [2**62] * 3, 2**62)
    assert huge.utilization == 1.0
    assert repr(whole) == "Plan(rows=5, bins=3, capacity=10, utilization=0.633)"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fill": [9, 11]}, ValueError, "bin 1 has 11 tokens, more than capacity 10"),
        ({"fill": [-1, 9]}, ValueError, "bin 0 has -1 tokens"),
        ({"fill": [9]}, ValueError, "fill has 1 entries, not 2"),
        ({"rows": [0, 1, 0]}, ValueError, "row 0 is there twice"),
        ({"rows": [2**40, 1, 2**40]}, ValueError, f"row {2**40} is there twice"),
        ({"rows": [0, 1, -2]}, ValueError, "row id -2 is negative"),
        ({"rows": np.zeros(3)}, TypeError, "rows has dtype float64, not int32 or int64"),
        ({"offsets": [0, 2, 4]}, ValueError, "offsets ends at 4, not 3"),
        ({"capacity": 0}, ValueError, "capacity is 0, less than 1"),
        ({"capacity": 10.0}, TypeError, "capacity is float, not an int"),
    ],
)
def test_plan_refuses(change, error, message):
    arguments = {"rows": [0, 2, 1], "offsets": [0, 2, 3], "fill": [9, 4], "capacity": 10}
    with pytest.raises(error) as caught:
        Plan(**(arguments | change))
    assert str(caught.value) == message


def cells(values=((7, 8, 9), (5, 0, 0)), dtype=np.int32):
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": [7]}, TypeError, "input_ids is list, not a NumPy array"),
        ({"input_ids": cells(dtype=np.int16)}, TypeError,
         "input_ids has dtype int16, not int32 or int64"),
        ({"labels": cells(dtype=np.int64)}, TypeError, "labels has dtype int64, not int32"),
        ({"labels": cells().ravel()}, TypeError, "labels has 1 dimensions, not 2"),
        ({"labels": cells()[:1]}, ValueError, "labels has shape (1, 3), not (2, 3)"),
        ({"loss_weights": cells()}, TypeError, "loss_weights has dtype int32, not float32"),
        ({"capacity": 4}, ValueError, "input_ids has shape (2, 3), not (2, 4)"),
        ({"bin_offsets": [0, 2]}, ValueError, "input_ids has shape (2, 3), not (1, 3)"),
        ({"bin_offsets": [0, 1, 3]}, ValueError, "bin_offsets ends at 3, not 2"),
        ({"source": [0]}, ValueError, "source has 1 entries, not 2"),
        ({"rows": [1, 1]}, ValueError, "row 1 is there twice"),
        ({"cu_seqlens": [0, 3, 4]}, ValueError, "cu_seqlens ends at 4, not 6"),
        ({"cu_seqlens": [0, 3, 3, 6]}, ValueError, "segment 1 of cu_seqlens is empty"),
        ({"max_seqlen": 2}, ValueError, "max_seqlen is 2, but the longest segment 3"),
        ({"capacity": 0}, ValueError, "capacity is 0, less than 1"),
    ],
)  # fmt: skip
def test_packed_refuses(change, error, message):
    arguments = {
        "input_ids": cells(),
        "labels": cells(),
        "position_ids": cells(),
        "segment_ids": cells(),
        "rows": [0, 1],
        "source": [0, 1],
        "bin_offsets": [0, 1, 2],
        "cu_seqlens": [0, 3, 4, 6],
        "max_seqlen": 3,
        "loss_weights": None,
        "capacity": 3,
    }
    made = Packed(**arguments)
    assert (made.num_bins, made.layout) == (2, "rows")
    assert repr(made) == "Packed(rows=2, bins=2, capacity=3, layout='rows', dtype=int32)"
    with pytest.raises(error) as caught:
        Packed(**(arguments | change))
    assert str(caught.value) == message
