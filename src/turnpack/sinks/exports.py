"""The sinks that are written from finished Parquet files, by name.

Owns the table of them and what each calls its files. What is in the files is each sink's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from .. import mapped
from ..output import NUMPY, write_json
from .bins import stored
from .bridge import write_bridge
from .megatron import write_megatron

# A split's name -> its Parquet files, in order; one of no files is left out.
Splits = Mapping[str, Sequence[Path]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What some formats say of a set: tokens a bin may have, ids the tokenizer has (or None)."""

    capacity: int
    vocabulary: int | None = None


def numpy(splits: Splits, folder: Path, facts: Facts) -> None:
    """Write `numpy/<split>/*.npy`, which PackedDataset maps."""
    for split, files in splits.items():
        mapped.decode(files, folder / NUMPY / split)


def megatron(splits: Splits, folder: Path, facts: Facts) -> None:
    """Write `megatron/<split>` and `<split>_loss_mask`, `.bin` and `.idx`; see write_megatron."""
    made = folder / "megatron"
    made.mkdir()
    for split, files in splits.items():
        write_megatron(
            stored(files), made / split, vocabulary=facts.vocabulary, weighted=_weighted(files)
        )


def bridge(splits: Splits, folder: Path, facts: Facts) -> None:
    """Write `bridge/<split>.idx.parquet` and, for all of them, `bridge/metadata.json`."""
    made = folder / "bridge"
    made.mkdir()
    metadata = [
        write_bridge(
            stored(files),
            made / f"{split}.idx.parquet",
            capacity=facts.capacity,
            weighted=_weighted(files),
        )
        for split, files in splits.items()
    ]
    write_json(made / "metadata.json", metadata)


# Each writes into a folder of its own name in the output, which must not be there yet.
SINKS: dict[str, Callable[[Splits, Path, Facts], None]] = {
    "numpy": numpy,
    "megatron": megatron,
    "bridge": bridge,
}


def check(name: str) -> None:
    """Raise ValueError where there is no such sink."""
    if name not in SINKS:
        raise ValueError(f"there is no sink {name!r}, but {', '.join(SINKS)}")


def export(name: str, splits: Splits, folder: Path, facts: Facts) -> None:
    """Write the sink of this name into `folder`, in the memory of some bins.

    Raises ValueError where there is no such sink, or where its format cannot hold the bins.
    """
    check(name)
    SINKS[name]({split: files for split, files in splits.items() if files}, folder, facts)


def _weighted(files: Sequence[Path]) -> bool:
    return "loss_weights" in pq.read_schema(files[0]).names
