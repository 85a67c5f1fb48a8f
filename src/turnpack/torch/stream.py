"""The iterable dataset: a stream of documents → packed bins, in bounded memory.

Owns which worker takes which documents, and what it takes to go on exactly where a run stopped.
Which documents share a bin is `Planner`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from .. import kernels
from ..nouns import Plan
from .collate import documents_of
from .compact import IGNORE

Item = dict[str, npt.NDArray[Any]]


class PackingIterableDataset(IterableDataset[Item]):
    """Bins of at most `capacity` tokens from any iterable of documents, as they come.

    A document is a dict as `Collator` takes it; one that is a packed bin itself stays together, its
    documents apart. An item is a packed bin: `input_ids`, `labels`,
    `seq_lengths`, and `loss_weights` where one of its documents has them. At most 4 * `window`
    documents wait at a time. `iterable` must be one that can be iterated again, and be the same for
    every rank and worker: of n in all, each takes every n-th document, so none is lost or comes
    twice. With `split=False` it takes all: for an iterable that has only its own part, such as
    `datasets.IterableDataset` in the workers of one rank.

    `num_replicas`, `rank`: by default those of torch.distributed, where it is at work, else 1 and
    0. Ranks may get different numbers of bins: train for a number of steps (`max_steps`), not for
    epochs.

    `state_dict` holds the documents that wait. It is exact with the same ranks and workers;
    torchdata's StatefulDataLoader takes care of both. An iterable with a `state_dict` of its own
    goes on by that, any other is read again up to where it was.

    >>> documents = [{"input_ids": [n] * n, "labels": [n] * n} for n in (3, 1, 2)]
    >>> [bin["seq_lengths"].tolist() for bin in PackingIterableDataset(documents, capacity=4)]
    [[3, 1], [2]]
    """

    def __init__(
        self,
        iterable: Iterable[Mapping[str, Any]],
        capacity: int,
        window: int = 4096,
        *,
        align: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
        split: bool = True,
    ) -> None:
        at_work = distributed.is_available() and distributed.is_initialized()
        if num_replicas is None:
            num_replicas = distributed.get_world_size() if at_work else 1
        if rank is None:
            rank = distributed.get_rank() if at_work else 0
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is none of {num_replicas}")
        self._iterable, self._split = iterable, split
        self._planner = {"capacity": capacity, "window": window, "align": align}
        kernels.Planner(**self._planner)  # refuses what makes no sense
        self._replicas, self._rank = num_replicas, rank
        self._stand = _Stand()
        self._resumed: Mapping[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Tell the iterable, if it wants to know."""
        if hasattr(self._iterable, "set_epoch"):
            self._iterable.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, with the documents that wait."""
        if self._resumed is not None:
            return dict(self._resumed)
        stand = self._stand
        state = {
            "part": self._part(),
            "read": stand.read,
            "planner": None if stand.planner is None else stand.planner.state_dict(),
            "waiting": dict(stand.waiting),
            "ready": list(stand.ready),
        }
        if hasattr(self._iterable, "state_dict"):
            state["iterable"] = self._iterable.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` when iterated next.

        Raises ValueError for one of another rank or worker, or of another number of them.
        """
        if state["read"] and tuple(state["part"]) != self._part():
            raise ValueError(
                "the state is of part {} of {}, not {} of {}".format(*state["part"], *self._part())
            )
        self._resumed = state

    def _part(self) -> tuple[int, int]:
        """Which part of how many is read here."""
        if not self._split:
            return 0, 1
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._rank * workers + number, self._replicas * workers

    def __iter__(self) -> Iterator[Item]:
        state, self._resumed = self._resumed, None
        self._stand = stand = _Stand()
        stand.planner = kernels.Planner(**self._planner)
        skip = 0
        if state is not None and state["planner"] is not None:
            stand.planner.load_state_dict(state["planner"])
            stand.waiting.update(state["waiting"])
            stand.ready.extend(state["ready"])
            stand.read = state["read"]
            if "iterable" in state:
                self._iterable.load_state_dict(state["iterable"])  # type: ignore[attr-defined]
            else:
                skip = stand.read
        return self._bins(stand, skip)

    def _bins(self, stand: _Stand, skip: int) -> Iterator[Item]:
        planner, ready = stand.planner, stand.ready
        assert planner is not None
        part, parts = self._part()
        arrived = planner.state_dict()["rows"]
        while ready:
            yield ready.popleft()
        for document in islice(self._iterable, skip, None):
            stand.read += 1
            if (stand.read - 1) % parts != part:
                continue
            made = stand.waiting[arrived] = _arrays(document, stand.read - 1)
            align = self._planner["align"]
            closed = planner.add([int((-(-made["seq_lengths"] // align) * align).sum())])
            arrived += 1
            stand.close(closed)
            while ready:
                yield ready.popleft()
        stand.close(planner.flush())
        while ready:
            yield ready.popleft()
        self._stand = _Stand()


class _Stand:
    """How far an iteration is: what was read, what waits for a bin, which bins are ready."""

    def __init__(self) -> None:
        self.read = 0
        self.planner: kernels.Planner | None = None
        self.waiting: dict[int, Item] = {}
        self.ready: deque[Item] = deque()

    def close(self, plan: Plan) -> None:
        for first, last in zip(plan.offsets, plan.offsets[1:], strict=False):
            self.ready.append(_bin([self.waiting.pop(int(r)) for r in plan.rows[first:last]]))


def _arrays(document: Mapping[str, Any], number: int) -> Item:
    """One document's arrays, copied from what may be reused."""
    ids = np.array(document["input_ids"], np.int32)
    made = {"input_ids": ids}
    if "labels" in document:
        made["labels"] = np.array(document["labels"], np.int32)
    elif "loss_mask" in document:
        made["labels"] = np.where(np.asarray(document["loss_mask"]) != 0, ids, np.int32(IGNORE))
    else:
        raise ValueError(f"document {number} has neither labels nor loss_mask")
    if document.get("loss_weights") is not None:
        made["loss_weights"] = np.array(document["loss_weights"], np.float32)
    for name, values in made.items():
        if values.shape != ids.shape or ids.ndim != 1:
            raise ValueError(
                f"document {number} has {ids.size} input_ids, but {len(values)} {name}"
            )
    lengths = documents_of(f"document {number}", document, len(ids))
    made["seq_lengths"] = lengths.astype(np.int32)
    return made


def _bin(documents: list[Item]) -> Item:
    made = {
        name: np.concatenate([document[name] for document in documents])
        for name in ("input_ids", "labels", "seq_lengths")
    }
    if any("loss_weights" in document for document in documents):
        made["loss_weights"] = np.concatenate(
            [
                document.get("loss_weights", np.ones(len(document["input_ids"]), np.float32))
                for document in documents
            ]
        )
    return made
