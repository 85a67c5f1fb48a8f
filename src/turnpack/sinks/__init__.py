"""Sinks: packed bins → files that a trainer reads.

`parquet` is written from arrays, every other sink from finished Parquet (`exports.SINKS`), a batch
at a time. They see arrays and the names of sources, never text; they pack and order nothing, and
the files they are given to write are the caller's to name and to move.
"""

from .bins import Bins, stored
from .numpy import NUMPY_ARRAYS, NumpySink
from .parquet import ParquetSink, parquet_batch, parquet_schema

__all__ = [
    "NUMPY_ARRAYS",
    "Bins",
    "NumpySink",
    "ParquetSink",
    "parquet_batch",
    "parquet_schema",
    "stored",
]
