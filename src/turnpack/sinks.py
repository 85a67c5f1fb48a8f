"""Sinks: packed bins → files that a trainer reads.

Owns the Parquet layout, and that of the NumPy arrays that are mapped into memory. It sees arrays
and the names of sources, never text; it packs and orders nothing, and the files it is given to
write are the caller's to name and to move.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from .nouns import Packed


def parquet_schema(weighted: bool) -> pa.Schema:
    """Return the columns of a bin; `loss_weights` is there only where a run uses weights.

    `labels` are unshifted: -100 where a token is not trained on, else the token itself. The weight
    of a token that is not trained on is 0.
    """
    columns = [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("seq_lengths", pa.list_(pa.int32())),
        ("source", pa.list_(pa.string())),
    ]
    if weighted:
        columns.append(("loss_weights", pa.list_(pa.float32())))
    return pa.schema(columns)


def parquet_batch(packed: Packed, sources: pa.Array, weighted: bool) -> pa.RecordBatch:
    """Return flat bins as one Arrow batch, a row per bin, over the arrays as they are.

    `sources`: the name of every conversation, which `packed.source` counts into.
    """
    ids = packed.input_ids
    if packed.layout != "flat" or ids.dtype != np.int32:
        raise TypeError(f"bins must be flat int32, not {packed.layout} {ids.dtype}")
    lengths = np.diff(packed.cu_seqlens)
    if len(lengths) != len(packed.rows):
        raise ValueError(f"{len(packed.rows)} rows, but {len(lengths)} lengths")
    cells = packed.cu_seqlens[packed.bin_offsets]
    names = sources.take(pa.array(packed.source)).cast(pa.string())
    columns = [
        _lists(cells, ids),
        _lists(cells, packed.labels),
        _lists(packed.bin_offsets, lengths.astype(np.int32)),
        _lists(packed.bin_offsets, names),
    ]
    if weighted:
        weights = np.float32(1) if packed.loss_weights is None else packed.loss_weights
        columns.append(_lists(cells, np.where(packed.labels == -100, np.float32(0), weights)))
    return pa.record_batch(columns, schema=parquet_schema(weighted))


def _lists(offsets: np.ndarray, values: np.ndarray | pa.Array) -> pa.ListArray:
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{offsets[-1]} cells are more than one Arrow list column holds")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


class ParquetSink:
    """One Parquet file, open for writing; each batch becomes a row group.

    Token ids hardly repeat in a row group and are never compared with a constant: a dictionary or
    statistics would cost space and give nothing, zstd alone is smallest.
    """

    def __init__(self, path: str | os.PathLike[str], weighted: bool = False) -> None:
        self.weighted = weighted
        self._writer = pq.ParquetWriter(
            os.fspath(path),
            parquet_schema(weighted),
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
        )

    def write(self, packed: Packed, sources: pa.Array) -> None:
        """Write these bins as the next row group."""
        batch = parquet_batch(packed, sources, self.weighted)
        self._writer.write_batch(batch, row_group_size=max(1, batch.num_rows))

    def close(self) -> None:
        """Write the footer; the file is no Parquet file before."""
        self._writer.close()

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Write these bins: columns as `parquet_batch` makes them, or `loss_mask` for `labels`.

        Without `seq_lengths` each bin is one document. Raises ValueError where a bin's lengths do
        not agree or something is null.
        """
        offsets, ids = list_column(batch, "input_ids")
        lengths = np.diff(offsets)
        if "seq_lengths" in batch.schema.names:
            documents, seq_lengths = list_column(batch, "seq_lengths")
        else:
            documents, seq_lengths = np.arange(len(offsets)), lengths
        if len(lengths):
            sums = np.add.reduceat(np.append(seq_lengths, 0), documents[:-1])
            wrong = (sums != lengths) | (np.diff(documents) < 1)
            if wrong.any():
                at = int(wrong.argmax())
                raise ValueError(f"bin {at} has {lengths[at]} tokens, but its documents {sums[at]}")
        self._files["input_ids"].append(ids)
        if "labels" in batch.schema.names:
            labels = self._like(batch, "labels", offsets)
        elif "loss_mask" in batch.schema.names:
            labels = np.where(self._like(batch, "loss_mask", offsets) != 0, ids, -100)
        else:
            raise ValueError("there is neither a column labels nor one loss_mask")
        self._files["labels"].append(labels)
        if self.weighted:
            self._files["loss_weights"].append(self._like(batch, "loss_weights", offsets))
        self._files["seq_lengths"].append(seq_lengths)
        ends = self._ends + np.stack([offsets[1:], documents[1:]], axis=1)
        self._files["offsets"].append(ends)
        self._ends += [len(ids), len(seq_lengths)]

    @staticmethod
    def _like(batch: pa.RecordBatch | pa.Table, name: str, offsets: np.ndarray) -> np.ndarray:
        found, values = list_column(batch, name)
        if not np.array_equal(found, offsets):
            at = int((np.diff(found) != np.diff(offsets)).argmax())
            raise ValueError(f"bin {at} has other lengths in {name} than in input_ids")
        return values

    def close(self) -> None:
        """Write the sizes into the headers; the files are empty arrays before."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> NumpySink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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


def list_column(batch: pa.RecordBatch | pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 `[rows + 1]` from 0 and values of a column of lists without nulls."""
    column = batch.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"column {name} is {column.type}, not lists")
    if column.null_count or column.flatten().null_count:
        raise ValueError(f"column {name} has nulls")
    offsets = np.asarray(column.offsets).astype(np.int64)
    values = column.flatten()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return offsets - offsets[0], values.to_numpy()
