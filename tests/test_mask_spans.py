"""Owns the tests of `mask_spans`: character spans and token extents to a loss mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree


def mask(impl, extents, spans):
    made = impl.mask_spans(extents, [0, len(extents)], spans, [0, len(spans)])
    assert made.dtype == np.uint8
    return made.tolist()


def test_one_shared_character_is_enough(impl):
    extents = [[0, 3], [3, 5], [5, 9], [9, 12]]
    assert mask(impl, extents, [[3, 5]]) == [0, 1, 0, 0]
    assert mask(impl, extents, [[4, 6]]) == [0, 1, 1, 0]
    assert mask(impl, extents, [[2, 3], [9, 10]]) == [1, 0, 0, 1]
    assert mask(impl, extents, [[0, 12]]) == [1, 1, 1, 1]
    assert mask(impl, extents, [[12, 20]]) == [0, 0, 0, 0]


def test_zero_width_never(impl):
    assert mask(impl, [[0, 0], [0, 2], [1, 1], [2, 2]], [[0, 2]]) == [0, 1, 0, 0]
    assert mask(impl, [[0, 4]], [[2, 2]]) == [0]
    assert mask(impl, [[2, 2]], [[2, 2]]) == [0]


def test_spans_in_any_order_and_overlapping(impl):
    extents = [[i, i + 1] for i in range(8)]
    assert mask(impl, extents, [[5, 7], [0, 2], [1, 3], [6, 6]]) == [1, 1, 1, 0, 0, 1, 1, 0]


def test_extents_in_any_order(impl):
    """Byte tokens share a character's extent, and some tokenizers step back."""
    assert mask(impl, [[4, 5], [0, 1], [4, 5], [0, 9], [1, 2]], [[0, 1], [4, 5]]) == [1, 1, 1, 1, 0]


def test_rows_do_not_see_each_other(impl):
    made = impl.mask_spans(
        [[0, 1], [1, 2], [0, 1], [1, 2]], [0, 2, 2, 4], [[0, 1], [0, 9], [1, 2]], [0, 1, 2, 3]
    )
    assert made.tolist() == [1, 0, 0, 1]


def test_nothing(impl):
    assert impl.mask_spans([], [0], [], [0]).tolist() == []
    assert impl.mask_spans(np.zeros((0, 2), np.int64), [0, 0], [[0, 1]], [0, 1]).tolist() == []


@pytest.mark.parametrize("shift", range(3))
def test_into_memory_that_is_there(impl, shift):
    extents, ends = [[i, i + 1] for i in range(250)], [0, 40, 40, 43, 250]
    given = extents, ends, [[3, 9], [41, 42], [60, 99]], [0, 1, 1, 2, 3]
    agree.written_into(shift, lambda **kwargs: impl.mask_spans(*given, **kwargs))


EXTENTS = np.array([[0, 1], [1, 2], [2, 3]], np.int64)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([0, 0, 0], TypeError, "out is list, not a NumPy array"),
        (np.zeros(3, bool), TypeError, "out has dtype bool, not uint8"),
        (np.zeros(6, np.uint8)[::2], TypeError, "out is not C-contiguous and aligned"),
        (np.zeros(2, np.uint8), ValueError, "out has room for 2 tokens, not 3"),
        (np.frombuffer(bytes(3), np.uint8), ValueError, "out is read-only"),
        (EXTENTS.view(np.uint8).ravel()[:3], ValueError, "out shares memory with another array"),
    ],
)
def test_an_out_that_does_not_fit(impl, out, error, message):
    with pytest.raises(error) as caught:
        impl.mask_spans(EXTENTS, [0, 3], [[0, 1]], [0, 1], out=out)
    assert str(caught.value) == message


def test_characters_beyond_int32(impl):
    most = 2**63 - 1
    assert mask(impl, [[2**40, 2**62]], [[2**61, most]]) == [1]
    extents = [[0, 1], [most - 1, most], [most, most]] * 3
    assert mask(impl, extents, []) == [0] * 9
    assert mask(impl, extents, [[most - 1, most]]) == [0, 1, 0] * 3
    assert mask(impl, extents, [[0, most]]) == [1, 1, 0] * 3


@pytest.mark.parametrize("place", range(20))
@pytest.mark.parametrize("bad", [[5, 4], [-1, 3], [-3, -2], [2**62, -(2**62)]])
def test_a_bad_extent_at_every_place(impl, place, bad):
    """The first by row is named, whichever thread meets one first."""
    extents = [[i, i + 1] for i in range(20)] * 4
    for row in (1, 2, 3):
        extents[20 * row + place] = bad
    with pytest.raises(ValueError) as caught:
        impl.mask_spans(
            extents, range(0, 81, 20), [[3, 9], [12, 14]], [0, 0, 2, 2, 2], threads=place % 5 + 1
        )
    assert str(caught.value) == f"row 1, token {place} has extent [{bad[0]}, {bad[1]})"


