"""Owns the tests of `Planner`: a stream of lengths to bins, by the rule in kernels.h."""

import json
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agree
import turnpack as tp
from turnpack import kernels, reference

MAX = 2**63 - 1


def bins(plan):
    return [plan[b : b + 1].rows.tolist() for b in range(plan.num_bins)]


def drawn(rows, seed=0):
    """Lengths of chats: lognormal, median 350, sigma 0.9, from 8 to 4,096."""
    found = np.random.default_rng(seed).lognormal(np.log(350), 0.9, rows)
    return np.clip(found, 8, 4096).astype(np.int64)


def test_full_bins_close_and_the_rest_waits(impl):
    planner = impl.Planner(10, window=4)
    nothing = planner.add([5, 3, 7])
    assert (nothing.num_bins, nothing.offsets.tolist(), nothing.capacity) == (0, [0], 10)
    made = planner.add([2])  # 7 and 3, 5 and 2: the first is full, and half of the rows
    assert (bins(made), made.fill.tolist()) == ([[2, 1]], [10])
    assert bins(planner.add([5])) == []
    made = planner.add([1])  # 5 and 5, 2 and 1: numbers go on
    assert (bins(made), made.fill.tolist()) == ([[0, 4]], [10])
    made = planner.flush()
    assert (bins(made), made.fill.tolist()) == ([[3, 5]], [3])
    assert bins(planner.add([9])) == bins(planner.add([])) == []
    assert bins(planner.flush()) == [[6]]
    assert bins(planner.flush()) == []


def test_half_of_the_rows_close_least_space_first(impl):
    # Bins of 9, 8, 7 and 6; none is full. 8 and 9 leave the least, and close in order of number.
    assert bins(impl.Planner(10, window=4).add([6, 7, 8, 9])) == [[3], [2]]
    assert bins(impl.Planner(10, window=5).add([6, 7, 8, 9, 6])) == [[3], [2], [1]]
    # Equal space: the lowest number.
    assert bins(impl.Planner(10, window=2).add([6, 6])) == [[0]]


def test_what_is_due_goes_first_and_closes(impl):
    planner = impl.Planner(10, window=4)
    # Row 0 waits while full bins close around it, until more than 12 rows came after it.
    assert bins(planner.add([7, 10, 10, 10])) == [[1], [2], [3]]
    for first in (4, 7):
        assert bins(planner.add([10] * 3)) == [[first], [first + 1], [first + 2]]
    made = planner.add([10, 10, 9])
    assert bins(made) == [[10], [11]]  # 12 rows came after it, and 9 waits with it
    # Now it is due: placed before the 10, and it would close without the 3 as well.
    assert bins(planner.add([3, 10])) == [[0, 13], [14]]
    assert bins(planner.flush()) == [[12]]


def test_closed_by_rows_and_by_align(impl):
    assert bins(impl.Planner(100, window=4, max_rows=2).add([5, 4, 3, 2])) == [[0, 1], [2, 3]]
    # 7 takes up 8 of 10, and 2 are no unit of 4.
    assert bins(impl.Planner(10, window=3, align=4).add([7, 7, 1])) == [[0], [1]]


def test_a_window_of_one_closes_every_row(impl):
    made = impl.Planner(10, 1).add([3, 10, 4])
    assert bins(made) == [[0], [1], [2]]


def test_a_window_that_never_fills_is_one_plan(impl):
    lengths = drawn(3000)
    planner = impl.Planner(4096, window=MAX)
    assert planner.add(lengths).num_bins == 0
    assert planner.flush() == impl_plan(impl)(lengths, 4096)


def impl_plan(impl):
    return {kernels.Planner: kernels.plan, reference.Planner: reference.plan}[impl.Planner]


