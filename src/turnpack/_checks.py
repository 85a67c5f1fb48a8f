"""What array arguments may look like: types, dtypes and layouts, and the words that refuse others.

The nouns and _arguments.py stand on it. Says nothing about what the values mean, apart from offsets
as the nouns hold them; the kernels and the reference check values, each on their own.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

_INT32, _INT64 = np.iinfo(np.int32), np.iinfo(np.int64)


def is_int(value: object) -> bool:
    """Say whether this is a whole number: int or a NumPy integer; no bool and no timedelta64."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def instance(name: str, value: object, kind: type) -> None:
    """Refuse what is not a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def number(name: str, value: object, bounds: Any = _INT64) -> int:
    """Take a whole number within int64, or within other `bounds`."""
    if not is_int(value):
        raise TypeError(f"{name} is {type(value).__name__}, not an int")
    found = int(value)  # type: ignore[call-overload]
    if not bounds.min <= found <= bounds.max:
        raise ValueError(f"{name} is {found}, beyond {bounds.dtype}")
    return int(found)


def int32(name: str, value: object) -> int:
    """Take a whole number within int32."""
    return number(name, value, _INT32)


def boolean(name: str, value: object) -> bool:
    """Take True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {type(value).__name__}, not a bool")
    return bool(value)


def choice(name: str, value: object, known: tuple[str, ...]) -> str:
    """Take one of the known names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, not a str")
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: {', '.join(known)}")
    return value


def cell_dtype(value: object) -> np.dtype[Any]:
    """Take the dtype of cells: int32 or int64, in this machine's byte order."""
    try:
        found: np.dtype[Any] | None = np.dtype(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if found is None or not (found == np.int32 or found == np.int64):
        shown = value if found is None else found
        raise TypeError(f"dtype is {shown}, not int32 or int64")
    return found


def array(name: str, value: object, *dtypes: npt.DTypeLike, ndim: int = 1) -> npt.NDArray[Any]:
    """Take a C-contiguous array of one of the dtypes: token arrays are never converted."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is {type(value).__name__}, not a NumPy array")
    _not_masked(name, value)
    if value.dtype not in dtypes:
        expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise TypeError(f"{name} has dtype {value.dtype}, not {expected}")
    if value.ndim != ndim:
        raise TypeError(f"{name} has {value.ndim} dimensions, not {ndim}")
    if not (value.flags.c_contiguous and value.flags.aligned):
        raise TypeError(f"{name} is not C-contiguous and aligned")
    return value


def _not_masked(name: str, value: npt.NDArray[Any]) -> None:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, of which items may not be there")


def indices(name: str, value: object, *, pairs: bool = False, small: bool = False) -> Int64s:
    """Widen int32 or int64 arrays of any stride, or sequences of int, to int64 `[n]` (`[n, 2]`).

    With `small`, uint8 arrays pass too. An array that needs no change is returned as it is.
    """
    if isinstance(value, memoryview):  # a sequence, but not of more than one dimension
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        _not_masked(name, value)
        allowed = (np.uint8, np.int32, np.int64) if small else (np.int32, np.int64)
        if value.dtype not in allowed:
            expected = " or ".join(np.dtype(dtype).name for dtype in allowed)
            raise TypeError(f"{name} has dtype {value.dtype}, not {expected}")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = _from_sequence(name, value, pairs)
    else:
        raise TypeError(f"{name} is {type(value).__name__}, not an array or a sequence of int")
    if value.ndim != (2 if pairs else 1) or (pairs and value.shape[1] != 2):
        wanted = "[n, 2]" if pairs else "[n]"
        raise TypeError(f"{name} has shape {value.shape}, not {wanted}")
    return np.require(value, np.int64, ("C", "A"))


def _from_sequence(name: str, value: Sequence[Any], pairs: bool) -> Int64s:
    flat: Sequence[Any] = value
    if pairs:
        for i, pair in enumerate(value):
            if not isinstance(pair, (Sequence, np.ndarray)) or len(pair) != 2:
                raise TypeError(f"{name}[{i}] is not a pair of int")
        flat = [item for pair in value for item in pair]
    for i, item in enumerate(flat):
        if type(item) is not int:
            number(f"{name}[{i // 2}]" if pairs else f"{name}[{i}]", item)
    try:
        found = np.array(flat, np.int64)
    except OverflowError:
        i = next(i for i, item in enumerate(flat) if not _INT64.min <= item <= _INT64.max)
        raise ValueError(f"{name}[{i // 2 if pairs else i}] is {flat[i]}, beyond int64") from None
    return found.reshape(-1, 2) if pairs else found


def ids(name: str, value: object) -> list[int]:
    """Take the token ids of a prefix or a pattern: a sequence or an array of int within int32."""
    if isinstance(value, (np.ndarray, memoryview)):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {type(value).__name__}, not a sequence of int")
    return [int32(f"{name}[{i}]", item) for i, item in enumerate(value)]


def id_lists(name: str, value: object) -> list[list[int]]:
    """Take several such sequences."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {type(value).__name__}, not a sequence of sequences of int")
    return [ids(f"{name}[{i}]", item) for i, item in enumerate(value)]


def offsets(name: str, value: Int64s, end: int) -> None:
    """Refuse offsets that do not start at 0, that fall, or that do not stop at `end`."""
    if not len(value):
        raise ValueError(f"{name} is empty, it needs at least the 0")
    if value[0] != 0:
        raise ValueError(f"{name} starts at {value[0]}, not 0")
    falls = value[1:] < value[:-1]
    if falls.any():
        i = int(falls.argmax()) + 1
        raise ValueError(f"{name} falls from {value[i - 1]} to {value[i]} at {i}")
    if value[-1] != end:
        raise ValueError(f"{name} ends at {value[-1]}, not {end}")


def size(name: str, value: Sized, wanted: int) -> None:
    """Refuse an array of another size."""
    if len(value) != wanted:
        raise ValueError(f"{name} has {len(value)} entries, not {wanted}")
