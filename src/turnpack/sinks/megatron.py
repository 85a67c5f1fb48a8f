"""Megatron's indexed datasets: `.bin` with the numbers, `.idx` with where each sequence lies.

Owns that layout. It has no place for masks, so these are indexed datasets of their own.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .bins import Bins

# What an .idx calls its types.
CODES = {np.dtype(np.uint8): 1, np.dtype("<i4"): 4, np.dtype("<f4"): 7, np.dtype("<u2"): 8}
# Lengths that are turned into pointers at a time.
_SOME = 1 << 16


def write_megatron(
    bins: Iterable[Bins],
    prefix: str | os.PathLike[str],
    *,
    vocabulary: int | None = None,
    weighted: bool = False,
) -> None:
    """Write bins as indexed datasets: a sequence for each conversation, a document for each bin.

    `prefix`.bin and .idx hold the ids, `prefix`_loss_mask the same sequences of uint8, 1 for a
    target, and where `weighted` `prefix`_loss_weights, float32. **Nothing is shifted**: mask and
    weight stand at the token they are of. Where `labels = ids[1:]`, take `loss_mask[1:]`. Of a set
    of no bins the `.bin` is empty, which IndexedDataset opens with `mmap=False` alone.

    `vocabulary`: how many ids the tokenizer has; as Megatron does, ids are uint16 where that is
    less than 65,500, else, or where it is not known, int32. Raises ValueError where an id is not
    below it, or a label is another than its token.
    """
    dtype = np.dtype("<u2" if vocabulary is not None and vocabulary < 65_500 else "<i4")
    dtypes: dict[str, np.dtype[Any]] = {"": dtype, "_loss_mask": np.dtype(np.uint8)}
    if weighted:
        dtypes["_loss_weights"] = np.dtype("<f4")
    prefix = Path(prefix)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(prefix.with_name(f"{prefix.name}{name}.bin").open("wb"))
            for name in dtypes
        }
        index = stack.enter_context(_Index(prefix.parent))
        for some in bins:
            _check_ids(some, vocabulary)
            _append(files[""], some.input_ids, dtype)
            _append(files["_loss_mask"], some.loss_mask(), dtypes["_loss_mask"])
            if weighted:
                _append(files["_loss_weights"], some.weights(), dtypes["_loss_weights"])
            index.add(some)
        for name, of in dtypes.items():
            index.write(prefix.with_name(f"{prefix.name}{name}.idx"), of)


def _check_ids(bins: Bins, vocabulary: int | None) -> None:
    wrong = bins.input_ids < 0
    if vocabulary is not None:
        wrong |= bins.input_ids >= vocabulary
    if wrong.any():
        cell = int(wrong.argmax())
        known = "" if vocabulary is None else f", of {vocabulary} that there are"
        where = bins.place.holding(cell, bins.offsets)
        raise ValueError(f"{where} has the id {bins.input_ids[cell]}{known}")


def _append(file: IO[bytes], values: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    file.write(np.ascontiguousarray(values, dtype).data)


class _Index:
    """What the `.idx` files say, kept in files without a name: it grows with the set."""

    def __init__(self, folder: Path) -> None:
        self._lengths = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._bins = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._sequences = self._documents = 0
        _append(self._bins, np.zeros(1), np.dtype("<i8"))

    def add(self, bins: Bins) -> None:
        _append(self._lengths, bins.seq_lengths, np.dtype("<i4"))
        _append(self._bins, self._sequences + bins.documents[1:], np.dtype("<i8"))
        self._sequences += len(bins.seq_lengths)
        self._documents += len(bins)

    def write(self, path: Path, dtype: np.dtype[Any]) -> None:
        with path.open("wb") as file:
            file.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype]))
            file.write(struct.pack("<QQ", self._sequences, self._documents + 1))
            for lengths in _read(self._lengths, "<i4"):
                file.write(lengths.data)
            begin = 0
            for lengths in _read(self._lengths, "<i4"):
                ends = begin + np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
                _append(file, np.concatenate([[begin], ends[:-1]]), np.dtype("<i8"))
                begin = int(ends[-1])
            for ends in _read(self._bins, "<i8"):
                file.write(ends.data)

    def __enter__(self) -> _Index:
        return self

    def __exit__(self, *raised: object) -> None:
        self._lengths.close()
        self._bins.close()


def _read(file: IO[bytes], dtype: str) -> Iterator[npt.NDArray[Any]]:
    file.seek(0)
    while block := file.read(_SOME * np.dtype(dtype).itemsize):
        yield np.frombuffer(block, dtype)
