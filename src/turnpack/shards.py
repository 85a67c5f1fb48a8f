"""Blocks of bins → the Parquet files of a split, written in a thread of their own.

Owns where a file ends and the next begins, and what is counted in what was written. What a file
looks like is sinks/parquet.py's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import kernels
from .binning import Block, stretches
from .fates import add_by_number
from .nouns import Packed
from .output import sha256
from .rows import Rows
from .sinks import ParquetSink
from .system import sync

# Tokens in a row group: little to decode for one bin, enough for zstd to find repetition.
GROUP_TOKENS = 1 << 20
# Blocks that may wait for the thread.
AHEAD = 2


@dataclass(slots=True)
class Written:
    """What is in the files of a split so far.

    `files`: path, bins, tokens, bytes and sha256 of each. `inputs`, by the number of the input:
    conversations, rows and tokens that are there. `weighted`: whether a weight is not 1.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    bins: int = 0
    rows: int = 0
    tokens: int = 0
    trained: int = 0
    inputs: dict[str, list[int]] = field(default_factory=dict)
    weighted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The same, for JSON; `Written(**d)` reads it."""
        return asdict(self)


class Shards:
    """The files of a split in `folder`, of no more than `shard_tokens` tokens if a bin allows it.

    `written` is true after `close`. Files that are not closed are under another name.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_tokens: int,
        written: Written,
    ) -> None:
        self.written = written
        self.seconds = {"pack": 0.0, "write": 0.0}
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._pool = ThreadPoolExecutor(1, f"turnpack-write-{split}")
        self._under_way: deque[Future[None]] = deque()
        self._sink: ParquetSink | None = None
        self._bins = self._tokens = 0

    def write(self, block: Block) -> None:
        """Let the block be written; wait for those before it if there are too many."""
        self._under_way.append(self._pool.submit(self._write, block))
        while len(self._under_way) > AHEAD:
            self._under_way.popleft().result()

    def close(self) -> None:
        """End the open file, when all blocks are written."""
        self._under_way.append(self._pool.submit(self._end))
        while self._under_way:
            self._under_way.popleft().result()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._sink is not None:
            with contextlib.suppress(Exception):  # there is an error already
                self._sink.close()

    @property
    def _path(self) -> str:
        return _name(self._split, self.written)

    def _write(self, block: Block) -> None:
        rows, plan = block
        weighted = rows.tokens.loss_weights is not None
        if weighted and not self.written.weighted:
            self._end()
            self.written.weighted = True
        for start, stop in stretches(plan.fill, min(GROUP_TOKENS, self._shard_tokens)):
            fill = int(plan.fill[start:stop].sum())
            if self._tokens + fill > self._shard_tokens:
                self._end()
            if self._sink is None:
                self._sink = ParquetSink(_part(self._folder / self._path), self.written.weighted)
            begun = thread_time()
            packed = kernels.pack(rows.tokens, plan[start:stop], layout="flat")
            packed_after, packed_at = thread_time() - begun, perf_counter()
            self._sink.write(packed, rows.names)
            self._count(rows, packed)
            self._bins += stop - start
            self._tokens += fill
            self.seconds["pack"] += packed_after
            self.seconds["write"] += perf_counter() - packed_at

    def _count(self, rows: Rows, packed: Packed) -> None:
        written, chosen = self.written, packed.source
        first, lengths = rows.first[chosen], rows.tokens.lengths[chosen]
        add_by_number(written.inputs, rows.files[chosen], first, np.ones_like(lengths), lengths)
        written.rows += len(chosen)
        written.trained += int(np.count_nonzero(packed.labels != -100))

    def _end(self) -> None:
        if self._sink is None:
            return
        begun = perf_counter()
        sink, self._sink = self._sink, None
        sink.close()
        path = self._folder / self._path
        self.written.files.append(
            {
                "path": self._path,
                "bins": self._bins,
                "tokens": self._tokens,
                **_settle(path),
            }
        )
        self.written.bins += self._bins
        self.written.tokens += self._tokens
        self._bins = self._tokens = 0
        self.seconds["write"] += perf_counter() - begun


def adopt(folder: Path, split: str, written: Written, home: Path, more: Written) -> None:
    """Put the files of a split that another wrote, `more` in `home`, behind those of `folder`.

    They stay in `home` as well, as links where the file system has such.
    """
    for file in more.files:
        path = _name(split, written)
        try:
            os.link(home / file["path"], folder / path)
        except OSError:
            shutil.copyfile(home / file["path"], folder / path)
            sync(folder / path)
        written.files.append({**file, "path": path})
    for name in ("bins", "rows", "tokens", "trained"):
        setattr(written, name, getattr(written, name) + getattr(more, name))
    for number, counts in more.inputs.items():
        before = written.inputs.get(number, [0, 0, 0])
        written.inputs[number] = [a + b for a, b in zip(before, counts, strict=True)]
    written.weighted = written.weighted or more.weighted


def _name(split: str, written: Written) -> str:
    """The path of the file that follows those that are there."""
    return f"data/{split}-{len(written.files):05}.parquet"


def is_whole(folder: Path, file: Mapping[str, Any]) -> bool:
    """Whether a file is there as `Written` lists it, or as `complete_weights` left it since."""
    path = folder / file["path"]
    try:
        return path.stat().st_size == file["bytes"] or _is_weighted(path)
    except (OSError, pa.ArrowException):
        return False


def complete_weights(folder: Path, written: Written) -> None:
    """Give `loss_weights` to those files that were written before the first weight was seen.

    They were given to some already where a run was stopped here.
    """
    for file in written.files if written.weighted else ():
        path = folder / file["path"]
        if _is_weighted(path):
            if path.stat().st_size != file["bytes"]:
                file |= _facts(path)
            continue
        with pq.ParquetFile(path) as old, ParquetSink(_part(path), weighted=True) as sink:
            for group in range(old.num_row_groups):
                (batch,) = old.read_row_group(group).to_batches()
                labels = batch.column("labels")
                ones = (np.asarray(labels.values) != -100).astype(np.float32)
                weights = pa.ListArray.from_arrays(labels.offsets, pa.array(ones))
                sink.write_batch(batch.append_column("loss_weights", weights))
        file |= _settle(path)


def _is_weighted(path: Path) -> bool:
    return "loss_weights" in pq.read_schema(path).names


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _settle(path: Path) -> dict[str, Any]:
    """Put a file that is whole under its name and on the disk; return its size and checksum."""
    sync(_part(path))
    os.replace(_part(path), path)
    return _facts(path)


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