def test_lengths_of_int64(impl):
    planner = impl.Planner(MAX, window=3)
    made = planner.add([2**62, 2**62 - 1, 2**62])
    assert (bins(made), made.fill.tolist()) == ([[0, 1]], [MAX])
    assert planner.flush().fill.tolist() == [2**62]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity is 0, less than 1"),
        ({"capacity": 2**63}, ValueError, f"capacity is {2**63}, beyond int64"),
        ({"capacity": "8"}, TypeError, "capacity is str, not an int"),
        ({"window": 0}, ValueError, "window is 0, less than 1"),
        ({"window": 4.0}, TypeError, "window is float, not an int"),
        ({"window": -1, "align": 0}, ValueError, "window is -1, less than 1"),
        ({"align": 0, "max_rows": 0}, ValueError, "align is 0, less than 1"),
        ({"max_rows": 0}, ValueError, "max_rows is 0, less than 1"),
    ],
)
def test_settings_that_are_refused(impl, arguments, error, message):
    with pytest.raises(error) as caught:
        impl.Planner(**({"capacity": 8} | arguments))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([1, 9], ValueError, "row 4 has 9 tokens, more than capacity 8"),
        ([1, 1, 1, 1, 1, 0], ValueError, "row 8 is empty"),
        ([-2], ValueError, "row 3 has -2 tokens"),
        ([-(2**63)], ValueError, f"row 3 has {-(2**63)} tokens"),
        ([1.0], TypeError, "lengths[0] is float, not an int"),
        (np.ones(1, np.uint32), TypeError, "lengths has dtype uint32, not int32 or int64"),
        ("1", TypeError, "lengths is str, not an array or a sequence of int"),
    ],
)
def test_rows_that_are_refused_leave_the_planner_as_it_was(impl, lengths, error, message):
    planner = impl.Planner(8, window=4)
    planner.add([3, 2, 1])
    before = planner.state_dict()
    with pytest.raises(error) as caught:
        planner.add(lengths)
    assert str(caught.value) == message
    assert planner.state_dict() == before
    assert bins(planner.add([4])) == [[3, 0, 2]]


def test_aligned_rows_that_are_refused(impl):
    with pytest.raises(ValueError, match=r"^row 1 has 7 tokens, 9 aligned to 3, more than cap"):
        impl.Planner(8, align=3).add([1, 7])


def test_state(impl):
    planner = impl.Planner(8, 4, max_rows=3)
    planner.add([8, 3, 1, 8, 2])
    state = planner.state_dict()
    assert state == {
        "capacity": 8,
        "window": 4,
        "align": 1,
        "max_rows": 3,
        "rows": 5,
        "waiting": [1, 2, 4],
        "lengths": [3, 1, 2],
    }
    state = json.loads(json.dumps(state))
    planner.add([5])  # what is loaded takes the place of this
    planner.load_state_dict(state)
    other = impl.Planner(8, 4, max_rows=3)
    other.load_state_dict(state | {"waiting": np.array([1, 2, 4]), "rows": np.int64(5)})
    for each in (pickle.loads(pickle.dumps(planner)), planner, other):
        assert each.state_dict() == state
        assert bins(each.add([2])) == [[1, 4, 5]]
        assert bins(each.flush()) == [[2]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"capacity": 16}, ValueError, "state is of capacity 16, not 8"),
        ({"max_rows": 2}, ValueError, "state is of max_rows 2, not None"),
        ({"rows": 4}, ValueError, "row 4 waits, but there were 4 rows"),
        ({"rows": -1, "waiting": [], "lengths": []}, ValueError, "rows is -1, less than 0"),
        ({"rows": 5.0}, TypeError, "rows is float, not an int"),
        ({"waiting": [4, 1]}, ValueError, "row 1 comes after row 4"),
        ({"waiting": [4, 4]}, ValueError, "row 4 comes after row 4"),
        ({"waiting": [-1, 4]}, ValueError, "row id -1 is negative"),
        ({"waiting": [4]}, ValueError, "lengths has 2 entries, not 1"),
        ({"waiting": [0, 1, 2], "lengths": [1, 1, 1]}, ValueError,
         "3 rows wait, but the window is 3"),
        ({"lengths": [3, 0]}, ValueError, "row 4 is empty"),
        ({"lengths": [9, 3]}, ValueError, "row 1 has 9 tokens, more than capacity 8"),
        ({"lengths": None}, TypeError, "lengths is NoneType, not an array or a sequence of int"),
    ],
)  # fmt: skip
def test_states_that_are_refused(impl, change, error, message):
    planner = impl.Planner(8, 3)
    planner.add([7])
    before = planner.state_dict()
    given = before | {"rows": 5, "waiting": [1, 4], "lengths": [3, 3]} | change
    with pytest.raises(error) as caught:
        planner.load_state_dict(given)
    assert str(caught.value) == message
    assert planner.state_dict() == before


def test_no_state_at_all(impl):
    planner = impl.Planner(8)
    with pytest.raises(TypeError, match=r"^state is list, not Mapping$"):
        planner.load_state_dict([])
    for name in planner.state_dict():
        state = planner.state_dict()
        del state[name]
        with pytest.raises(ValueError, match=rf"^state has no {name}$"):
            planner.load_state_dict(state)