def test_a_row_is_refused_for_its_extents_first(impl):
    with pytest.raises(ValueError, match=r"^row 0, token 1 has extent \[2, 1\)$"):
        impl.mask_spans([[0, 1], [2, 1], [9, 8]], [0, 2, 3], [[4, 3]], [0, 1, 1], threads=2)
    with pytest.raises(ValueError, match=r"^row 0, span 0 is \[4, 3\)$"):
        impl.mask_spans([[0, 1], [9, 8]], [0, 1, 2], [[4, 3]], [0, 1, 1], threads=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[3, 2]], [0, 0, 1], [], [0, 0, 0]), ValueError, "row 1, token 0 has extent [3, 2)"),
        (([[-1, 2]], [0, 1], [], [0, 0]), ValueError, "row 0, token 0 has extent [-1, 2)"),
        (([[0, 2]], [0, 1], [[0, 1], [5, 4]], [0, 2]), ValueError, "row 0, span 1 is [5, 4)"),
        (([[0, 2]], [0, 1], [], [0]), ValueError, "offsets has 1 rows, but span_offsets has 0"),
        (([[0, 2]], [0, 2], [], [0]), ValueError, "offsets ends at 2, not 1"),
        (([[0, 2]], [0, 1], [], [0, 1]), ValueError, "span_offsets ends at 1, not 0"),
        (([[0, 2]], [0, 1], [], [0, 0, 0]), ValueError,
         "offsets has 1 rows, but span_offsets has 2"),
        (([0, 2], [0, 1], [], [0, 0]), TypeError, "extents[0] is not a pair of int"),
        (([[0, 2.0]], [0, 1], [], [0, 0]), TypeError, "extents[0] is float, not an int"),
        ((np.zeros((1, 3), int), [0, 1], [], [0, 0]), TypeError,
         "extents has shape (1, 3), not [n, 2]"),
        ((np.zeros((1, 2)), [0, 1], [], [0, 0]), TypeError,
         "extents has dtype float64, not int32 or int64"),
    ],
)  # fmt: skip
def test_refusals(impl, arguments, error, message):
    with pytest.raises(error) as caught:
        impl.mask_spans(*arguments)
    assert str(caught.value) == message


def test_threads_are_at_least_one(impl):
    with pytest.raises(ValueError, match=r"^threads is 0, less than 1$"):
        impl.mask_spans([], [1], [], [0], threads=0)
    with pytest.raises(TypeError, match=r"^threads is float, not an int$"):
        impl.mask_spans([], [1], [], [0], threads=2.0)


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda p: [p[0], sum(p)]))


@settings(deadline=None)
@given(st.lists(st.tuples(PAIRS, PAIRS), max_size=4), st.booleans())
def test_reference_and_core(rows, strided):
    def pairs(which):
        made = np.array([p for row in rows for p in row[which]], np.int64).reshape(-1, 2)
        return np.asfortranarray(made) if strided else made.astype(np.int32)

    offsets = [agree.ragged([len(row[which]) for row in rows]) for which in (0, 1)]
    kind, made = agree.agreed("mask_spans", pairs(0), offsets[0], pairs(1), offsets[1])
    assert kind == "result"
    for row, (extents, spans) in enumerate(rows):
        wanted = {c for a, b in spans for c in range(a, b)}
        found = made[offsets[0][row] : offsets[0][row + 1]].tolist()
        assert found == [int(not wanted.isdisjoint(range(a, b))) for a, b in extents]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=60), min_size=1, max_size=4),
    st.lists(st.integers(0, 120), max_size=8),
    st.integers(1, 5),
)
def test_long_rows_as_tokenizers_make_them(widths, bounds, threads):
    """Token after token, some zero wide, against spans that cut them anywhere."""
    rows = [np.array(row, np.int64) for row in widths]
    extents = [np.stack([np.cumsum(row) - row, np.cumsum(row)], axis=1) for row in rows]
    spans = np.sort(bounds[: len(bounds) // 2 * 2]).astype(np.int64).reshape(-1, 2)
    kind, _ = agree.agreed(
        "mask_spans",
        np.concatenate(extents),
        agree.ragged([len(row) for row in widths]),
        np.tile(spans, (len(widths), 1)),
        np.arange(len(widths) + 1) * len(spans),
        threads=threads,
    )
    assert kind == "result"


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 4), min_size=2, max_size=2), max_size=4),
    st.lists(st.integers(-1, 4), max_size=4),
)
def test_both_refuse_alike(pairs, offsets):
    agree.agreed("mask_spans", pairs, offsets, [[0, 3]], [0, 1])
    agree.agreed("mask_spans", [[0, 3]], [0, 1], pairs, offsets)


def test_70_000_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, 70_000)
    n = int(lengths.sum())
    begin = rng.integers(0, 20, n)
    extents = np.stack([begin, begin + rng.integers(0, 5, n)], axis=1)
    spans = np.tile([[3, 8], [12, 13]], (70_000, 1))
    offsets = agree.ragged(lengths)
    kind, made = agree.agreed(
        "mask_spans", extents, offsets, spans, np.arange(0, 140_001, 2), threads=2
    )
    assert kind == "result"
    assert 0 < made.sum() < n
