"""Owns the tests of `concat`: turns and roles to rows and their loss mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree
from turnpack import Role, Tokens, reference

BOS, EOS = 1, 2
HUMAN, ASSISTANT = 0, 1


def turns(*ids):
    return np.array(ids, np.int32), list(range(len(ids) + 1))


def test_firefly(impl):
    """`<s>input1</s>target1</s>input2</s>target2</s>`."""
    made = impl.concat(
        *turns(10, 11, 12, 13),
        [HUMAN, ASSISTANT, HUMAN, ASSISTANT],
        [0, 4],
        [Role(suffix=[EOS]), Role(suffix=[EOS], target=True)],
        bos=[BOS],
    )
    assert made.input_ids.tolist() == [BOS, 10, EOS, 11, EOS, 12, EOS, 13, EOS]
    assert made.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1]


def test_linksoul(impl):
    """BOS before each human turn, EOS after each answer."""
    made = impl.concat(
        *turns(10, 11, 12, 13),
        np.array([HUMAN, ASSISTANT, HUMAN, ASSISTANT], np.uint8),
        [0, 4],
        [Role(prefix=[BOS]), Role(suffix=[EOS], target=True)],
    )
    assert made.input_ids.tolist() == [BOS, 10, 11, EOS, BOS, 12, 13, EOS]
    assert made.loss_mask.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_headers_and_an_end_of_the_row(impl):
    """A header is no target; the suffix may differ from its turn, the row's end follows it."""
    made = impl.concat(
        np.array([10, 10, 11, 12], np.int32),
        np.array([0, 2, 3, 3, 4], np.int32),
        [HUMAN, ASSISTANT, ASSISTANT, HUMAN],
        np.array([0, 2, 2, 3, 4]),
        [
            Role(prefix=(5, 6), suffix=(7,), suffix_target=True),
            Role(prefix=(8,), suffix=(9,), target=True, suffix_target=False),
        ],
        bos=np.array([BOS]),
        eos=[EOS],
    )
    assert made == Tokens(
        np.array([1, 5, 6, 10, 10, 7, 8, 11, 9, 2, 1, 2, 1, 8, 9, 2, 1, 5, 6, 12, 7, 2], np.int32),
        np.array([0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], np.uint8),
        [0, 10, 12, 16, 22],
    )


def test_nothing(impl):
    none = np.zeros(0, np.int32)
    assert impl.concat(none, [0], [], [0], []) == Tokens(none, np.zeros(0, np.uint8), [0])
    assert impl.concat(none, [0], [], [0, 0], [], bos=[BOS]).input_ids.tolist() == [BOS]


def memory_for(tokens, shift=0):
    """An `out` with room for so many tokens, and the arrays around its own."""
    ids, mask = np.full(tokens + 40, 77, np.int32), np.full(tokens + 40, 77, np.uint8)
    room = slice(shift, shift + tokens)
    ids[room] = mask[room] = 0
    return Tokens(ids[room], mask[room], [0, tokens]), (ids, mask)


@pytest.mark.parametrize("shift", range(18))
def test_out_of_any_alignment(impl, shift):
    """Streaming stores need lines of 64 bytes: the edges of an `out` are not to be overrun."""
    sizes = [700, 300, 0, 1, 333, 95, 64, 8]
    given = (np.arange(sum(sizes), dtype=np.int32), agree.ragged(sizes), [0, 1] * 4, [0, 2, 6, 8])
    settings = [Role(prefix=[1], suffix=[2, 3]), Role(suffix=[4], target=True)]
    expected = reference.concat(*given, settings)
    size = len(expected.input_ids)
    out, around = memory_for(size, shift)
    made = impl.concat(*given, settings, out=out, threads=2)
    assert made == expected
    for name, whole in zip(("input_ids", "loss_mask"), around, strict=True):
        assert np.shares_memory(getattr(made, name), whole)
        assert (whole[:shift] == 77).all()
        assert (whole[shift + size :] == 77).all()


