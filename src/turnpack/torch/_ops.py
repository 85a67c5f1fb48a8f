"""The kernels of the GPU as operators of torch: `torch.ops.turnpack.*`, with fake forms.

Owns which tensors a kernel is given and makes: torch allocates them, the kernel runs on the current
stream. Tables come from turnpack._cuda's functions of the CPU (device.py). An operator looks at no
value, so torch.compile traces it and CUDA graphs capture it.
"""

# No `from __future__ import annotations`: torch reads the annotations for the operators' schemas.
from types import ModuleType

import torch
from torch import Tensor


def module() -> ModuleType:
    """turnpack._cuda, which cuda_available() has found."""
    from turnpack import _cuda

    return _cuda


def stream_of(tensor: Tensor) -> int:
    """The handle of the stream that its device works on now."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def _made_by_pack(
    input_ids: Tensor, loss_weights: Tensor | None, shape: list[int], dtype: torch.dtype
) -> list[Tensor]:
    made = [input_ids.new_empty(shape, dtype=dtype) for _ in range(4)]
    if loss_weights is not None:
        made.append(input_ids.new_empty(shape, dtype=torch.float32))
    return made


# A schema says what lists are: torch 2.6 cannot read it from `list[...]`.
@torch.library.custom_op(
    "turnpack::pack",
    mutates_args=(),
    schema="(Tensor input_ids, Tensor loss_mask, Tensor? loss_weights, Tensor starts, "
    "Tensor sources, Tensor numbers, SymInt[] shape, SymInt pad_id, ScalarType dtype) -> Tensor[]",
)
def pack(
    input_ids: Tensor,
    loss_mask: Tensor,
    loss_weights: Tensor | None,
    starts: Tensor,
    sources: Tensor,
    numbers: Tensor,
    shape: list[int],
    pad_id: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """input_ids, labels, position_ids, segment_ids and, where given, loss_weights of the cells."""
    made = _made_by_pack(input_ids, loss_weights, shape, dtype)
    tables = starts, sources, numbers
    weights = None if loss_weights is None else made[4]
    module().pack(
        input_ids,
        loss_mask,
        loss_weights,
        *tables,
        pad_id,
        *made[:4],
        weights,
        stream_of(input_ids),
    )
    return made


@pack.register_fake
def _(input_ids, loss_mask, loss_weights, starts, sources, numbers, shape, pad_id, dtype):  # type: ignore[no-untyped-def]
    return _made_by_pack(input_ids, loss_weights, shape, dtype)


def _made_of_tokens(like: Tensor, size: int, weighted: bool) -> list[Tensor]:
    made = [like.new_empty(size, dtype=torch.int32), like.new_empty(size, dtype=torch.uint8)]
    return [*made, like.new_empty(size, dtype=torch.float32)] if weighted else made


@torch.library.custom_op(
    "turnpack::unpack",
    mutates_args=(),
    schema="(Tensor input_ids, Tensor labels, Tensor? loss_weights, Tensor offsets, "
    "Tensor sources, SymInt size) -> Tensor[]",
)
def unpack(
    input_ids: Tensor,
    labels: Tensor,
    loss_weights: Tensor | None,
    offsets: Tensor,
    sources: Tensor,
    size: int,
) -> list[Tensor]:
    """input_ids, loss_mask and, where given, loss_weights of `size` tokens."""
    made = _made_of_tokens(input_ids, size, loss_weights is not None)
    weights = None if loss_weights is None else made[2]
    module().unpack(
        input_ids,
        labels,
        loss_weights,
        offsets,
        sources,
        *made[:2],
        weights,
        stream_of(input_ids),
    )
    return made


@unpack.register_fake
def _(input_ids, labels, loss_weights, offsets, sources, size):  # type: ignore[no-untyped-def]
    return _made_of_tokens(input_ids, size, loss_weights is not None)


@torch.library.custom_op(
    "turnpack::concat",
    mutates_args=(),
    schema="(Tensor turn_ids, Tensor around, Tensor starts, Tensor sources, Tensor targets, "
    "SymInt size) -> Tensor[]",
)
def concat(
    turn_ids: Tensor, around: Tensor, starts: Tensor, sources: Tensor, targets: Tensor, size: int
) -> list[Tensor]:
    """input_ids and loss_mask of `size` tokens."""
    made = _made_of_tokens(turn_ids, size, False)
    module().concat(turn_ids, around, starts, sources, targets, *made, stream_of(turn_ids))
    return made


@concat.register_fake
def _(turn_ids, around, starts, sources, targets, size):  # type: ignore[no-untyped-def]
    return _made_of_tokens(turn_ids, size, False)


@torch.library.custom_op("turnpack::mask_markers", mutates_args=())
def mask_markers(
    input_ids: Tensor,
    rows: Tensor,
    starts: Tensor,
    start_offsets: Tensor,
    ends: Tensor,
    end_offsets: Tensor,
    include_end: bool,
    states: int,
) -> Tensor:
    """The loss mask."""
    made = torch.empty_like(input_ids, dtype=torch.uint8)
    tiles = -(-len(input_ids) // module().TILE)
    exits = input_ids.new_empty(tiles * states)
    entries = input_ids.new_empty(tiles)
    patterns = starts, start_offsets, ends, end_offsets
    scratch = exits, entries
    module().mask_markers(
        input_ids,
        rows,
        *patterns,
        include_end,
        states,
        *scratch,
        made,
        stream_of(input_ids),
    )
    return made


@mask_markers.register_fake
def _(input_ids, rows, starts, start_offsets, ends, end_offsets, include_end, states):  # type: ignore[no-untyped-def]
    return torch.empty_like(input_ids, dtype=torch.uint8)
