"""Ragged data that lies in buffers already: Arrow lists and matrices, taken without a copy.

Looks at types and bounds only. What it does not take, `_ingest` reads item by item, in the words of
which everything wrong is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import Int64s

Ragged = tuple[npt.NDArray[np.int32], Int64s]

_ARROW = ("__arrow_c_array__", "__arrow_c_stream__", "__arrow_array__")


def is_arrow(value: object) -> bool:
    """Say whether this gives its content to Arrow: of pyarrow, polars, awkward and others."""
    return any(hasattr(value, name) for name in _ARROW)


def arrow(value: Any) -> Any:
    """Take over such a value as one pyarrow Array.

    Raises ValueError for one whose buffers are not what its type says, which Arrow would believe.
    """
    import pyarrow as pa  # not needed by `import turnpack`

    if hasattr(value, "__arrow_c_stream__") and not isinstance(value, pa.Array):
        value = pa.chunked_array(value)
        value = value.chunk(0) if value.num_chunks == 1 else value.combine_chunks()
    value = pa.array(value)
    value = value.storage if isinstance(value, pa.ExtensionArray) else value
    if not _is_lists_of_integers(value.type):
        value.validate(full=True)
        return value
    offsets = np.asarray(value.offsets.to_numpy())
    falls = offsets[1:] < offsets[:-1]  # which Arrow's short validation does not see
    if falls.any():
        i = int(falls.argmax()) + 1
        raise ValueError(f"rows has offsets that fall from {offsets[i - 1]} to {offsets[i]} at {i}")
    value.validate()
    return value


def from_arrow(array: Any) -> Ragged | None:
    """Values and offsets of an Arrow array of lists of integers; None if it is none or has nulls.

    Shares the memory of int32 values, and of int64 offsets that start at 0.
    """
    if not _is_lists_of_integers(array.type) or array.null_count:
        return None
    offsets = np.asarray(array.offsets.to_numpy(), np.int64)
    begin, end = int(offsets[0]), int(offsets[-1])
    values = array.values.slice(begin, end - begin)
    ids = None if values.null_count else _int32(values.to_numpy())
    if ids is None:
        return None
    return ids, offsets - begin if begin else offsets


def _is_lists_of_integers(type_: Any) -> bool:
    import pyarrow as pa

    is_lists = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return bool(is_lists and pa.types.is_integer(type_.value_type))


def from_matrix(rows: npt.NDArray[Any]) -> Ragged | None:
    """Values and offsets of the rows of a matrix of integers; None if it is none."""
    ids = _int32(rows.reshape(-1)) if rows.ndim == 2 and rows.dtype.kind in "iu" else None
    if ids is None:
        return None
    return ids, np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]


def _int32(values: npt.NDArray[Any]) -> npt.NDArray[np.int32] | None:
    """The values as int32, themselves where they are; None if one is beyond it."""
    if values.dtype == np.int32 and values.dtype.isnative:
        return np.require(values, requirements=("C", "A"))
    bounds = np.iinfo(np.int32)
    if len(values) and not bounds.min <= int(values.min()) <= int(values.max()) <= bounds.max:
        return None
    return values.astype(np.int32)
