"""`concat`, `mask_markers`, `pack` and `unpack` where the tensors are.

Owns what goes to the GPU and in what form: tokens of the CPU travel as 5 bytes each, in one pinned
buffer with the tables that say where they go, and become bins on the device. Everything is put on
the caller's current stream and nothing waits for it. Plans, offsets and whatever else the CPU has
to look at stay there, as NumPy arrays. Bad values are refused as turnpack.kernels refuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .. import _arguments, _checks, _ingest, kernels, nouns
from .._arguments import Indices
from .._checks import Int64s
from ..cuda import cuda_available
from ..nouns import Plan, Role
from . import _ops

Device: TypeAlias = "torch.device | str | int"
_CELLS: dict[torch.dtype, np.dtype[Any]] = {
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}
_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
_ALIGNED = 16  # bytes: where an array may begin in a buffer


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tokens:
    """Tokenized rows whose tokens are on a device; as `turnpack.Tokens`.

    `input_ids` int32 `[n]`, `loss_mask` uint8 `[n]` and `loss_weights` float32 `[n]` or None:
    tensors, or what else lies on the device and has `__dlpack__` or `__cuda_array_interface__`
    (CuPy, Numba). `offsets` int64 `[rows + 1]` and `source` int64 `[rows]`: on the CPU, where
    `plan` needs them.

    Raises TypeError for another dtype or layout, ValueError where sizes or offsets disagree.
    """

    input_ids: Tensor
    loss_mask: Tensor
    offsets: Int64s
    source: Int64s = None  # type: ignore[assignment]
    loss_weights: Tensor | None = None

    def __post_init__(self) -> None:
        ids = tensor_of("input_ids", self.input_ids, torch.int32, None)
        mask = tensor_of("loss_mask", self.loss_mask, torch.uint8, ids.device)
        offsets = _indices("offsets", self.offsets)
        _checks.offsets("offsets", offsets, len(ids))
        _checks.size("loss_mask", mask, len(ids))
        rows = len(offsets) - 1
        source = np.arange(rows) if self.source is None else _indices("source", self.source)
        _checks.size("source", source, rows)
        weights = self.loss_weights
        if weights is not None:
            weights = tensor_of("loss_weights", weights, torch.float32, ids.device)
            _checks.size("loss_weights", weights, len(ids))
        object.__setattr__(self, "input_ids", ids)
        object.__setattr__(self, "loss_mask", mask)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "loss_weights", weights)

    @property
    def lengths(self) -> Int64s:
        """Tokens of each row, int64 `[rows]`, on the CPU."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        ids = self.input_ids
        return f"Tokens(rows={len(self)}, tokens={len(ids)}, device={str(ids.device)!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Packed:
    """Bins of cells on a device; as `turnpack.Packed`, bit for bit.

    `input_ids`, `labels`, `position_ids`, `segment_ids`, `cu_seqlens` int64 and `loss_weights` are
    tensors there. `rows`, `source`, `bin_offsets` and `boundaries` (the values of cu_seqlens) are
    NumPy arrays on the CPU.

    With `max_rows`, `cu_seqlens` has `max_rows + bins + 1` entries, the last of them repeated, and
    `max_seqlen` is the capacity: nothing then depends on which rows there are.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    rows: Int64s
    source: Int64s
    bin_offsets: Int64s
    cu_seqlens: Tensor
    boundaries: Int64s
    max_seqlen: int
    loss_weights: Tensor | None
    capacity: int

    @property
    def num_bins(self) -> int:
        """How many bins there are."""
        return len(self.bin_offsets) - 1

    @property
    def layout(self) -> str:
        """How the cells lie: "rows" `[bins, capacity]` or "flat" `[total]`."""
        return "flat" if self.input_ids.ndim == 1 else "rows"

    def __repr__(self) -> str:
        ids = self.input_ids
        return (
            f"Packed(rows={len(self.rows)}, bins={self.num_bins}, capacity={self.capacity}, "
            f"layout={self.layout!r}, dtype={ids.dtype}, device={str(ids.device)!r})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Tokens and a plan on their way to a device: what `stage` makes and `expand` takes.

    `buffer` uint8 holds the arrays that travel, `places` says where in it each one lies (name,
    dtype, entries, first byte). A worker of a DataLoader returns it, `pin_memory()` is called by
    DataLoader(pin_memory=True), and `to(device)` is one copy that waits for nothing.
    """

    buffer: Tensor
    places: tuple[tuple[str, torch.dtype, int, int], ...]
    rows: Int64s
    source: Int64s
    bin_offsets: Int64s
    boundaries: Int64s
    max_seqlen: int
    capacity: int
    flat: bool

    def pin_memory(self) -> Staged:
        """The same in memory that the device can fetch by itself."""
        return replace(self, buffer=self.buffer.pin_memory())

    def to(self, device: Device) -> Staged:
        """The same with its buffer on a device."""
        return replace(self, buffer=self.buffer.to(device, non_blocking=True))

    def arrays(self) -> dict[str, Tensor]:
        """The arrays by name, as views of the buffer."""
        return _views(self.buffer, self.places)


