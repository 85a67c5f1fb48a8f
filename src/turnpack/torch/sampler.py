"""The batch sampler: lengths → batches of rows that share bins, the same number on every rank.

Owns which rank gets which bin, and where an epoch stands. How rows fill bins is `plan`'s.
"""

from __future__ import annotations

import heapq
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import distributed
from torch.utils.data import Sampler

from .. import kernels
from .._arguments import Indices
from . import _cells

_Int64s = npt.NDArray[np.int64]
COSTS = ("tokens", "attention")


class PackingBatchSampler(Sampler[list[int]]):
    """Packs documents anew every epoch; a batch is the rows of `batch_size` bins, for a rank.

    For `Collator("flat")` and a dataset whose items are documents, as `batch_sampler` of a
    DataLoader. Every rank gets the same number of batches in every epoch, `len()`, and every
    document comes once in an epoch: bins of several documents are split until their number is a
    multiple. Only where there are fewer documents than bins are needed do some come twice; a
    warning says so, and `repeated` how many.

    `lengths` `[rows]` in tokens; `capacity`: tokens a bin may have. `num_replicas`, `rank`: by
    default those of torch.distributed, where it is at work, else 1 and 0. `cost`: what is balanced
    between the ranks of a step, "tokens" or "attention" (the sum of squared lengths). `align`: as
    in `plan`. `multiple_of`: the number of batches is a multiple of this, and as many in a row are
    balanced as ranks are; give accelerate and Trainer, which share out the batches of one sampler,
    the number of processes here and `num_replicas=1`.

    Everything follows from `seed`, the epoch and the arguments. Which rows share a bin changes
    between epochs, since rows of equal length trade places, how many bins there are does not.

    An epoch that has been iterated to its end is followed by the next; `set_epoch` goes to any
    other. Raises ValueError for a row that `plan` would refuse and for a rank that there is not.

    >>> sampler = PackingBatchSampler([4, 6, 5, 5, 3], capacity=10, num_replicas=2, rank=0)
    >>> len(sampler), [sum([4, 6, 5, 5, 3][row] for row in batch) for batch in sampler]
    (2, [10, 4])
    """

    # accelerate takes a `batch_size` for a number of items, which here differs from batch to batch.
    batch_size = None
    drop_last = False

    def __init__(
        self,
        lengths: Indices,
        capacity: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        batch_size: int = 1,
        cost: Literal["tokens", "attention"] = "tokens",
        *,
        align: int = 1,
        multiple_of: int = 1,
    ) -> None:
        at_work = distributed.is_available() and distributed.is_initialized()
        if num_replicas is None:
            num_replicas = distributed.get_world_size() if at_work else 1
        if rank is None:
            rank = distributed.get_rank() if at_work else 0
        for name, value in (
            ("num_replicas", num_replicas),
            ("batch_size", batch_size),
            ("multiple_of", multiple_of),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}, less than 1")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is none of {num_replicas}")
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}, not one of {', '.join(COSTS)}")
        self._lengths = np.asarray(lengths, np.int64)
        self._capacity, self._align = capacity, align
        self._bins_in_batch, self._cost = batch_size, cost
        self._replicas, self._rank, self._multiple = num_replicas, rank, multiple_of
        self._seed = seed
        self.epoch = 0
        self._start = self._next = 0
        # The lengths alone decide how many bins there are, so one plan tells it for every epoch.
        bins = kernels.plan(lengths, capacity, align=align).num_bins
        step = num_replicas * batch_size * multiple_of
        self._steps = -(-bins // step)
        self.repeated = max(0, self._steps * step - len(self._lengths)) if bins else 0
        if self.repeated:
            warnings.warn(
                f"{len(self._lengths)} documents are too few for {self._steps * step} bins: "
                f"{self.repeated} of them come twice or more in an epoch",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Batches of this rank in an epoch, this and every other."""
        return self._steps * self._multiple

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; of the one at work, a state that was loaded is kept."""
        if epoch != self.epoch:
            self.epoch, self._start, self._next = epoch, 0, 0

    def seek(self, step: int) -> None:
        """Go to where a trainer stands that has taken `step` batches since the start of epoch 0.

        With a plain DataLoader this is how to resume: its workers are ahead of the trainer, so
        `state_dict` is.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        self.epoch, self._start = divmod(step, len(self)) if len(self) else (0, 0)
        self._next = self._start

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands: its epoch, and the next batch of `batches`; for JSON."""
        return {
            "epoch": self.epoch,
            "batch": self._next,
            "batches": len(self),
            "num_replicas": self._replicas,
            "settings": self._settings(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; with another number of ranks, at the boundary of an epoch.

        Raises ValueError for a state of other lengths, settings or seed, and for one within an
        epoch of another number of ranks or batches.
        """
        settings = self._settings()
        for name, value in state["settings"].items():
            if settings.get(name) != value:
                raise ValueError(f"the state has {name} {value}, not {settings.get(name)}")
        batch = state["batch"]
        if (state["num_replicas"], state["batches"]) != (self._replicas, len(self)):
            if 0 < batch < state["batches"]:
                raise ValueError(
                    f"the state is at batch {batch} of {state['batches']} of "
                    f"{state['num_replicas']} ranks, not between epochs, and there are "
                    f"{self._replicas} ranks now with {len(self)} batches"
                )
            batch = len(self) if batch else 0
        self.epoch, self._start, self._next = state["epoch"], batch, batch

    def _settings(self) -> dict[str, Any]:
        return {
            "rows": len(self._lengths),
            "lengths_crc32": zlib.crc32(np.ascontiguousarray(self._lengths).data),
            "capacity": self._capacity,
            "align": self._align,
            "seed": self._seed,
        }

    def __iter__(self) -> Iterator[list[int]]:
        start, self._start = self._start, 0
        return self._batches(self.epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        self._next = start
        if start < len(self):
            rows, offsets = self._packed(epoch)
            for number in range(start, len(self)):
                self._next = number + 1
                yield rows[offsets[number] : offsets[number + 1]].tolist()
        self.epoch, self._next = epoch + 1, 0

    def _packed(self, epoch: int) -> tuple[_Int64s, list[int]]:
        """The rows of this rank's batches, and the offsets of each.

        Sorted by cost, bins of about the same make one step; within it they are dealt to and fro,
        so that ranks with several get about the same sum. Steps come in any order.
        """
        random = np.random.PCG64([self._seed, epoch])
        shuffled = _orders(random, len(self._lengths))
        lengths = self._lengths[shuffled]
        plan = kernels.plan(lengths, self._capacity, align=self._align)
        rows, lengths = shuffled[plan.rows], lengths[plan.rows]
        dealt = self._replicas * self._multiple
        offsets = _filled(lengths, plan.offsets, self._steps * dealt * self._bins_in_batch)
        if offsets[-1] > len(rows):  # some come again
            rows, lengths = np.resize(rows, offsets[-1]), np.resize(lengths, offsets[-1])
        cost = np.add.reduceat(lengths if self._cost == "tokens" else lengths**2, offsets[:-1])
        tie = _orders(random, len(cost))
        order = tie[np.argsort(-cost[tie], kind="stable")]
        steps = order.reshape(self._steps, self._bins_in_batch, dealt)
        steps[:, 1::2] = steps[:, 1::2, ::-1]
        steps = steps[_orders(random, self._steps)].transpose(0, 2, 1)
        ranks = _orders(random, self._steps, dealt)
        steps = np.take_along_axis(steps, ranks[:, :, None], axis=1)
        mine = steps.reshape(self._steps, self._replicas, -1)[:, self._rank].ravel()
        begins, sizes = offsets[mine], offsets[mine + 1] - offsets[mine]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(ends[-1]) + np.repeat(begins - ends[:-1], sizes)
        return rows[places], ends[:: self._bins_in_batch].tolist()


def _filled(lengths: _Int64s, offsets: _Int64s, wanted: int) -> _Int64s:
    """Offsets of `wanted` bins: those of most tokens are split, then some have a row of their own.

    `lengths` of the rows in the bins that there are.
    """
    missing = wanted - (len(offsets) - 1)
    if not missing:
        return offsets
    ends = np.concatenate([[0], np.cumsum(lengths)])
    cuts: list[int] = []
    tokens = np.diff(ends[offsets])
    several = np.flatnonzero(np.diff(offsets) > 1)
    # No more than `missing` bins are ever split, and the largest of them first.
    largest = several
    if missing < len(several):
        sizes = tokens[several]
        least = np.partition(sizes, -missing)[-missing]
        above = several[sizes > least]
        largest = np.append(above, several[sizes == least][: missing - len(above)])
    heap = [(-int(tokens[b]), int(offsets[b]), int(offsets[b + 1])) for b in largest]
    heapq.heapify(heap)
    while len(cuts) < missing and heap:
        _, first, last = heapq.heappop(heap)
        middle = (ends[first] + ends[last]) / 2
        cut = int(np.searchsorted(ends[first + 1 : last], middle)) + first + 1
        cut = min(cut, last - 1)
        cuts.append(cut)
        for a, b in ((first, cut), (cut, last)):
            if b - a > 1:
                heapq.heappush(heap, (-int(ends[b] - ends[a]), a, b))
    missing -= len(cuts)
    cuts += range(len(lengths) + 1, len(lengths) + missing + 1)
    return np.sort(np.concatenate([offsets, cuts]), kind="stable")


def _orders(random: np.random.PCG64, *shape: int) -> _Int64s:
    """Random orders along the last axis: those of raw draws, which NumPy keeps for ever."""
    return _cells.orders(random.random_raw((math.prod(shape[:-1]), shape[-1]))).reshape(shape)
