"""The Parquet layout: a bin a row, as datasets and TRL read it. Labels are not shifted.

Owns the columns and how they are written; what is written from such files is the other sinks'.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..nouns import Packed


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
        lists(cells, ids),
        lists(cells, packed.labels),
        lists(packed.bin_offsets, lengths.astype(np.int32)),
        lists(packed.bin_offsets, names),
    ]
    if weighted:
        weights = np.float32(1) if packed.loss_weights is None else packed.loss_weights
        columns.append(lists(cells, np.where(packed.labels == -100, np.float32(0), weights)))
    return pa.record_batch(columns, schema=parquet_schema(weighted))


def lists(offsets: np.ndarray, values: np.ndarray | pa.Array) -> pa.ListArray:
    """Return a column of lists over `values` as they are, cut at `offsets`."""
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{offsets[-1]} cells are more than one Arrow list column holds")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def parquet_writer(path: str | os.PathLike[str], schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file of tokens for writing.

    Token ids hardly repeat in a row group and are never compared with a constant: a dictionary or
    statistics would cost space and give nothing, zstd alone is smallest.
    """
    return pq.ParquetWriter(
        os.fspath(path), schema, compression="zstd", use_dictionary=False, write_statistics=False
    )


class ParquetSink:
    """One Parquet file, open for writing; each batch becomes a row group."""

    def __init__(self, path: str | os.PathLike[str], weighted: bool = False) -> None:
        self.weighted = weighted
        self._writer = parquet_writer(path, parquet_schema(weighted))

    def write(self, packed: Packed, sources: pa.Array) -> None:
        """Write these bins as the next row group."""
        self.write_batch(parquet_batch(packed, sources, self.weighted))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write bins that `parquet_batch` made as the next row group."""
        self._writer.write_batch(batch, row_group_size=max(1, batch.num_rows))

    def close(self) -> None:
        """Write the footer; the file is no Parquet file before."""
        self._writer.close()

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
