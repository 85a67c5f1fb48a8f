"""Rows that wait on the disk: files that are only added to, and cut back when a run goes on.

Owns how rows lie in such a file, with one more number for each. Who waits for what is its callers'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from .rows import Rows
from .system import sync

Columns = Mapping[str, npt.NDArray[Any]]


class Spool:
    """A file of rows at `path`, which is made anew with the first of them.

    `state` is what to_dict() gave a run that goes on: what was added later is cut off.
    """

    def __init__(self, path: Path, state: Mapping[str, int] | None = None) -> None:
        self.path = path
        self.bytes, self.tokens = (state["bytes"], state["tokens"]) if state else (0, 0)
        if self.bytes:
            os.truncate(path, self.bytes)

    def append(self, rows: Rows, columns: Columns) -> None:
        """Add rows, and a number of each for every column."""
        batch = rows.to_batch()
        for name, values in columns.items():
            batch = batch.append_column(name, pa.array(values))
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, batch.schema) as writer:
            writer.write_batch(batch)
        with self.path.open("ab" if self.bytes else "wb") as file:
            file.write(buffer.getvalue())
        self.bytes += buffer.getvalue().size
        self.tokens += len(rows.tokens.input_ids)

    def read(self) -> Iterator[tuple[Rows, Columns]]:
        """Yield the rows as they were added, and their columns."""
        if not self.bytes:
            return
        with pa.OSFile(os.fspath(self.path)) as file:
            while file.tell() < self.bytes:
                with pa.ipc.open_stream(file) as stream:
                    for batch in stream:
                        rows = Rows.from_batch(batch)
                        columns = {
                            name: batch.column(name).to_numpy()
                            for name in batch.schema.names
                            if name not in ROWS
                        }
                        yield rows, columns

    def to_dict(self) -> dict[str, int]:
        """What a run needs to go on, for JSON; all of it is on the disk when this returns."""
        if self.bytes:
            sync(self.path)
        return {"bytes": self.bytes, "tokens": self.tokens}

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self.bytes = self.tokens = 0


ROWS = ("input_ids", "loss_mask", "names", "files", "first", "loss_weights")