def ready(device: Device) -> torch.device | None:
    """The GPU that this names, None for the CPU. Raises RuntimeError where it cannot be used."""
    named = torch.device(device)
    if named.type == "cpu":
        return None
    if named.type != "cuda":
        raise ValueError(f"device is {named}, neither cpu nor cuda")
    reason = cuda_available().reason
    if not reason and not torch.cuda.is_available():
        reason = "this torch is built without CUDA or sees no device"
    if reason:
        raise RuntimeError(f"device {str(named)!r} cannot be used: {reason}")
    return named if named.index is not None else torch.device("cuda", torch.cuda.current_device())


def require_module() -> None:
    """Raise RuntimeError where turnpack's CUDA module is not to be had. Asks for no device."""
    try:
        _ops.module()
    except ImportError:
        raise RuntimeError(f"device 'cuda' cannot be used: {cuda_available().reason}") from None


def concat(
    turn_ids: Any,
    turn_offsets: Indices,
    roles: Indices,
    row_offsets: Indices,
    settings: Sequence[Role],
    *,
    bos: Sequence[int] = (),
    eos: Sequence[int] = (),
    device: Device = "cuda",
) -> Tokens:
    """As `turnpack.kernels.concat`; `turn_ids` int32 `[n]` may lie on the device already.

    Runs on the current stream and does not wait for it, like all functions here.
    """
    place = ready(device)
    if place is None:
        made = kernels.concat(
            _array_of(turn_ids), turn_offsets, roles, row_offsets, settings, bos=bos, eos=eos
        )
        return _with_tensors(made)
    ids, host_ids = _ids_of("turn_ids", turn_ids, place)
    _, turn_ends, role_of, row_ends, affixes, begin, end, _ = _arguments.concat(
        host_ids, turn_offsets, roles, row_offsets, settings, bos, eos, None, 1
    )
    around, affix_ends = _ingest.flatten([part for role in affixes for part in role[:2]])
    starts, sources, targets, offsets = _ops.module().concat_pieces(
        len(ids),
        turn_ends,
        role_of,
        row_ends,
        affix_ends,
        np.array([role.target for role in affixes], np.uint8),
        np.array([role.suffix_target for role in affixes], np.uint8),
        len(begin),
        len(end),
    )
    around = np.concatenate([around, np.array([*begin, *end], np.int32)])
    there = _ship(place, ids=ids, around=around, starts=starts, sources=sources, targets=targets)
    input_ids, loss_mask = _ops.concat(*there, int(offsets[-1]))
    return Tokens(input_ids, loss_mask, offsets)


def mask_markers(
    input_ids: Any,
    offsets: Indices,
    starts: Sequence[Sequence[int]],
    ends: Sequence[Sequence[int]],
    *,
    include_end: bool = True,
    device: Device = "cuda",
) -> Tensor:
    """As `turnpack.kernels.mask_markers`; `input_ids` int32 `[n]` may lie on the device already.

    Raises ValueError also for a pattern of more than 1,024 ids.
    """
    place = ready(device)
    if place is None:
        ids = _array_of(input_ids)
        made = kernels.mask_markers(ids, offsets, starts, ends, include_end=include_end)
        return torch.from_numpy(made)
    ids, host_ids = _ids_of("input_ids", input_ids, place)
    _, row_ends, opening, closing, include_end, _, _ = _arguments.mask_markers(
        host_ids, offsets, starts, ends, include_end, None, 1
    )
    rows, start_ids, start_ends, end_ids, end_ends, states = _ops.module().mask_pieces(
        row_ends, len(ids), *_ingest.flatten(opening), *_ingest.flatten(closing)
    )
    there = _ship(
        place,
        ids=ids,
        rows=rows,
        starts=start_ids,
        start_offsets=start_ends,
        ends=end_ids,
        end_offsets=end_ends,
    )
    mask: Tensor = _ops.mask_markers(*there, include_end, states)
    return mask


