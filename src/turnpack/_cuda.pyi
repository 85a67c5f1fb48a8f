from typing import Any

import numpy as np
import numpy.typing as npt

from turnpack._arguments import Ids
from turnpack._checks import Int64s

# An array on the device: anything with __cuda_array_interface__.
_Device = Any
_Flags = npt.NDArray[np.uint8]

TILE: int

def missing() -> str: ...
def architectures() -> str: ...
def pack_pieces(
    offsets: Int64s,
    tokens: int,
    rows: Int64s,
    bin_offsets: Int64s,
    fill: Int64s,
    capacity: int,
    flat: bool,
    wide: bool,
) -> tuple[Int64s, Int64s, Ids, int]: ...
def take_documents(
    from_array: npt.NDArray[Any], starts: Int64s, sources: Int64s, into: npt.NDArray[Any]
) -> None: ...
def unpack_pieces(
    rows: Int64s, bin_offsets: Int64s, cu_seqlens: Int64s, cells: int, capacity: int
) -> tuple[Int64s, Int64s, Int64s]: ...
def concat_pieces(
    tokens: int,
    turn_offsets: Int64s,
    roles: Int64s,
    row_offsets: Int64s,
    affix_offsets: Int64s,
    targets: _Flags,
    suffix_targets: _Flags,
    bos_size: int,
    eos_size: int,
) -> tuple[Int64s, Int64s, _Flags, Int64s]: ...
def mask_pieces(
    offsets: Int64s,
    tokens: int,
    starts: Ids,
    start_offsets: Int64s,
    ends: Ids,
    end_offsets: Int64s,
) -> tuple[Int64s, Ids, Int64s, Ids, Int64s, int]: ...
def pack(
    input_ids: _Device,
    loss_mask: _Device,
    loss_weights: _Device | None,
    starts: _Device,
    sources: _Device,
    numbers: _Device,
    pad_id: int,
    out_ids: _Device,
    labels: _Device,
    position_ids: _Device,
    segment_ids: _Device,
    out_weights: _Device | None,
    stream: int,
) -> None: ...
def unpack(
    cell_ids: _Device,
    labels: _Device,
    cell_weights: _Device | None,
    offsets: _Device,
    sources: _Device,
    input_ids: _Device,
    loss_mask: _Device,
    loss_weights: _Device | None,
    stream: int,
) -> None: ...
def concat(
    turn_ids: _Device,
    around: _Device,
    starts: _Device,
    sources: _Device,
    targets: _Device,
    input_ids: _Device,
    loss_mask: _Device,
    stream: int,
) -> None: ...
def mask_markers(
    input_ids: _Device,
    rows: _Device,
    starts: _Device,
    start_offsets: _Device,
    ends: _Device,
    end_offsets: _Device,
    include_end: bool,
    states: int,
    exits: _Device,
    entries: _Device,
    loss_mask: _Device,
    stream: int,
) -> None: ...
