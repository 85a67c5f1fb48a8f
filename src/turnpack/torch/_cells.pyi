import numpy as np
import numpy.typing as npt

from turnpack._checks import Int64s

def read(rows: list[list[int]], cells: Int64s) -> None: ...
def number(segments: Int64s, positions: Int64s, numbers: npt.NDArray[np.int32]) -> None: ...