def pack(
    tokens: nouns.Tokens | Tokens,
    plan: Plan,
    *,
    pad_id: int = 0,
    layout: Literal["rows", "flat"] = "rows",
    dtype: torch.dtype = torch.int64,
    device: Device = "cuda",
    max_rows: int | None = None,
) -> Packed:
    """As `turnpack.pack`, with cells that are tensors on a device, `dtype` int32 or int64.

    `tokens`: of the CPU (`turnpack.Tokens`), which travel as 5 bytes each, or already on the device
    (`turnpack.torch.Tokens`). `device="cpu"` gives tensors of the CPU. `max_rows`, for layout
    "rows": shapes depend on it, on the plan's bins and its capacity alone; see `stage`.

    Raises as `turnpack.pack`, RuntimeError where there is no such device.
    """
    flat, pad_id = _options(layout, pad_id, dtype)
    place = ready(device)
    if place is None:
        made = kernels.pack(
            _on_host(tokens), plan, pad_id=pad_id, layout=layout, dtype=_CELLS[dtype]
        )
        starts, longest = _starts_of(made.cu_seqlens, made.max_seqlen, plan, flat, max_rows)
        input_ids, labels, position_ids, segment_ids = (
            torch.from_numpy(getattr(made, name)) for name in nouns.CELLS
        )
        return Packed(
            input_ids,
            labels,
            position_ids,
            segment_ids,
            made.rows,
            made.source,
            made.bin_offsets,
            torch.from_numpy(starts),
            made.cu_seqlens,
            longest,
            None if made.loss_weights is None else torch.from_numpy(made.loss_weights),
            made.capacity,
        )
    there = tokens if isinstance(tokens, Tokens) else None
    if there is not None:
        tensor_of("tokens.input_ids", there.input_ids, torch.int32, place)
    staged = _stage(
        tokens, plan, flat, max_rows, wide=dtype == torch.int64, pinned=place.type == "cuda"
    )
    return _expand(staged.to(place), pad_id, dtype, there)


def stage(
    tokens: nouns.Tokens,
    plan: Plan,
    *,
    layout: Literal["rows", "flat"] = "rows",
    max_rows: int | None = None,
) -> Staged:
    """What `pack` sends to the device, made without one: the half that a DataLoader's worker does.

    With `max_rows` (layout "rows"), the buffer has the same size for every plan of as many bins and
    the same capacity that places at most so many rows: copy it into the buffer that a CUDA graph
    of `expand` was captured with, and replay.

    Needs turnpack's CUDA module, no device. Raises as `turnpack.pack`, RuntimeError without it.
    """
    require_module()
    flat, _ = _options(layout, 0, torch.int64)
    _checks.instance("tokens", tokens, nouns.Tokens)
    return _stage(tokens, plan, flat, max_rows, wide=True, pinned=False)


def expand(
    staged: Staged, *, pad_id: int = 0, dtype: torch.dtype = torch.int64, device: Device = "cuda"
) -> Packed:
    """Make the bins on the device: `expand(stage(tokens, plan))` is `pack(tokens, plan)`.

    Where the buffer is on a device already, `device` is not looked at.
    """
    _, pad_id = _options("rows", pad_id, dtype)
    if dtype == torch.int32 and staged.max_seqlen > 2**31:
        raise ValueError(f"max_seqlen is {staged.max_seqlen}, too many for int32")
    if staged.buffer.device.type == "cpu":
        place = ready(device)
        if place is None:
            raise ValueError("expand works on a GPU only; pack works on the CPU, too")
        staged = staged.to(place)
    return _expand(staged, pad_id, dtype, None)


def unpack(packed: Packed) -> Tokens:
    """As `turnpack.unpack`, on the device where the cells are.

    Ids beyond int32, which `pack` never makes, are not looked for on a GPU.
    """
    _checks.instance("packed", packed, Packed)
    place = ready(packed.input_ids.device)
    if place is None:
        return _with_tensors(kernels.unpack(on_cpu(packed)))
    offsets, sources, order = _ops.module().unpack_pieces(
        packed.rows,
        packed.bin_offsets,
        packed.boundaries,
        packed.input_ids.numel(),
        0 if packed.layout == "flat" else packed.capacity,
    )
    filled = np.diff(offsets) > 0  # a piece of the kernel's is never empty
    pieces = np.append(offsets[:-1][filled], offsets[-1])
    there = _ship(place, offsets=pieces, sources=sources[filled])
    cells = packed.input_ids, packed.labels, packed.loss_weights
    input_ids, loss_mask, *weights = _ops.unpack(*cells, *there, int(offsets[-1]))
    return Tokens(input_ids, loss_mask, offsets, packed.source[order], *weights)