def test_an_out_with_more_room(impl):
    out, (ids, mask) = memory_for(9)
    made = impl.concat(*turns(10, 11), [0, 1], [0, 2], [Role(), Role(target=True)], out=out)
    assert made == Tokens(np.array([10, 11], np.int32), np.array([0, 1], np.uint8), [0, 2])
    assert ids[:9].tolist() == [10, 11] + [0] * 7
    assert mask[:9].tolist() == [0, 1] + [0] * 7


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda ids: Role(), TypeError, "out is Role, not Tokens"),
        (lambda ids: memory_for(2)[0], ValueError, "out.input_ids has room for 2 tokens, not 3"),
        (lambda ids: Tokens(ids, np.zeros(3, np.uint8), [0, 3]), ValueError,
         "out.input_ids shares memory with another array"),
        (lambda ids: Tokens(np.frombuffer(bytes(12), np.int32), np.zeros(3, np.uint8), [0, 3]),
         ValueError, "out.input_ids is read-only"),
    ],
)  # fmt: skip
def test_an_out_that_does_not_fit(impl, change, error, message):
    ids = np.arange(3, dtype=np.int32)
    with pytest.raises(error) as caught:
        impl.concat(ids, [0, 3], [0], [0, 1], [Role()], out=change(ids))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"turn_ids": np.arange(3)}, TypeError, "turn_ids has dtype int64, not int32"),
        ({"turn_ids": [1, 2, 3]}, TypeError, "turn_ids is list, not a NumPy array"),
        ({"turn_offsets": [0, 1]}, ValueError, "turn_offsets ends at 1, not 3"),
        ({"turn_offsets": [0, 2, 1, 3]}, ValueError, "turn_offsets falls from 2 to 1 at 2"),
        ({"roles": [0]}, ValueError, "roles has 1 entries, but there are 2 turns"),
        ({"roles": [0, 2]}, ValueError, "turn 1 has role 2, but there are 2 settings"),
        ({"roles": [-1, 0]}, ValueError, "turn 0 has role -1, but there are 2 settings"),
        ({"roles": [0, 1.0]}, TypeError, "roles[1] is float, not an int"),
        ({"row_offsets": [1, 2]}, ValueError, "row_offsets starts at 1, not 0"),
        ({"row_offsets": []}, ValueError, "row_offsets is empty, it needs at least the 0"),
        ({"row_offsets": np.array([0.0, 2.0])}, TypeError,
         "row_offsets has dtype float64, not int32 or int64"),
        ({"settings": Role()}, TypeError, "settings is Role, not a sequence of Role"),
        ({"settings": [Role(), 5]}, TypeError, "settings[1] is int, not Role"),
        ({"settings": [Role(target=1)]}, TypeError, "settings[0].target is int, not a bool"),
        ({"settings": [Role(prefix=[2**31])]}, ValueError,
         "settings[0].prefix[0] is 2147483648, beyond int32"),
        ({"bos": 1}, TypeError, "bos is int, not a sequence of int"),
        ({"eos": ["a"]}, TypeError, "eos[0] is str, not an int"),
        ({"threads": 0, "turn_offsets": [0, 1]}, ValueError, "threads is 0, less than 1"),
        ({"threads": "2"}, TypeError, "threads is str, not an int"),
    ],
)  # fmt: skip
def test_refusals(impl, change, error, message):
    arguments = {
        "turn_ids": np.arange(3, dtype=np.int32),
        "turn_offsets": [0, 1, 3],
        "roles": [0, 1],
        "row_offsets": [0, 2],
        "settings": [Role(), Role()],
    }
    with pytest.raises(error) as caught:
        impl.concat(**(arguments | change))
    assert str(caught.value) == message


IDS = st.lists(st.integers(0, 9), max_size=3)
ROLES = st.builds(Role, IDS, IDS, st.booleans(), st.none() | st.booleans())


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), IDS), max_size=4), max_size=5),
    st.lists(ROLES, min_size=2, max_size=4),
    IDS,
    IDS,
)
def test_reference_and_core(rows, settings, bos, eos):
    flat = [turn for row in rows for turn in row]
    agree.agreed(
        "concat",
        np.array([i for _, ids in flat for i in ids], np.int32),
        agree.ragged([len(ids) for _, ids in flat]),
        [role for role, _ in flat],
        agree.ragged([len(row) for row in rows]),
        settings,
        bos=bos,
        eos=eos,
    )


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 500), max_size=3), max_size=5),
    st.lists(ROLES, min_size=2, max_size=2),
    st.integers(1, 5),
)
def test_long_turns_and_threads(rows, settings, threads):
    sizes = [size for row in rows for size in row]
    kind, _ = agree.agreed(
        "concat",
        np.arange(sum(sizes), dtype=np.int32),
        agree.ragged(sizes),
        np.arange(len(sizes)) % 2,
        agree.ragged([len(row) for row in rows]),
        settings,
        bos=[BOS],
        threads=threads,
    )
    assert kind == "result"


def test_70_000_rows_of_strided_read_only_input():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 4, 140_000)
    ids = rng.integers(0, 99, sizes.sum()).astype(np.int32)
    ids.flags.writeable = False
    offsets = np.repeat(agree.ragged(sizes).astype(np.int32), 2)[::2]
    settings = [Role(prefix=[1]), Role(suffix=[2], target=True)]
    kind, made = agree.agreed(
        "concat",
        ids,
        offsets,
        np.arange(140_000) % 2,
        np.arange(0, 140_001, 2),
        settings,
        threads=2,
    )
    assert kind == "result"
    assert len(made) == 70_000
    assert len(made.input_ids) == len(ids) + 140_000
