"""The map-style dataset: stored bins, or their documents, straight from mapped memory.

Owns what an item is. It decodes and copies nothing: mapped.py does the first, the collator the
other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from .. import mapped
from . import _cells

Item = dict[str, npt.NDArray[Any]]


class PackedDataset(Dataset[Item]):
    """What `prepare` wrote, a folder of such Parquet files or one file, as a map-style dataset.

    An item is one stored bin, for `Collator`: `input_ids`, `labels` (unshifted), `seq_lengths`
    int32, and `loss_weights` float32 where the set has them, as read-only arrays on mapped memory;
    and `position_ids`, by which the collator knows documents where a trainer has removed
    `seq_lengths` as a column that no model takes.
    So a machine holds the set once, in the page cache, for all its ranks and workers. An unpacked
    set (no column `seq_lengths`) has one row in an item.

    `split`: which files of a folder, by what their names begin with. `documents`: items are the
    single documents instead of the bins, for `PackingBatchSampler` to pack anew. `cache`: the
    folder for the mapped arrays; by default `numpy/` beside the Parquet, into which it is decoded
    once, by the first process, unless `prepare` has (`--sink numpy`).

    `lengths` int64 `[items]`: tokens of each item.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        documents: bool = False,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        files, folder = mapped.find(path, split)
        if cache is not None:
            folder = type(folder)(cache)
        self.__setstate__({"files": files, "folder": folder, "documents": documents})

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the files again instead of being sent what is in them.
        return {"files": self._files, "folder": self._folder, "documents": self.documents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._files, self._folder = state["files"], state["folder"]
        self.documents: bool = state["documents"]
        arrays = mapped.load(self._files, self._folder)
        offsets, lengths = arrays.pop("offsets"), arrays.pop("seq_lengths")
        self._tokens = arrays
        self._starts: npt.NDArray[np.int64] = offsets[:, 0]
        self._documents: tuple[Any, ...] = offsets[:, 1], lengths
        if self.documents:
            self._starts, self._documents = np.append(0, np.cumsum(lengths, dtype=np.int64)), ()

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each item, int64 `[items]`."""
        return np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of these indices: views, so nothing is read before it is collated."""
        return _cells.items(self._tokens, self._starts, indices, *self._documents)