def on_cpu(packed: Packed) -> nouns.Packed:
    """The same bins as `turnpack.Packed`; waits for the device."""
    weights = packed.loss_weights
    return nouns.trusted(
        nouns.Packed,
        *(getattr(packed, name).cpu().numpy() for name in nouns.CELLS),
        packed.rows,
        packed.source,
        packed.bin_offsets,
        packed.boundaries,
        int(np.diff(packed.boundaries).max(initial=0)),
        None if weights is None else weights.cpu().numpy(),
        packed.capacity,
    )


def tensor_of(name: str, value: Any, dtype: torch.dtype, place: torch.device | None) -> Tensor:
    """Take a contiguous 1-D array of this dtype that lies on `place`, or anywhere if that is None.

    Tensors, and by DLPack or `__cuda_array_interface__` what other libraries have on the device;
    what they have still to do there is waited for on the current stream, not here.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a NumPy array, not one of a device")
    elif hasattr(value, "__dlpack__"):
        tensor = from_dlpack(value)
    elif hasattr(value, "__cuda_array_interface__"):
        tensor = torch.as_tensor(value, device=place)
        producer = value.__cuda_array_interface__.get("stream")
        if producer is not None:
            ours = torch.cuda.current_stream(tensor.device)
            theirs = torch.cuda.ExternalStream(producer, tensor.device)  # type: ignore[no-untyped-call]
            ours.wait_stream(theirs)
    else:
        raise TypeError(f"{name} is {type(value).__name__}, not an array")
    if tensor.dtype != dtype:
        found, wanted = (str(each).removeprefix("torch.") for each in (tensor.dtype, dtype))
        raise TypeError(f"{name} has dtype {found}, not {wanted}")
    if tensor.ndim != 1:
        raise TypeError(f"{name} has {tensor.ndim} dimensions, not 1")
    if not tensor.is_contiguous():
        raise TypeError(f"{name} is not C-contiguous and aligned")
    if place is not None and tensor.device != place:
        raise ValueError(f"{name} is on {tensor.device}, not {place}")
    return tensor


def _indices(name: str, value: Any) -> Int64s:
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise TypeError(f"{name} is on {value.device}; plans are made of it on the CPU")
        value = value.numpy()
    return _checks.indices(name, value)


def _ids_of(name: str, value: Any, place: torch.device) -> tuple[Any, Any]:
    """The ids where they are, and for the checks an array of the CPU: themselves or none."""
    if isinstance(value, (np.ndarray, list, tuple)):
        return value, value
    return tensor_of(name, value, torch.int32, place), np.zeros(0, np.int32)


def _array_of(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _on_host(tokens: Any) -> Any:
    if not isinstance(tokens, Tokens):
        return tokens
    weights = tokens.loss_weights
    return nouns.Tokens(
        tokens.input_ids.numpy(),
        tokens.loss_mask.numpy(),
        tokens.offsets,
        tokens.source,
        None if weights is None else weights.numpy(),
    )


def _with_tensors(tokens: nouns.Tokens) -> Tokens:
    weights = tokens.loss_weights
    return Tokens(
        torch.from_numpy(tokens.input_ids),
        torch.from_numpy(tokens.loss_mask),
        tokens.offsets,
        tokens.source,
        None if weights is None else torch.from_numpy(weights),
    )


def _options(layout: str, pad_id: int, dtype: torch.dtype) -> tuple[bool, int]:
    flat = _checks.choice("layout", layout, _arguments.LAYOUTS) == "flat"
    if dtype not in _CELLS:
        raise TypeError(f"dtype is {str(dtype).removeprefix('torch.')}, not int32 or int64")
    return flat, _checks.int32("pad_id", pad_id)


def _starts_of(
    boundaries: Int64s, longest: int, plan: Plan, flat: bool, max_rows: int | None
) -> tuple[Int64s, int]:
    """cu_seqlens and max_seqlen: as they are, or what is the same for all plans of this shape."""
    if max_rows is None:
        return boundaries, longest
    most = _checks.number("max_rows", max_rows)
    if flat:
        raise ValueError("max_rows is for layout 'rows'")
    if len(plan.rows) > most:
        raise ValueError(f"the plan has {len(plan.rows)} rows, more than max_rows {most}")
    starts = np.full(most + plan.num_bins + 1, boundaries[-1])
    starts[: len(boundaries)] = boundaries
    return starts, plan.capacity


def _stage(
    tokens: nouns.Tokens | Tokens,
    plan: Plan,
    flat: bool,
    max_rows: int | None,
    *,
    wide: bool,
    pinned: bool,
) -> Staged:
    if not isinstance(tokens, Tokens):
        _checks.instance("tokens", tokens, nouns.Tokens)
    _checks.instance("plan", plan, Plan)
    boundaries, sources, numbers, longest = _ops.module().pack_pieces(
        tokens.offsets,
        len(tokens.input_ids),
        plan.rows,
        plan.offsets,
        plan.fill,
        plan.capacity,
        flat,
        wide,
    )
    starts, longest = _starts_of(boundaries, longest, plan, flat, max_rows)
    tables = {"starts": starts, "sources": sources, "numbers": numbers}
    sizes = {name: (table.dtype, len(table)) for name, table in tables.items()}
    if max_rows is not None:
        sizes |= {name: (sizes[name][0], len(starts) - 1) for name in ("sources", "numbers")}
    travelling: dict[str, npt.NDArray[Any]] = {}
    placed = int(plan.fill.sum())
    if isinstance(tokens, nouns.Tokens):
        travelling = {"input_ids": tokens.input_ids, "loss_mask": tokens.loss_mask}
        if tokens.loss_weights is not None:
            travelling["loss_weights"] = tokens.loss_weights
        most = placed if max_rows is None else plan.num_bins * plan.capacity
        sizes |= {name: (array.dtype, most) for name, array in travelling.items()}
    buffer, places, memory = _buffer(sizes, pinned)
    for name, array in travelling.items():
        _ops.module().take_documents(array, boundaries, sources, memory[name])
        memory[name][placed:] = 0
    if travelling:
        documents = numbers > 0
        lengths = np.diff(boundaries)[documents]
        sources[documents] = np.cumsum(lengths) - lengths
    for name, table in tables.items():
        memory[name][: len(table)] = table
        memory[name][len(table) :] = 0
    return Staged(
        buffer,
        places,
        plan.rows,
        tokens.source[plan.rows],
        plan.offsets,
        boundaries,
        longest,
        plan.capacity,
        flat,
    )


def _expand(staged: Staged, pad_id: int, dtype: torch.dtype, tokens: Tokens | None) -> Packed:
    there = staged.arrays()
    if tokens is None:
        ids, mask, weights = there["input_ids"], there["loss_mask"], there.get("loss_weights")
    else:
        ids, mask, weights = tokens.input_ids, tokens.loss_mask, tokens.loss_weights
    bins = len(staged.bin_offsets) - 1
    shape = [int(staged.boundaries[-1])] if staged.flat else [bins, staged.capacity]
    tables = there["starts"], there["sources"], there["numbers"]
    input_ids, labels, position_ids, segment_ids, *weighted = _ops.pack(
        ids, mask, weights, *tables, shape, pad_id, dtype
    )
    return Packed(
        input_ids,
        labels,
        position_ids,
        segment_ids,
        staged.rows,
        staged.source,
        staged.bin_offsets,
        there["starts"],
        staged.boundaries,
        staged.max_seqlen,
        weighted[0] if weighted else None,
        staged.capacity,
    )


_Places = tuple[tuple[str, torch.dtype, int, int], ...]


def _buffer(
    sizes: dict[str, tuple[np.dtype[Any], int]], pinned: bool
) -> tuple[Tensor, _Places, dict[str, npt.NDArray[Any]]]:
    """One buffer of the CPU for arrays of these dtypes and sizes, and the arrays in it."""
    places = []
    end = 0
    for name, (dtype, size) in sizes.items():
        places.append((name, _DTYPES[dtype], size, end))
        end += -(-size * dtype.itemsize // _ALIGNED) * _ALIGNED
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    memory = {name: view.numpy() for name, view in _views(buffer, tuple(places)).items()}
    return buffer, tuple(places), memory


def _ship(place: torch.device, **arrays: Any) -> list[Tensor]:
    """All of them on the device: arrays of the CPU in one pinned buffer, tensors as they are."""
    travelling = {name: each for name, each in arrays.items() if isinstance(each, np.ndarray)}
    sizes = {name: (each.dtype, len(each)) for name, each in travelling.items()}
    buffer, places, memory = _buffer(sizes, pinned=place.type == "cuda")
    for name, each in travelling.items():
        memory[name][:] = each
    there = _views(buffer.to(place, non_blocking=True), places)
    return [there.get(name, each) for name, each in arrays.items()]


def _views(buffer: Tensor, places: _Places) -> dict[str, Tensor]:
    return {
        name: buffer[begin : begin + size * dtype.itemsize].view(dtype)
        for name, dtype, size, begin in places
    }