def test_no_more_rows_than_int64_can_number(impl):
    planner = impl.Planner(8)
    planner.load_state_dict(planner.state_dict() | {"rows": MAX - 1})
    with pytest.raises(ValueError, match=rf"^{MAX - 1} \+ 2 is beyond int64$"):
        planner.add([1, 1])
    planner.add([1])
    assert bins(planner.flush()) == [[MAX - 1]]


STREAMS = st.integers(1, 30).flatmap(
    lambda top: st.tuples(st.just(top), st.lists(st.integers(1, top), max_size=120))
)
# What is done after each chunk of a stream.
CHUNKS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["", "", "flush", "reload", "bad"]))
)


@settings(max_examples=300)
@given(STREAMS, st.integers(0, 30), st.integers(1, 12), st.integers(1, 4),
       st.none() | st.integers(1, 4), CHUNKS)  # fmt: skip
def test_every_stream(stream, more, window, align, max_rows, chunks):
    top, lengths = stream
    capacity = -(-top // align) * align + more

    def run(planner_type):
        planner = planner_type(capacity, window, align=align, max_rows=max_rows)
        found, begin = [], 0
        for size, then in chunks:
            found.append(planner.add(lengths[begin : begin + size]))
            begin += size
            if then == "flush":
                found.append(planner.flush())
            elif then == "reload":
                state = planner.state_dict()
                found.append(state)
                planner = planner_type(capacity, window, align=align, max_rows=max_rows)
                planner.load_state_dict(state)
            elif then == "bad":
                found.append(agree.outcome(planner.add, [1, 0]))
        return [*found, planner.add(lengths[begin:]), planner.flush()]

    kind, found = agree.agreed_by("Planner", run)
    assert kind == "result"
    plans = [each for each in found if isinstance(each, tp.Plan)]
    placed = [row for plan in plans for row in plan.rows.tolist()]
    assert sorted(placed) == list(range(len(lengths)))
    for plan in plans:
        for rows, fill in zip(bins(plan), plan.fill.tolist(), strict=True):
            assert sum(lengths[row] for row in rows) == fill
            assert sum(-(-lengths[row] // align) * align for row in rows) <= capacity
            assert 1 <= len(rows) <= (max_rows or len(lengths))


@given(STREAMS, st.integers(1, 20), st.lists(st.integers(1, 30)))
def test_how_the_stream_is_cut_changes_no_bin(stream, window, sizes):
    top, lengths = stream
    whole = kernels.Planner(top, window)
    expected = bins(whole.add(lengths)) + bins(whole.flush())
    cut, found, begin = kernels.Planner(top, window), [], 0
    for size in [*sizes, len(lengths)]:
        found += bins(cut.add(lengths[begin : begin + size]))
        begin += size
    assert found + bins(cut.flush()) == expected


@pytest.mark.parametrize("capacity", [4096, 8192, 2**40])
@pytest.mark.parametrize("window", [100, 1000])
def test_like_the_reference_on_chat_lengths(capacity, window):
    def run(planner_type):
        planner = planner_type(capacity, window)
        return [planner.add(drawn(6000)), planner.state_dict(), planner.flush()]

    assert agree.agreed_by("Planner", run)[0] == "result"


@pytest.mark.parametrize("capacity", [4096, 8192])
def test_nearly_as_full_as_the_plan_of_all(capacity):
    lengths = drawn(400_000)
    planner = kernels.Planner(capacity)
    made = [planner.add(lengths), planner.flush()]
    cells = capacity * sum(plan.num_bins for plan in made)
    assert lengths.sum() / cells > kernels.plan(lengths, capacity).utilization - 1e-4


@pytest.mark.parametrize("top", [4096, 3000, 100])
@pytest.mark.parametrize("window", [1, 7, 256])
def test_no_row_waits_longer_than_four_windows(top, window):
    rng = np.random.default_rng(top + window)
    planner = kernels.Planner(4096, window)
    for row, length in enumerate(rng.integers(1 if top != 3000 else 2050, top + 1, 8000)):
        closed = planner.add([int(length)])
        assert row - closed.rows.min(initial=row) <= 4 * window
        state = planner.state_dict()
        assert len(state["waiting"]) < window
        assert row - min(state["waiting"], default=row) < 4 * window


def test_threads_take_turns():
    planner = kernels.Planner(4096, 64)
    plans = []

    def feed(seed):
        for _ in range(50):
            plans.append(planner.add(drawn(100, seed)))

    running = [threading.Thread(target=feed, args=(seed,)) for seed in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    plans.append(planner.flush())
    rows = np.concatenate([plan.rows for plan in plans])
    assert np.array_equal(np.sort(rows), np.arange(20_000))
