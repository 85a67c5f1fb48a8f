"""Strategies: each row in one bin, whatever the parts it came in and wherever it went on."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnpack import Planner, Tokens, kernels
from turnpack.binning import STRATEGIES, binning, shuffled, stretches
from turnpack.nouns import Plan
from turnpack.rows import Rows

CAPACITY = 12

LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(STRATEGIES),
        "window": st.integers(1, 20),
        "seed": st.one_of(st.none(), st.integers(0, 5)),
        "block_tokens": st.integers(1, 100),
    }
)


def rows_of(lengths, weighted=False):
    """Row n is n, n, n, ..; every other one is a second row of its conversation."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return Rows(
        Tokens(
            ids,
            (ids % 2).astype(np.uint8),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            loss_weights=(ids % 2 * 0.5).astype(np.float32) if weighted else None,
        ),
        pa.array([f"row {n}" for n in range(len(lengths))], pa.large_string()),
        np.arange(len(lengths), dtype=np.int32) % 3,
        np.arange(len(lengths)) % 2 == 0,
    )


def parts(rows, cuts):
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [rows.slice(a, b) for a, b in itertools.pairwise(ends)]


def bins(blocks):
    """The names and tokens of every row, bin by bin; what else a row has must be with it."""
    made = []
    for rows, plan in blocks:
        tokens = rows.tokens
        for start, end in zip(plan.offsets[:-1], plan.offsets[1:], strict=True):
            one = []
            for row in plan.rows[start:end].tolist():
                name = rows.names[row].as_py()
                number = int(name.removeprefix("row "))
                ids = tokens.input_ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
                assert {*ids} == {number}
                assert (rows.files[row], rows.first[row]) == (number % 3, number % 2 == 0)
                one.append((number, len(ids)))
            made.append(one)
        assert plan.fill.tolist() == [
            sum(length for _, length in one) for one in made[-plan.num_bins :]
        ]
    return made


def all_at_once(rows, options):
    made = binning(capacity=CAPACITY, **options)
    return bins([*made.add(rows), *made.flush()])


@settings(deadline=None)
@given(LENGTHS, OPTIONS, st.lists(st.integers(0, 60), max_size=5))
def test_every_row_is_in_one_bin_whatever_the_parts(lengths, options, cuts):
    rows = rows_of(lengths)
    whole = all_at_once(rows, options)
    assert sorted(row for one in whole for row in one) == list(enumerate(lengths))
    assert all(sum(length for _, length in one) <= CAPACITY for one in whole)
    made = binning(capacity=CAPACITY, **options)
    blocks = [block for part in parts(rows, cuts) for block in made.add(part)]
    assert bins([*blocks, *made.flush()]) == whole


@settings(deadline=None)
@given(LENGTHS, OPTIONS, st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_a_saved_state_goes_on(tmp_path_factory, lengths, options, cuts, weighted):
    folder = tmp_path_factory.mktemp("state")
    rows = rows_of(lengths, weighted)
    first, second = (binning(capacity=CAPACITY, **options) for _ in range(2))
    blocks, other = [], []
    for number, part in enumerate(parts(rows, cuts)):
        blocks += [*first.add(part), *first.drain()]
        other += [*second.add(part), *second.drain()]
        state = second.save(folder, str(number))
        second = binning(capacity=CAPACITY, **options)
        second.load(folder, state)
    blocks += first.flush()
    other += second.flush()
    assert bins(other) == bins(blocks)
    kept = [rows.tokens.loss_weights is not None for rows, plan in other if plan.num_bins]
    assert kept == [weighted] * len(kept)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 20))
def test_a_stream_is_the_planners(lengths, window):
    options = {"strategy": "stream", "window": window, "seed": None, "block_tokens": 1}
    planner = Planner(CAPACITY, window)
    plans = [planner.add(lengths), planner.flush()]
    expected = [
        p.rows[a:b].tolist()
        for p in plans
        for a, b in zip(p.offsets[:-1], p.offsets[1:], strict=True)
    ]
    made = [[row for row, _ in one] for one in all_at_once(rows_of(lengths), options)]
    assert made == expected


@given(LENGTHS, st.sampled_from(["in_order", "best_fit", "first_fit"]))
def test_the_bins_are_those_of_plan(lengths, strategy):
    options = {"strategy": strategy, "window": 7, "seed": None, "block_tokens": 50}
    p = kernels.plan(lengths, CAPACITY, strategy=strategy)
    expected = [p.rows[a:b].tolist() for a, b in zip(p.offsets[:-1], p.offsets[1:], strict=True)]
    made = [[row for row, _ in one] for one in all_at_once(rows_of(lengths), options)]
    assert made == expected


