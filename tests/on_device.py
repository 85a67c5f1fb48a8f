"""The kernels of a device as an implementation like the others: NumPy in, the NumPy nouns out.

Goes through turnpack.torch, on a GPU or on the emulation of one.
"""

from contextlib import contextmanager

import numpy as np

import emulation
from turnpack import Packed, Tokens, _arguments
from turnpack.nouns import CELLS, trusted


@contextmanager
def on_a_gpu():
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with it, torch fills what `empty` gives
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class OnDevice:
    """concat, mask_markers, pack and unpack of turnpack.torch."""

    def __init__(self, where):
        self.where = where

    def concat(
        self,
        turn_ids,
        turn_offsets,
        roles,
        row_offsets,
        settings,
        *,
        bos=(),
        eos=(),
        out=None,
        threads=1,
    ):
        from turnpack import torch

        given = turn_ids, turn_offsets, roles, row_offsets, settings
        _check_threads(_arguments.concat(*given, bos, eos, out, threads)[-1])
        with self.where():
            made = _tokens(torch.concat(*given, bos=bos, eos=eos))
        return made if out is None else _into_tokens(out, made)

    def mask_markers(
        self, input_ids, offsets, starts, ends, *, include_end=True, out=None, threads=1
    ):
        from turnpack import torch

        given = input_ids, offsets, starts, ends
        *_, out, threads = _arguments.mask_markers(*given, include_end, out, threads)
        _check_threads(threads)
        with self.where():
            made = torch.mask_markers(*given, include_end=include_end).cpu().numpy()
        if out is None:
            return made
        out[:] = made
        return out

    def pack(self, tokens, plan, *, pad_id=0, layout="rows", dtype=np.int32, out=None, threads=1):
        import torch

        import turnpack.torch

        arguments = tokens, plan, pad_id, layout, dtype, out, threads
        pad_id, _, dtype, threads = _arguments.pack(*arguments)
        _check_threads(threads)
        with self.where():
            made = turnpack.torch.device.on_cpu(
                turnpack.torch.pack(
                    tokens,
                    plan,
                    pad_id=pad_id,
                    layout=layout,
                    dtype=torch.int64 if dtype.itemsize == 8 else torch.int32,
                )
            )
        return made if out is None else _into(out, made)

    def unpack(self, packed, *, threads=1):
        import torch

        import turnpack.torch

        _check_threads(_arguments.unpack(packed, threads))

        def there(array):
            if array is None:
                return None
            return torch.tensor(array, device="cuda" if self.where is on_a_gpu else "cpu")

        with self.where():
            return _tokens(
                turnpack.torch.unpack(
                    turnpack.torch.Packed(
                        *(there(getattr(packed, name)) for name in CELLS),
                        packed.rows,
                        packed.source,
                        packed.bin_offsets,
                        there(packed.cu_seqlens),
                        packed.cu_seqlens,
                        packed.max_seqlen,
                        there(packed.loss_weights),
                        packed.capacity,
                    )
                )
            )


def _check_threads(threads):
    """A device has no use for them, but what they may be is the same everywhere."""
    if threads < 1:
        raise ValueError(f"threads is {threads}, less than 1")


def _tokens(made):
    weights = made.loss_weights
    return Tokens(
        made.input_ids.cpu().numpy(),
        made.loss_mask.cpu().numpy(),
        made.offsets,
        made.source,
        None if weights is None else weights.cpu().numpy(),
    )


def _into_tokens(out, made):
    """The result in the arrays of `out`, which turnpack.torch does not take."""
    size = len(made.input_ids)
    for name in ("input_ids", "loss_mask"):
        held = getattr(out, name)
        if len(held) < size:
            raise ValueError(f"out.{name} has room for {len(held)} tokens, not {size}")
        held[:size] = getattr(made, name)
    return Tokens(out.input_ids[:size], out.loss_mask[:size], made.offsets)


def _into(out, made):
    """The result in the arrays of `out`, which turnpack.torch does not take."""
    values = {item: getattr(made, item) for item in Packed.__dataclass_fields__}
    for name in (*CELLS, "loss_weights"):
        if values[name] is None:
            continue
        held = getattr(out, name)
        if held.shape != values[name].shape:
            raise ValueError(f"out.{name} has shape {held.shape}, not {values[name].shape}")
        held[...] = values[name]
        values[name] = held
    return trusted(Packed, *values.values())


EMULATED = OnDevice(emulation.active)
CUDA = OnDevice(on_a_gpu)
