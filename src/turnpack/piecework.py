"""What a worker makes of a piece of the input: a run of job.py's in a folder of its own.

Owns these folders and what is left of a piece for the end. Who runs where, and what becomes of the
folders, is ray.py's; nothing here imports ray.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .binning import Binning, Block
from .fast_tokenizer import Accelerated
from .fates import Fates, Input
from .garbage import collect_seldom
from .job import Assignment, Job, Settings, Tally
from .journal import Journal
from .nouns import Plan
from .pieces import Piece
from .pipeline import Work
from .rows import Rows
from .selection import Choice
from .shards import Written
from .system import sync

# Bins of a piece, the emptiest, whose rows are packed again together with those of all others.
LEFT = 8
# How often a piece is begun, where the processes at work on it die; Ray itself would never stop.
ATTEMPTS = 4

# What lies in the folder of the pieces, and in that of one of them.
TASK, MADE, NEW = "task", "made", "new"

# What a worker tells of a piece.
TOLD = pa.schema(
    {
        **dict.fromkeys(("pieces", "rows", "tokens", "rejected"), pa.int64()),
        "error": pa.binary(),
    }
)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker must know, besides which piece is its own; see Assignment for most of it."""

    pieces: Sequence[Piece]
    work: Work
    inputs: Sequence[Input]
    choices: Sequence[Choice]
    splits: Mapping[str, Binning]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a piece. `exact`: the tokenizer's own library encoded all of it."""

    tally: Tally
    fates: Fates
    written: dict[str, Written]
    exact: bool

    @classmethod
    def load(cls, home: Path) -> Made:
        """Read what a worker left in the folder of a piece."""
        made: Made = pickle.loads((home / MADE).read_bytes())
        return made


def left(home: Path, split: str) -> Path:
    """The file with the rows of a split that a piece has left, in its folder."""
    return home / f"{split}.arrow"


class Worker:
    """Makes the pieces whose numbers it is given, in folders of `home`.

    A piece is made under another name, and there once it has the right one: so it does not matter
    how often it is begun. What a process leaves that dies at it counts as an attempt. `directory`:
    where paths are relative to.
    """

    def __init__(self, home: str, directory: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other processors have workers too
        collect_seldom()
        with suppress(OSError):
            os.chdir(directory)
        self._home = Path(home)
        self._task: Task = pickle.loads((self._home / TASK).read_bytes())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make the pieces that a batch names, exactly where it says so; tell what came of each."""
        told = [self._made(row["piece"], row["exact"]) for row in batch.to_pylist()]
        return pa.Table.from_pylist(told, TOLD)

    def _made(self, number: int, exact: bool) -> dict[str, Any]:
        place, attempt = self._home / str(number), self._home / f"{number}-{uuid4().hex}"
        try:
            if not place.exists():
                died = sum(1 for _ in self._home.glob(f"{number}-*"))
                if died >= ATTEMPTS:
                    first = self._task.pieces[number].files[0]
                    raise ChildProcessError(
                        f"{died} workers died at the same piece of "
                        f"{first if isinstance(first, str) else first.path}, perhaps for lack of "
                        "memory: try a smaller piece_bytes"
                    )
                self._make(number, exact, attempt)
                try:
                    attempt.rename(place)
                except OSError:
                    if not place.exists():  # it does where another was faster
                        raise
                sync(self._home)
        except Exception as error:
            return {"error": _pickled(error)}
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        tally = Made.load(place).tally
        return {
            "pieces": 1,
            "rows": sum(tally.read.values()),
            "tokens": tally.tokens,
            "rejected": sum(tally.rejected.values()),
        }

    def _make(self, number: int, exact: bool, home: Path) -> None:
        task, piece = self._task, self._task.pieces[number]
        backend = task.work.backend
        if exact and isinstance(backend, Accelerated):
            backend.give_up()
        exactly = getattr(backend, "exact", True)
        splits = {name: _Leaving(deepcopy(split)) for name, split in task.splits.items()}
        (home / NEW).mkdir(parents=True)
        assignment = Assignment(
            home / NEW,
            Journal(home, {}),
            task.work,
            task.inputs,
            task.choices,
            splits,
            task.settings,
            lambda progress: None,
        )
        job = Job(assignment)
        job.run([piece.files if n == piece.part else [] for n in range(len(task.choices))], 1)
        for name, split in splits.items():
            Rows.join(split.left).save(left(home, name))
        (home / MADE).write_bytes(
            pickle.dumps(Made(job.tally, job.fates, job.written, exactly)),
        )
        for path in (home / MADE, *(path for path in (home / NEW).iterdir()), home):
            sync(path)


class _Leaving:
    """A binning that leaves the rows of its emptiest bins at the end, in `left`."""

    def __init__(self, binning: Binning) -> None:
        self.left: list[Rows] = []
        self.holds_all = binning.holds_all
        self.add, self.drain = binning.add, binning.drain
        self.save, self.load = binning.save, binning.load
        self._flush = binning.flush

    def flush(self) -> Iterator[Block]:
        """See Binning."""
        blocks = list(self._flush())
        fill = np.concatenate([np.empty(0, np.int64), *(plan.fill for _, plan in blocks)])
        emptiest = np.zeros(len(fill), bool)
        emptiest[np.argsort(fill, kind="stable")[:LEFT]] = True
        for rows, plan in blocks:
            leave, emptiest = emptiest[: plan.num_bins], emptiest[plan.num_bins :]
            self.left.append(rows.take(_chosen(plan, leave).rows))
            yield Block(rows, _chosen(plan, ~leave))


def _chosen(plan: Plan, bins: npt.NDArray[np.bool_]) -> Plan:
    sizes = np.diff(plan.offsets)
    offsets = np.append(0, np.cumsum(sizes[bins]))
    return Plan(plan.rows[np.repeat(bins, sizes)], offsets, plan.fill[bins], plan.capacity)


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(blob := pickle.dumps(error))
    except Exception:  # an exception of somebody else's tokenizer may be anything
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return blob