def test_none_leaves_rows_by_themselves():
    options = {"strategy": "none", "window": 3, "seed": None, "block_tokens": 10}
    made = all_at_once(rows_of([3, 1, 4, 1, 5]), options)
    assert made == [[(0, 3)], [(1, 1)], [(2, 4)], [(3, 1)], [(4, 5)]]


def test_blocks_are_shuffled_each_in_its_way():
    options = {"strategy": "none", "window": 8, "block_tokens": 8}
    rows = rows_of([1] * 32)
    orders = {}
    for seed in (0, 1):
        made = [one[0][0] for one in all_at_once(rows, {**options, "seed": seed})]
        blocks = [tuple(n % 8 for n in made[at : at + 8]) for at in range(0, 32, 8)]
        assert [n // 8 for n in made] == [n // 8 for n in range(32)]
        orders[seed] = blocks
    assert len({*orders[0], *orders[1]}) == 8


def test_a_stream_holds_a_bounded_number_of_rows():
    made = binning("stream", CAPACITY, window=50, seed=0, block_tokens=100)
    held = []
    for _ in range(100):
        rows = rows_of(np.random.default_rng(0).integers(1, CAPACITY, 30).tolist())
        list(made.add(rows))
        held.append(sum(map(len, made._held)))
    assert max(held[50:]) <= max(held[:50]) < 300


def test_a_block_moves_few_rows_however_many_come_at_once(monkeypatch):
    moved, take = [], Rows.take
    monkeypatch.setattr(Rows, "take", lambda rows, at: moved.append(len(at)) or take(rows, at))
    made = binning("stream", CAPACITY, window=8, seed=0, block_tokens=20)
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 2000).tolist()
    assert len(list(made.add(rows_of(lengths)))) > 100
    assert max(moved) < 40


@given(st.lists(st.integers(1, 5), max_size=8), st.booleans(), st.randoms())
def test_rows_are_taken_in_any_order(lengths, weighted, random):
    rows = rows_of(lengths, weighted)
    for array in (rows.tokens.loss_mask, rows.tokens.loss_weights):
        if array is not None:
            array[rows.tokens.offsets[:-1]] = 0  # as an Encoder has it
    chosen = random.sample(range(len(rows)), random.randint(0, len(rows)))
    made = rows.take(np.array(chosen, np.int64))
    assert len(made) == len(chosen)
    for at, row in enumerate(chosen):
        one, other = made.slice(at, at + 1), rows.slice(row, row + 1)
        assert one.tokens == other.tokens
        assert one.to_batch() == other.to_batch()


def test_no_rows_hold_no_others_in_memory():
    rows = rows_of([3000, 4000])
    none = rows.take(np.empty(0, np.int64))
    assert len(none) == 0
    assert none.names.get_total_buffer_size() < 8 + len("row 0")
    for array in (none.tokens.input_ids, none.tokens.loss_mask, none.files, none.first):
        while array is not None:
            assert getattr(array, "nbytes", 0) < 1000
            array = getattr(array, "base", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of stream, .*, not 'best'"),
        ({"window": 0}, "window is 0, less than 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        binning(
            **{"strategy": "stream", "capacity": 4, "window": 4, "seed": 0, "block_tokens": 4}
            | options
        )


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 40))
def test_stretches(fill, most):
    made = list(stretches(np.array(fill, np.int64), most))
    assert [at for a, b in made for at in range(a, b)] == list(range(len(fill)))
    for a, b in made:
        assert sum(fill[a:b]) <= most or b == a + 1
    for (a, b), (c, _) in itertools.pairwise(made):
        assert sum(fill[a : c + 1]) > most or b == a


def test_shuffled_is_the_same_plan_in_another_order():
    p = kernels.plan([3, 1, 2, 2, 3, 1, 1], 4)
    other = shuffled(p, 5)
    sets = [
        sorted(
            tuple(p.rows[start:end])
            for start, end in zip(p.offsets[:-1], p.offsets[1:], strict=True)
        )
        for p in (p, other)
    ]
    assert sets[0] == sets[1]
    assert sorted(other.fill) == sorted(p.fill)
    assert other.capacity == 4


def test_the_shuffle_is_the_same_for_ever():
    p = kernels.plan([1] * 8, 1)
    assert shuffled(p, 0).rows.tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert shuffled(p, 0, 1).rows.tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    assert isinstance(shuffled(kernels.plan([], 1), 0), Plan)
