"""PackingIterableDataset: every document once over ranks and workers, and exact resumes."""

import pickle
import re

import numpy as np
import pytest
from torch.utils.data import DataLoader

from turnpack import kernels
from turnpack.torch import Collator, PackingIterableDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's own call
]

LENGTHS = np.clip(np.random.default_rng(0).lognormal(2, 1, 150), 1, 40).astype(int).tolist()
# A document's ids say which it is and which of its tokens each is.
DOCUMENTS = [
    {"input_ids": [1000 * n + i for i in range(size)], "labels": [-100] * (size - 1) + [n]}
    for n, size in enumerate(LENGTHS)
]


def stream(documents=DOCUMENTS, rank=0, ranks=1, capacity=64, window=16, **options):
    return PackingIterableDataset(
        documents, capacity, window, num_replicas=ranks, rank=rank, **options
    )


def whole(bins):
    """Which documents are in the bins; each must be there as it was given."""
    found = []
    for item in bins:
        assert item["seq_lengths"].sum() == len(item["input_ids"]) <= 64
        ends = np.cumsum(item["seq_lengths"])
        for start, stop in zip(ends - item["seq_lengths"], ends, strict=True):
            number = int(item["input_ids"][start]) // 1000
            assert item["input_ids"][start:stop].tolist() == DOCUMENTS[number]["input_ids"]
            assert item["labels"][start:stop].tolist() == DOCUMENTS[number]["labels"]
            found.append(number)
    return found


def same(some, others):
    return [{k: v.tolist() for k, v in item.items()} for item in some] == [
        {k: v.tolist() for k, v in item.items()} for item in others
    ]


def test_the_bins_are_the_planner_s():
    planner = kernels.Planner(64, 16)
    plans = [planner.add(LENGTHS), planner.flush()]
    wanted = [
        plan.rows[first:last].tolist()
        for plan in plans
        for first, last in zip(plan.offsets, plan.offsets[1:], strict=False)
    ]
    dataset = stream()
    bins = list(dataset)
    assert [whole([item]) for item in bins] == wanted
    assert same(dataset, bins)  # another epoch


def first_of(items):
    return items[0]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_document_once(ranks, workers):
    found = []
    for rank in range(ranks):
        loader = DataLoader(
            stream(rank=rank, ranks=ranks),
            num_workers=workers,
            collate_fn=first_of,
            **({"multiprocessing_context": "fork"} if workers else {}),
        )
        found += whole(loader)
    assert sorted(found) == list(range(150))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resume_after_every_bin(rank):
    wanted = list(stream(rank=rank, ranks=2))
    running = stream(rank=rank, ranks=2)
    bins = iter(running)
    for done in range(len(wanted) + 1):
        state = pickle.loads(pickle.dumps(running.state_dict()))
        again = stream(rank=rank, ranks=2)
        again.load_state_dict(state)
        assert again.state_dict()["read"] == state["read"]
        assert same(again, wanted[done:])
        assert same(again, wanted)  # and the next epoch whole
        if done < len(wanted):
            next(bins)
    assert next(bins, None) is None


class Remembers:
    """An iterable that knows where it is, as `datasets.IterableDataset` does."""

    def __init__(self):
        self.at = 0
        self.start = 0

    def __iter__(self):
        for number in range(self.start, len(DOCUMENTS)):
            self.at = number + 1
            yield DOCUMENTS[number]
        self.start = self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.start = state["at"]


def test_an_iterable_that_knows_where_it_is_is_not_read_again():
    wanted = list(stream())
    running = stream(Remembers())
    bins = iter(running)
    for _ in range(5):
        next(bins)
    again = stream(Remembers())
    again.load_state_dict(running.state_dict())
    assert same(again, wanted[5:])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_stateful_loader_resumes(workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader():
        return stateful(stream(), num_workers=workers, collate_fn=first_of)

    running = loader()
    states, wanted = [], []
    for item in running:
        wanted.append(item)
        states.append(running.state_dict())
    for done in range(len(wanted)) if workers == 0 else (1, len(wanted) // 2):
        again = loader()
        again.load_state_dict(states[done])
        assert same(again, wanted[done + 1 :])


def test_a_state_of_another_part():
    running = stream(rank=1, ranks=2)
    next(iter(running))
    with pytest.raises(ValueError, match=re.escape("the state is of part 1 of 2, not 1 of 3")):
        stream(rank=1, ranks=3).load_state_dict(running.state_dict())


def test_an_iterable_that_is_split_already():
    part = [DOCUMENTS[n] for n in range(0, 150, 3)]
    assert sorted(whole(stream(part, rank=1, ranks=3, split=False))) == list(range(0, 150, 3))


def test_masks_and_weights_come_along():
    documents = [
        {"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1]},
        {"input_ids": [4, 5], "labels": [-100, 5], "loss_weights": [0, 0.5]},
    ]
    (item,) = stream(documents)
    assert item["labels"].tolist() == [-100, 2, 3, -100, 5]
    assert item["loss_weights"].tolist() == [1, 1, 1, 0, 0.5]
    assert Collator()([item])["loss_weights"].tolist() == [[0, 1, 1, 0, 0.5]]


@pytest.mark.parametrize("form", ["seq_lengths", "position_ids"])
def test_packed_bins_stay_together_and_their_documents_apart(form):
    said = {"seq_lengths": [1, 2], "position_ids": [0, 0, 1]}
    documents = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], form: said[form]}]
    documents += [{"input_ids": [4, 5], "labels": [4, 5]}]
    (item,) = stream(documents)
    assert item["seq_lengths"].tolist() == [1, 2, 2]
    # Documents of 1, 2 and 2 tokens, each aligned to 4: one bin of 8 and one of 4.
    assert [len(each["input_ids"]) for each in stream(documents, capacity=8, align=4)] == [3, 2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"input_ids": [1]}, "document 0 has neither labels nor loss_mask"),
        ({"input_ids": [1], "labels": [1, 2]}, "document 0 has 1 input_ids, but 2 labels"),
        ({"input_ids": [1] * 65, "labels": [1] * 65}, "row 0 has 65 tokens, more than capacity 64"),
    ],
)
def test_documents_that_are_none(document, message):
    with pytest.raises(ValueError, match=message):
        list(stream([document]))


def test_few_documents_wait():
    read = 0

    def count():
        nonlocal read
        for document in DOCUMENTS * 20:
            read += 1
            yield document

    dataset = stream(count(), window=8)
    placed = 0
    for item in dataset:
        placed += len(item["seq_lengths"])
        waiting = len(dataset.state_dict()["waiting"])
        assert waiting <= 4 * 8
        assert read - placed <= 4 * 8 + 64
    assert placed == read == 3000
