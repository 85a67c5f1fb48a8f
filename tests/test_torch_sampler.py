"""PackingBatchSampler: every document once, every rank in step, and exact resumes."""

import json
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from turnpack import kernels
from turnpack.torch import PackingBatchSampler, _cells

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's own call
]

LENGTHS = np.clip(np.random.default_rng(0).lognormal(3, 1, 101), 1, 100).astype(int)


def samplers(ranks, lengths=LENGTHS, capacity=100, **options):
    return [PackingBatchSampler(lengths, capacity, ranks, rank, **options) for rank in range(ranks)]


def tokens(batch, lengths=LENGTHS):
    return sum(int(lengths[row]) for row in batch)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["tokens", "attention"]),
)
def test_every_document_once_and_every_rank_in_step(lengths, ranks, batch_size, multiple, cost):
    step = ranks * batch_size * multiple
    bins = -(-kernels.plan(lengths, 20).num_bins // step) * step
    options = {"batch_size": batch_size, "cost": cost, "multiple_of": multiple}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = samplers(ranks, lengths, 20, **options)
    missing = max(0, bins - len(lengths))
    assert [str(each.message) for each in said] == ranks * bool(missing) * [
        f"{len(lengths)} documents are too few for {bins} bins: "
        f"{missing} of them come twice or more in an epoch"
    ]
    for epoch in range(2):
        batches = [list(sampler) for sampler in made]
        assert {len(each) for each in batches} == {len(made[0])} == {bins // ranks // batch_size}
        assert len(made[0]) % multiple == 0
        rows = [row for each in batches for batch in each for row in batch]
        assert set(rows) == set(range(len(lengths)))
        assert len(rows) - len(lengths) == made[0].repeated == missing
        assert all(tokens(batch, lengths) <= 20 * batch_size for each in batches for batch in each)
        assert [sampler.epoch for sampler in made] == [epoch + 1] * ranks


def test_a_seed_and_an_epoch_decide():
    first, second = samplers(1, seed=1)[0], samplers(1, seed=1)[0]
    epochs = [list(first), list(first)]
    assert epochs == [list(second), list(second)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(samplers(1, seed=2)[0])
    first.set_epoch(0)
    assert list(first) == epochs[0]


def test_an_order_that_must_not_change():
    """Resumes depend on it: it must be the same for every version of NumPy and of turnpack."""
    sampler = PackingBatchSampler([5, 3, 8, 2, 2, 2, 7, 1, 4, 4, 4, 4], 10, 2, 1, seed=3)
    assert [list(sampler), list(sampler)] == GOLDEN


GOLDEN = [[[8, 3], [6, 1], [0, 9, 7]], [[2], [9, 4], [0, 11, 7]]]


def test_random_orders():
    draws = np.random.PCG64(0).random_raw((20_000, 4))
    orders = _cells.orders(draws)
    assert (np.sort(orders) == np.arange(4)).all()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert abs(counts / 20_000 - 1 / 24).max() < 0.005
    assert _cells.orders(draws[:1, :0]).shape == (1, 0)
    # The definition, with Python's unbounded integers.
    wanted = []
    for i, draw in enumerate(draws.ravel().tolist()):
        other = draw * (i + 1) >> 64
        wanted.append(i)
        wanted[i], wanted[other] = wanted[other], i
    assert _cells.orders(draws.reshape(1, -1))[0].tolist() == wanted


def test_rows_of_equal_length_change_company():
    lengths = [5] * 40
    sampler = PackingBatchSampler(lengths, 10, 1, 0)
    pairs = [{frozenset(batch) for batch in sampler} for _ in range(2)]
    assert len(pairs[0] & pairs[1]) < 10


@pytest.mark.parametrize("cost", ["tokens", "attention"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_work_is_balanced(cost, batch_size):
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5, 1.3, 5000), 1, 2048).astype(int)
    made = samplers(8, lengths, 2048, cost=cost, batch_size=batch_size)
    power = 2 if cost == "attention" else 1
    work = np.array([[(lengths[batch] ** power).sum() for batch in s] for s in made])
    slack = np.median(work.max(0) / work.mean(0)) - 1
    shuffled = random.permuted(work.ravel()).reshape(work.shape)
    assert slack < 0.03
    assert slack <= np.median(shuffled.max(0) / shuffled.mean(0)) - 1


def test_neighbours_are_balanced_for_those_who_shard_themselves():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1.3, 3000), 1, 2048).astype(int)
    sampler = PackingBatchSampler(lengths, 2048, 1, 0, cost="attention", multiple_of=4)
    work = np.array([(lengths[batch] ** 2).sum() for batch in sampler]).reshape(-1, 4)
    assert np.median(work.max(1) / work.mean(1)) < 1.03


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_resume_after_every_batch(ranks):
    wanted = [[list(sampler), list(sampler)] for sampler in samplers(ranks)]
    for rank, sampler in enumerate(samplers(ranks)):
        epoch, following = wanted[rank]
        batches = iter(sampler)
        for done in range(len(epoch) + 1):
            state = json.loads(json.dumps(sampler.state_dict()))
            again = samplers(ranks)[rank]
            again.load_state_dict(state)
            again.set_epoch(0)  # as trainers do; it must not start the epoch over
            assert list(again) == epoch[done:]
            assert list(again) == following
            sought = samplers(ranks)[rank]
            sought.seek(done)
            assert list(sought) == (epoch[done:] or following)
            next(batches, None)


def test_another_number_of_ranks_between_epochs():
    (one,) = samplers(1)
    batches = iter(one)
    next(batches)
    (other, _) = samplers(2)
    with pytest.raises(ValueError, match=r"batch 1 of .* of 1 ranks, not between epochs"):
        other.load_state_dict(one.state_dict())
    for _ in range(len(one) - 1):
        next(batches)
    at_end = one.state_dict()
    assert list(batches) == []
    after = one.state_dict()
    wanted = samplers(2)[0]
    wanted.set_epoch(1)
    wanted = list(wanted)
    for state, rest in ((at_end, 1), (after, 0)):
        sampler = samplers(2)[0]
        sampler.load_state_dict(state)
        for _ in range(rest):
            assert list(sampler) == []
        assert list(sampler) == wanted


def test_a_broken_off_epoch_starts_over():
    (sampler,) = samplers(1)
    wanted = list(samplers(1)[0])
    next(iter(sampler))
    assert list(sampler) == wanted


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 5}, "the state has seed 0, not 5"),
        ({"capacity": 120}, "the state has capacity 100, not 120"),
        ({"lengths": LENGTHS[::-1]}, "the state has lengths_crc32"),
        ({"lengths": LENGTHS[:-1]}, "the state has rows 101, not 100"),
    ],
)
def test_a_state_of_something_else(other, message):
    (sampler,) = samplers(1)
    with pytest.raises(ValueError, match=message):
        samplers(1, **other)[0].load_state_dict(sampler.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "num_replicas": 2}, "rank 2 is none of 2"),
        ({"num_replicas": 0}, "num_replicas is 0, less than 1"),
        ({"batch_size": 0}, "batch_size is 0, less than 1"),
        ({"cost": "time"}, "cost is 'time', not one of tokens, attention"),
        ({"capacity": 3}, "row 1 has 4 tokens, more than capacity 3"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PackingBatchSampler(**{"lengths": [1, 4], "capacity": 8, **options})


def test_no_documents():
    sampler = PackingBatchSampler([], 10)
    assert (len(sampler), list(sampler)) == (0, [])
    sampler.seek(3)


def test_aligned_documents_keep_within_capacity():
    batches = list(PackingBatchSampler(LENGTHS, 128, align=8))
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    for batch in batches:
        assert sum(-(-int(LENGTHS[row]) // 8) * 8 for row in batch) <= 128


class Documents:
    def __getitem__(self, row):
        return row


def as_it_is(items):
    return items


def loader(kind, sampler, workers):
    return kind(
        Documents(),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=as_it_is,
        **({"multiprocessing_context": "fork"} if workers else {}),
    )


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_loaders_with_workers(ranks, workers):
    """Every document once over the ranks, whatever the number of workers."""
    made = [list(loader(DataLoader, sampler, workers)) for sampler in samplers(ranks)]
    assert made == [list(sampler) for sampler in samplers(ranks)]
    assert sorted(row for each in made for batch in each for row in batch) == list(range(101))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_stateful_loader_resumes(workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    lengths = LENGTHS[:40]
    wanted = [list(sampler) for sampler in samplers(2, lengths)]
    for rank, each in enumerate(wanted):
        sampler = samplers(2, lengths)[rank]
        running = loader(stateful, sampler, workers)
        stops = range(len(each)) if workers == 0 else (0, 2, len(each) - 1)
        states = [running.state_dict() for _ in running]
        for done in stops:
            again = loader(stateful, samplers(2, lengths)[rank], workers)
            again.load_state_dict(states[done])
            assert list(again) == each[done + 1 :]
