from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from turnpack._checks import Int64s

_Int32s = npt.NDArray[np.int32]

def lay(
    lengths: Int64s,
    documents: Int64s,
    flat: bool,
    align: int,
    multiple: int,
    capacity: int,
    most: int,
) -> tuple[_Int32s, _Int32s, Int64s | None, int, int]: ...
def read(rows: list[object], sizes: list[int], name: str, cells: Int64s) -> bool: ...
def count(boundaries: _Int32s, positions: Int64s) -> None: ...
def number(boundaries: _Int32s, numbers: _Int32s, cells: _Int32s | Int64s) -> None: ...
def orders(draws: npt.NDArray[np.uint64]) -> Int64s: ...
def items(
    arrays: dict[str, npt.NDArray[Any]],
    starts: Int64s,
    indices: Iterable[int],
    firsts: Int64s | None = None,
    lengths: _Int32s | None = None,
) -> list[dict[str, npt.NDArray[Any]]]: ...
