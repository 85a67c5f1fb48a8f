from typing import Any

import numpy as np
import numpy.typing as npt

from turnpack._arguments import Ids
from turnpack._checks import Int64s
from turnpack.nouns import Packed, Tokens

_Mask = npt.NDArray[np.uint8]
_Weights = npt.NDArray[np.float32]
_Cells = npt.NDArray[Any]

def concat(
    turn_ids: Ids,
    turn_offsets: Int64s,
    roles: Int64s,
    row_offsets: Int64s,
    affixes: Ids,
    affix_offsets: Int64s,
    targets: _Mask,
    suffix_targets: _Mask,
    bos: Ids,
    eos: Ids,
    out: Tokens | None,
    threads: int,
) -> tuple[Ids, _Mask, Int64s]: ...
def mask_spans(
    extents: Int64s,
    offsets: Int64s,
    spans: Int64s,
    span_offsets: Int64s,
    out: _Mask | None,
    threads: int,
) -> _Mask: ...
def mask_markers(
    input_ids: Ids,
    offsets: Int64s,
    starts: Ids,
    start_offsets: Int64s,
    ends: Ids,
    end_offsets: Int64s,
    include_end: bool,
    out: _Mask | None,
    threads: int,
) -> _Mask: ...
def plan(
    lengths: Int64s,
    capacity: int,
    strategy: str,
    align: int,
    max_rows: int,
    threads: int,
    wide: bool = False,
) -> tuple[Int64s, Int64s, Int64s]: ...

class Planner:
    def __init__(self, capacity: int, window: int, align: int, max_rows: int) -> None: ...
    def add(self, lengths: Int64s) -> tuple[Int64s, Int64s, Int64s]: ...
    def flush(self) -> tuple[Int64s, Int64s, Int64s]: ...
    def state(self) -> tuple[int, Int64s, Int64s]: ...
    def load(self, rows: int, ids: Int64s, lengths: Int64s) -> None: ...

def pack(
    input_ids: Ids,
    loss_mask: _Mask,
    offsets: Int64s,
    loss_weights: _Weights | None,
    rows: Int64s,
    bin_offsets: Int64s,
    fill: Int64s,
    capacity: int,
    pad_id: int,
    flat: bool,
    wide: bool,
    out: Packed | None,
    threads: int,
    lanes: int = 0,
) -> tuple[_Cells, _Cells, _Cells, _Cells, Int64s, int, _Weights | None]: ...
def unpack(
    input_ids: _Cells,
    labels: _Cells,
    rows: Int64s,
    bin_offsets: Int64s,
    cu_seqlens: Int64s,
    loss_weights: _Weights | None,
    capacity: int,
    threads: int,
) -> tuple[Ids, _Mask, Int64s, Int64s, _Weights | None]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def stream_from() -> int: ...
def set_stream_from(bytes: int) -> None: ...
