"""Bins as `.npy` files that are mapped into memory, as PackedDataset reads them. Labels unshifted.

Owns the arrays and their layout; when they are made, and of what, is mapped.py's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from .bins import Bins

# The arrays of a NumpySink: those of tokens, and those of documents. `offsets` int64 `[bins + 1,
# 2]` says where each bin begins in the former and in the latter.
NUMPY_TOKENS = {"input_ids": np.int32, "labels": np.int32, "loss_weights": np.float32}
NUMPY_ARRAYS = {**NUMPY_TOKENS, "seq_lengths": np.int32, "offsets": np.int64}


class NumpySink:
    """A folder of `.npy` files, open for writing: bins back to back, to be mapped into memory.

    `input_ids.npy`, `labels.npy`, `seq_lengths.npy` (tokens of each document), `offsets.npy` and,
    where weighted, `loss_weights.npy`. What goes in need not fit into memory.
    """

    def __init__(self, folder: str | os.PathLike[str], weighted: bool = False) -> None:
        self.weighted = weighted
        Path(folder).mkdir()
        self._files = {
            name: _Npy(Path(folder) / f"{name}.npy", dtype)
            for name, dtype in NUMPY_ARRAYS.items()
            if weighted or name != "loss_weights"
        }
        self._files["offsets"].append(np.zeros(2))
        self._ends = np.zeros(2, np.int64)

    def write(self, bins: Bins) -> None:
        """Write these bins behind those before."""
        self._files["input_ids"].append(bins.input_ids)
        self._files["labels"].append(bins.labels)
        if self.weighted:
            self._files["loss_weights"].append(bins.weights())
        self._files["seq_lengths"].append(bins.seq_lengths)
        ends = self._ends + np.stack([bins.offsets[1:], bins.documents[1:]], axis=1)
        self._files["offsets"].append(ends)
        self._ends += [len(bins.input_ids), len(bins.seq_lengths)]

    def close(self) -> None:
        """Write the sizes into the headers; the files are empty arrays before."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> NumpySink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Npy:
    """One `.npy` file that grows; NumPy leaves room in the header for its length."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._size = 0
        self._pairs = path.stem == "offsets"
        self._file: BinaryIO = path.open("wb")
        self._head()

    def append(self, values: np.ndarray) -> None:
        made = np.ascontiguousarray(values, self._dtype)
        self._file.write(made.data)
        self._size += made.size

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._head()
            self._file.close()

    def _head(self) -> None:
        shape = (self._size // 2, 2) if self._pairs else (self._size,)
        header = {
            "descr": self._dtype.str,
            "fortran_order": False,
            "shape": shape,
        }
        npy.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]
