"""Owns the tests of `plan`: lengths to bins, by each strategy's exact rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree
from turnpack import kernels

STRATEGIES = ("best_fit", "first_fit", "in_order")
MAX = 2**63 - 1


def bins(plan):
    return [plan[b : b + 1].rows.tolist() for b in range(plan.num_bins)]


def test_best_fit_by_hand(impl):
    # 6 opens 0 (4 left), 5 opens 1 (5 left), 5 fills 1, 4 fills 0, 3 opens 2.
    made = impl.plan([6, 5, 5, 4, 3], 10)
    assert bins(made) == [[0, 3], [1, 2], [4]]
    assert made.fill.tolist() == [10, 10, 3]
    assert made.utilization == 23 / 30


def test_best_fit_equal_lengths_by_row_id(impl):
    assert bins(impl.plan([3, 4, 3, 4, 3], 7)) == [[1, 0], [3, 2], [4]]


def test_best_fit_takes_the_bin_that_has_had_its_space_longest(impl):
    # 10 opens 0 (5 left), 7 opens 1 (8 left), 6 into 1 (2 left), 3 into 0 (2 left as well, but
    # later): the 1 goes to bin 1.
    assert bins(impl.plan([10, 6, 3, 1, 7], 15)) == [[0, 2], [4, 1, 3]]
    # Two bins opened with 2 left: the first of them.
    assert bins(impl.plan([2, 3, 3], 5)) == [[1, 0], [2]]


def test_first_fit_by_hand(impl):
    # 6 opens 0 (4), 5 opens 1 (5), 4 goes to 0 although 1 was opened with less: lowest number.
    assert bins(impl.plan([5, 6, 1, 4, 3], 10, strategy="first_fit")) == [[1, 3], [0, 4, 2]]
    # Where best_fit would take bin 1 (2 left), first_fit takes bin 0 (3 left).
    assert bins(impl.plan([7, 6, 2, 1, 2], 10, strategy="first_fit")) == [[0, 2, 3], [1, 4]]


def test_in_order_by_hand(impl):
    made = impl.plan([4, 4, 4, 9, 1, 1], 10, strategy="in_order")
    assert bins(made) == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_align_and_max_rows(impl, strategy):
    # 5 takes up 8 of 16, so two share a bin; fill counts what is there.
    made = impl.plan([5, 5, 5], 16, strategy=strategy, align=8)
    assert bins(made) == [[0, 1], [2]]
    assert made.fill.tolist() == [10, 5]
    assert bins(impl.plan([1] * 5, 16, strategy=strategy, max_rows=2)) == [[0, 1], [2, 3], [4]]
    assert bins(impl.plan([1] * 3, 16, strategy=strategy, max_rows=1)) == [[0], [1], [2]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_one_and_exactly_the_capacity(impl, strategy):
    none = impl.plan([], 8, strategy=strategy)
    assert (none.num_bins, none.utilization, none.offsets.tolist()) == (0, 0.0, [0])
    assert bins(impl.plan([1], 8, strategy=strategy)) == [[0]]
    assert bins(impl.plan([8, 8, 1], 8, strategy=strategy)) == [[0], [1], [2]]
    assert bins(impl.plan([1, 1], 1, strategy=strategy)) == [[0], [1]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lengths_of_int64(impl, strategy):
    made = impl.plan([2**62, 2**62 - 1, 2**62], MAX, strategy=strategy)
    assert (
        bins(made)
        == {
            "best_fit": [[0, 1], [2]],
            "first_fit": [[0, 1], [2]],
            "in_order": [[0, 1], [2]],
        }[strategy]
    )
    assert made.fill.tolist() == [MAX, 2**62]
    assert made.utilization == (MAX + 2**62) / (2 * MAX)
    assert bins(impl.plan([MAX, MAX], MAX, strategy=strategy)) == [[0], [1]]
    assert bins(impl.plan([2**40], 2**62, strategy=strategy, align=2**41)) == [[0]]


def test_forms_that_are_widened(impl):
    expected = impl.plan([3, 5, 4], 8)
    for lengths in (
        (3, 5, 4),
        [np.int32(3), 5, np.uint8(4)],
        np.array([3, 5, 4], np.int32),
        np.array([3, 0, 5, 0, 4])[::2],
        np.array([3, 5, 4], ">i8"),
    ):
        if getattr(lengths, "dtype", None) == np.dtype(">i8"):
            with pytest.raises(TypeError, match=r"^lengths has dtype >i8, not int32 or int64$"):
                impl.plan(lengths, 8)
        else:
            assert impl.plan(lengths, 8) == expected
    read_only = np.array([3, 5, 4])
    read_only.flags.writeable = False
    assert impl.plan(read_only, np.int64(8)) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lengths": [4, 9]}, ValueError, "row 1 has 9 tokens, more than capacity 8"),
        ({"lengths": [4, 0, 9]}, ValueError, "row 1 is empty"),
        ({"lengths": [9, 0]}, ValueError, "row 0 has 9 tokens, more than capacity 8"),
        ({"lengths": [-5]}, ValueError, "row 0 has -5 tokens"),
        ({"lengths": [7], "align": 3}, ValueError,
         "row 0 has 7 tokens, 9 aligned to 3, more than capacity 8"),
        ({"lengths": [MAX], "align": 2**62, "capacity": MAX}, ValueError,
         f"row 0 has {MAX} tokens, {2**63} aligned to {2**62}, more than capacity {MAX}"),
        ({"capacity": 0}, ValueError, "capacity is 0, less than 1"),
        ({"capacity": 2**63}, ValueError, f"capacity is {2**63}, beyond int64"),
        ({"capacity": 8.0}, TypeError, "capacity is float, not an int"),
        ({"align": 0}, ValueError, "align is 0, less than 1"),
        ({"max_rows": 0}, ValueError, "max_rows is 0, less than 1"),
        ({"max_rows": True}, TypeError, "max_rows is bool, not an int"),
        ({"capacity": np.timedelta64(8)}, TypeError, "capacity is timedelta64, not an int"),
        ({"threads": 0}, ValueError, "threads is 0, less than 1"),
        ({"threads": 0, "max_rows": -1}, ValueError, "max_rows is -1, less than 1"),
        ({"threads": 0, "lengths": [0]}, ValueError, "threads is 0, less than 1"),
        ({"threads": 1.0}, TypeError, "threads is float, not an int"),
        ({"strategy": "worst_fit"}, ValueError,
         "unknown strategy 'worst_fit': best_fit, first_fit, in_order"),
        ({"strategy": None}, TypeError, "strategy is NoneType, not a str"),
        ({"lengths": 5}, TypeError, "lengths is int, not an array or a sequence of int"),
        ({"lengths": "55"}, TypeError, "lengths is str, not an array or a sequence of int"),
        ({"lengths": [1, 2.0]}, TypeError, "lengths[1] is float, not an int"),
        ({"lengths": [True]}, TypeError, "lengths[0] is bool, not an int"),
        ({"lengths": [1, 2**63]}, ValueError, f"lengths[1] is {2**63}, beyond int64"),
        ({"lengths": np.ones((2, 2), int)}, TypeError, "lengths has shape (2, 2), not [n]"),
        *(
            ({"lengths": np.ones(2, dtype)}, TypeError,
             f"lengths has dtype {np.dtype(dtype)}, not int32 or int64")
            for dtype in (np.float64, np.uint64, np.bool_, object, np.int16)
        ),
    ],
)  # fmt: skip
def test_refusals(impl, arguments, error, message):
    with pytest.raises(error) as caught:
        impl.plan(**({"lengths": [1], "capacity": 8} | arguments))
    assert str(caught.value) == message


def by_the_rule(lengths, capacity, align, max_rows):
    """Best fit as design.md words it, one clock tick for each row placed."""
    made, space, since = [], [], []
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for tick, row in enumerate(order):
        wanted = -(-lengths[row] // align) * align
        fitting = [b for b in range(len(made)) if space[b] >= wanted and len(made[b]) < max_rows]
        if fitting:
            chosen = min(fitting, key=lambda b: (space[b], since[b]))
        else:
            chosen = len(made)
            made.append([])
            space.append(capacity)
            since.append(tick)
        made[chosen].append(row)
        space[chosen] -= wanted
        since[chosen] = tick
    return made


LENGTHS = st.integers(1, 40).flatmap(
    lambda top: st.lists(st.integers(1, top), max_size=40).map(lambda rows: (rows, top))
)


@settings(max_examples=400)
@given(LENGTHS, st.integers(0, 30), st.integers(1, 6), st.none() | st.integers(1, 4))
def test_every_strategy(rows, more, align, max_rows):
    lengths, top = rows
    capacity = -(-top // align) * align + more
    for strategy in STRATEGIES:
        kind, made = agree.agreed(
            "plan", lengths, capacity, strategy=strategy, align=align, max_rows=max_rows
        )
        assert kind == "result"
        assert sorted(made.rows.tolist()) == list(range(len(lengths)))
        for b, placed in enumerate(bins(made)):
            assert sum(lengths[row] for row in placed) == made.fill[b]
            assert sum(-(-lengths[row] // align) * align for row in placed) <= capacity
            assert 1 <= len(placed) <= (max_rows or len(lengths))
        if strategy == "best_fit":
            assert bins(made) == by_the_rule(lengths, capacity, align, max_rows or MAX)
        if strategy == "in_order":
            assert made.rows.tolist() == list(range(len(lengths)))


# A few lengths, many rows of each: whole classes of rows meet whole runs of bins.
CLASSES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=8)


@settings(max_examples=300)
@given(CLASSES, st.integers(0, 90), st.integers(1, 3), st.none() | st.integers(1, 9), st.randoms())
def test_many_rows_of_one_length(classes, more, align, max_rows, random):
    lengths = [length for length, count in classes for _ in range(count)]
    random.shuffle(lengths)
    capacity = -(-max(lengths) // align) * align + more
    for strategy in STRATEGIES:
        kind, made = agree.agreed(
            "plan", lengths, capacity, strategy=strategy, align=align, max_rows=max_rows
        )
        assert kind == "result"
        assert sorted(made.rows.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.sampled_from([2**20, 2**40, 2**55]))
def test_the_unit_of_length_does_not_matter(rows, unit):
    """Also: the plan by an ordered map of spaces is the plan by a table of spaces."""
    lengths, capacity = rows
    small = kernels.plan(lengths, capacity)
    large = agree.agreed("plan", [length * unit for length in lengths], capacity * unit)[1]
    assert large.rows.tolist() == small.rows.tolist()
    assert large.offsets.tolist() == small.offsets.tolist()
    assert large.fill.tolist() == [fill * unit for fill in small.fill.tolist()]


ANY = st.integers(-3, 12) | st.sampled_from([2**31, 2**62, MAX, -(2**63)])


@given(st.lists(ANY, max_size=6), ANY, st.sampled_from(STRATEGIES), ANY, st.none() | ANY)
def test_both_refuse_alike(lengths, capacity, strategy, align, max_rows):
    agree.agreed("plan", lengths, capacity, strategy=strategy, align=align, max_rows=max_rows)


def drawn(rows, top, seed=5):
    """Lognormal lengths up to `top`."""
    found = np.random.default_rng(seed).lognormal(np.log(top / 12), 0.9, rows)
    return np.clip(found, 1, top).astype(np.int64)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("unit", [1, 2**40])
def test_70_000_rows(strategy, unit):
    # Few bins for what is not best fit: the reference looks at each.
    lengths = drawn(70_000, 4096 if strategy == "best_fit" else 64)
    kind, made = agree.agreed("plan", lengths * unit, 4096 * unit, strategy=strategy)
    assert kind == "result"
    assert np.array_equal(np.sort(made.rows), np.arange(70_000))
    assert np.array_equal(np.add.reduceat(lengths[made.rows] * unit, made.offsets[:-1]), made.fill)


@pytest.mark.parametrize("rows", [1000, 100_000])
@pytest.mark.parametrize("capacity", [4096, 131_072])
def test_bins_of_few_rows(rows, capacity):
    """Lengths near the capacity, where runs of bins are short; first fit by few bins at a time."""
    lengths = np.random.default_rng(rows).integers(1, capacity + 1, rows)
    agree.agreed("plan", lengths, capacity)
    agree.agreed("plan", lengths[:1000], capacity, strategy="first_fit")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_make_the_same_plan(strategy):
    lengths = drawn(150_000, 4096)
    lengths[::7] = 500  # a run of bins that threads share
    alone = kernels.plan(lengths, 8192, strategy=strategy)
    for threads in (2, 3, 5, 2**40):
        assert kernels.plan(lengths, 8192, strategy=strategy, threads=threads) == alone
    huge = kernels.plan(lengths * 2**40, 2**53, strategy=strategy, threads=3)
    assert np.array_equal(huge.rows, alone.rows)


@pytest.mark.parametrize("capacity", [4096, 2**40])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_refuse_the_first_bad_row(strategy, capacity):
    lengths = drawn(150_000, 4096)
    lengths[[70_001, 149_999]] = 0, -1
    for threads in (1, 2, 4):
        with pytest.raises(ValueError, match=r"^row 70001 is empty$"):
            kernels.plan(lengths, capacity, strategy=strategy, threads=threads)


def test_a_huge_capacity_takes_no_memory():
    assert kernels.plan(np.ones(1000, np.int64), 2**62).num_bins == 1
    assert kernels.plan(np.ones(1000, np.int64), 2**62, strategy="first_fit").num_bins == 1


def test_masked_lengths_are_refused(impl):
    with pytest.raises(TypeError, match="lengths is a masked array"):
        impl.plan(np.ma.array([1, 2], mask=[0, 1]), 10)
