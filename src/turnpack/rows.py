"""Rows on their way through `prepare`: tokens, and what the job must not forget about each.

Owns how such rows are joined, chosen, kept on disk and read back. It knows no text, no bin and no
format of output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import kernels
from .nouns import Plan, Tokens


@dataclass(frozen=True, slots=True)
class Rows:
    """`tokens`, and of every row: `names`, `files`, `first`. No row is empty.

    `names`: how the place of its conversation is spelled, large_string. `files` int32: which of the
    job's inputs it is from. `first` bool: whether it is its conversation's first row, as truncate
    "split" makes several. `tokens.source` counts the rows themselves.
    """

    tokens: Tokens
    names: pa.Array
    files: npt.NDArray[np.int32]
    first: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tokens: Tokens, names: pa.Array, files: npt.NDArray[np.int32]) -> Rows:
        """Rows of tokens whose `source` counts `names` and `files`, and does not fall."""
        first = np.append(True, np.diff(tokens.source) != 0)[: len(tokens)]
        return cls(
            _numbered(tokens), names.take(pa.array(tokens.source)), files[tokens.source], first
        )

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        tokens = Tokens.join([part.tokens for part in parts])
        return cls(
            _numbered(tokens),
            pa.concat_arrays([*(part.names for part in parts), pa.array([], pa.large_string())]),
            np.concatenate([*(part.files for part in parts), np.empty(0, np.int32)]),
            np.concatenate([*(part.first for part in parts), np.empty(0, bool)]),
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`, as views."""
        tokens = self.tokens
        offsets = tokens.offsets[start : stop + 1]
        first, last = offsets[0], offsets[-1]
        weights = tokens.loss_weights
        return Rows(
            Tokens(
                tokens.input_ids[first:last],
                tokens.loss_mask[first:last],
                offsets - first,
                loss_weights=None if weights is None else weights[first:last],
            ),
            self.names.slice(start, stop - start),
            self.files[start:stop],
            self.first[start:stop],
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """These rows, each no more than once, in this order, as a copy: as one bin of them."""
        total = int(self.tokens.lengths[rows].sum())
        bin = Plan(rows, np.array([0, len(rows)]), np.array([total]), max(1, total))
        packed = kernels.pack(self.tokens, bin, layout="flat")
        tokens = Tokens(
            packed.input_ids,
            (packed.labels != -100).view(np.uint8),
            packed.cu_seqlens,
            loss_weights=packed.loss_weights,
        )
        return Rows(tokens, self.names.take(pa.array(rows)), self.files[rows], self.first[rows])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to a new file, which is on the disk when this returns."""
        batch = self.to_batch()
        with open(path, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
            writer.close()
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rows:
        """Read what `save` wrote."""
        with pa.OSFile(os.fspath(path)) as file:
            return cls.from_batch(pa.ipc.open_file(file).get_batch(0))

    def to_batch(self) -> pa.RecordBatch:
        """The same in Arrow, a column for each array."""
        tokens = self.tokens
        offsets = pa.array(tokens.offsets)
        columns = {
            "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(tokens.input_ids)),
            "loss_mask": pa.LargeListArray.from_arrays(offsets, pa.array(tokens.loss_mask)),
            "names": self.names,
            "files": pa.array(self.files),
            "first": pa.array(self.first),
        }
        if tokens.loss_weights is not None:
            weights = pa.array(tokens.loss_weights)
            columns["loss_weights"] = pa.LargeListArray.from_arrays(offsets, weights)
        return pa.record_batch(columns)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Rows:
        """What `to_batch` made; further columns are not looked at."""
        ids = batch.column("input_ids")
        weights = (
            batch.column("loss_weights").values.to_numpy()
            if "loss_weights" in batch.schema.names
            else None
        )
        return cls(
            Tokens(
                ids.values.to_numpy(),
                batch.column("loss_mask").values.to_numpy(),
                ids.offsets.to_numpy(),
                loss_weights=weights,
            ),
            batch.column("names"),
            batch.column("files").to_numpy(),
            batch.column("first").to_numpy(zero_copy_only=False),
        )


def _numbered(tokens: Tokens) -> Tokens:
    return Tokens(
        tokens.input_ids, tokens.loss_mask, tokens.offsets, loss_weights=tokens.loss_weights
    )
