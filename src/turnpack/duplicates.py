"""Exact duplicates: which conversations were there already, however many there are.

Owns the file in which what was seen lies while a run goes on. What a conversation's digest is, and
what becomes of a duplicate, is selection.py's.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .fates import Conversations, Described, Fates, Input
from .rows import Rows

# Memory of SQLite's, in KiB.
CACHE = 64 << 10


class Duplicates:
    """The conversations that there were already: the first one stays, in order of the sources.

    `how`: "within" a source, or "across" all. What was seen is in an SQLite file in `folder`.
    Every duplicate among the `inputs` goes to `tell`, with its place and that of the first.

    What the file cannot take (the disk is full) raises OSError.
    """

    def __init__(
        self,
        how: str,
        folder: Path,
        inputs: Sequence[Input],
        tell: Callable[[dict[str, Any]], object],
    ) -> None:
        self._within = how == "within"
        self._inputs = inputs
        self._tell = tell
        self._file = folder / "duplicates.sqlite3"
        self._seen = 0
        with self._told():
            self._base = sqlite3.connect(self._file)
            self._base.execute(f"PRAGMA cache_size = -{CACHE}")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, number INTEGER, "
                "input INTEGER, line INTEGER, place INTEGER) WITHOUT ROWID"
            )

    def remove(self, rows: Rows, described: Described, source: int, fates: Fates) -> Rows:
        """Return the rows without the duplicates, which are counted and told."""
        here = Conversations.of(rows)
        key = source.to_bytes(4, "little") if self._within else b""
        new = np.ones(len(here), bool)
        places, inputs = described.places.tolist(), here.inputs.tolist()
        for at, digest in enumerate(described.digests or ()):
            place = inputs[at], *places[at]
            first = self._first(digest + key, self._seen + at, *place)
            if first is not None:
                new[at] = False
                self._tell({**self._place(*place), "first": self._place(*first)})
        self._seen += len(here)
        fates.add("duplicates", here.inputs[~new], here.tokens[~new])
        return here.take(np.flatnonzero(new))

    def _first(self, digest: bytes, number: int, *place: int) -> tuple[int, int, int] | None:
        """Where the digest was first, None if it is here."""
        with self._told():
            known = self._base.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?)", (digest, number, *place)
            )
            if known.rowcount:
                return None
            found: tuple[int, int, int] = self._base.execute(
                "SELECT input, line, place FROM seen WHERE digest = ?", (digest,)
            ).fetchone()
            return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self._file)) from error

    def _place(self, number: int, line: int, index: int) -> dict[str, Any]:
        place = {"line": line, "index": index}
        return {
            "source": self._inputs[number].source,
            "file": self._inputs[number].file,
            **{key: value for key, value in place.items() if value >= 0},
        }

    def save(self) -> dict[str, Any]:
        """Put what was seen on the disk; return the state, whose `files` `load` needs."""
        with self._told():
            self._base.commit()
        return {"files": [self._file.name], "seen": self._seen}

    def load(self, state: dict[str, Any]) -> None:
        """Forget what was seen after the state."""
        self._seen = state["seen"]
        with self._told():
            self._base.execute("DELETE FROM seen WHERE number >= ?", (self._seen,))
            self._base.commit()

    def close(self) -> None:
        """Close the file."""
        self._base.close()
