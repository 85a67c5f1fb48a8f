"""Bins as arrays that are mapped into memory: one copy a machine, however many processes read it.

Owns where those arrays lie, and that Parquet is decoded into them once, by one process. What is in
the files is sinks/'s.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow.parquet as pq

from . import system
from .output import NUMPY, write_json
from .sinks import NUMPY_ARRAYS, NumpySink, stored

# Which files an array folder was made of; it is written last.
INDEX = "index.json"
# Bytes at the end of a Parquet file that tell it from others.
TAIL = 1 << 16

Arrays = dict[str, npt.NDArray[Any]]


def find(path: str | os.PathLike[str], split: str) -> tuple[list[Path], Path]:
    """Return a split's Parquet files and the folder for its arrays, which need not be there yet.

    `path`: what `prepare` wrote, a folder of Parquet files, or one such file. In a folder the files
    are those called `split`-*; if none is, all of them.
    """
    given = Path(path)
    if given.is_file():
        return [given], given.parent / NUMPY / given.stem
    folder = given / "data" if (given / "data").is_dir() else given
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files and folder == given:
        files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{given} holds no Parquet files of a split {split!r}")
    return files, given / NUMPY / split


def load(files: Sequence[Path], folder: Path) -> Arrays:
    """Map the arrays of these files; decode them into `folder` first if they are not there.

    Of several processes one decodes and the others wait. A cache of other files is made
    anew.
    """
    sources = _sources(files)
    if not _is_of(folder, sources):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.lock").open("a") as lock:
            system.lock(lock.fileno())
            if not _is_of(folder, sources):
                decode(files, folder)
    return {
        name: _mapped(folder / f"{name}.npy", np.dtype(dtype))
        for name, dtype in NUMPY_ARRAYS.items()
        if (folder / f"{name}.npy").exists()
    }


def decode(files: Sequence[Path], folder: Path) -> None:
    """Decode Parquet files into a folder of arrays, which appears whole or not at all."""
    sources = _sources(files)
    weighted = "loss_weights" in pq.read_schema(files[0]).names
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with NumpySink(fresh, weighted) as sink:
            for bins in stored(files):
                sink.write(bins)
        write_json(fresh / INDEX, sources)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _sources(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What tells files from others: their sizes, and how they end, which is Parquet's own index."""
    sources = []
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            end = hashlib.sha256(file.read()).hexdigest()
        sources.append({"file": path.name, "bytes": size, "end_sha256": end})
    return sources


def _is_of(folder: Path, sources: list[dict[str, Any]]) -> bool:
    try:
        return bool(orjson.loads((folder / INDEX).read_bytes()) == sources)
    except (OSError, ValueError):
        return False


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A file's array as a plain view, which is quicker to slice than NumPy's own memmap."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype:
        raise ValueError(f"{path} holds {array.dtype}, not {dtype}")
    return np.asarray(array)
