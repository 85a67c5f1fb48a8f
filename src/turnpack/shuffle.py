"""The global shuffle: all rows of a split in a random order, whatever their number, then to bins.

Every row draws a number, and the rows are sorted by it: dealt to files by its highest bits, file by
file in memory. Owns these files; what is made of the rows is another Binning's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .binning import Binning, Block
from .draws import Draws, UInt64s
from .rows import Rows
from .spool import Spool

# Tokens that wait in memory until they are dealt, and that a file may have to be sorted at once.
DEALT_TOKENS = 1 << 22
SORTED_TOKENS = 1 << 23
# Bits of a draw that choose the file.
BITS = 6


class Shuffled:
    """A Binning that gets the rows in an order by `seed` and `name`.

    How the rows come in parts changes nothing; the order in which they come does. Its files are in
    `folder`, those that `flush` needs for itself in `scratch`.
    """

    holds_all = True

    def __init__(self, inner: Binning, folder: Path, scratch: Path, name: str, seed: int) -> None:
        self._inner = inner
        self._draws = Draws(seed, f"shuffle {name}")
        self._prefix = folder / f"shuffle-{name}"
        self._scratch = scratch
        self._rows = Sorted(self._prefix, scratch)
        self._seen = 0

    def add(self, rows: Rows) -> Iterator[Block]:
        """See Binning."""
        self._rows.add(rows, self._draws.take(self._seen, len(rows)))
        self._seen += len(rows)
        return iter(())

    def drain(self) -> Iterator[Block]:
        """See Binning."""
        return iter(())

    def flush(self) -> Iterator[Block]:
        """See Binning."""
        for rows in self._rows.sorted():
            yield from self._inner.add(rows)
        yield from self._inner.flush()

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """See Binning."""
        return {"seen": self._seen, **self._rows.save()}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """See Binning."""
        self._seen = state["seen"]
        self._rows = Sorted(self._prefix, self._scratch, sizes=state["sizes"])


class Sorted:
    """Rows, sorted by a number of each: by its bits from `level` * BITS on, the others are equal.

    In memory if they are few, else in files whose names begin with `prefix`; one of these that is
    too large is dealt again, to files in the folder `scratch`.
    """

    def __init__(
        self,
        prefix: Path,
        scratch: Path,
        level: int = 0,
        sizes: list[dict[str, int]] | None = None,
    ) -> None:
        self._prefix = prefix
        self._scratch = scratch
        self._level = level
        self._parts: list[tuple[Rows, UInt64s]] = []
        self._tokens = 0
        self._spools: list[Spool] = []
        if sizes:
            self._spools = [Spool(self._path(number), state) for number, state in enumerate(sizes)]

    def add(self, rows: Rows, keys: UInt64s) -> None:
        """Take further rows."""
        self._parts.append((rows, keys))
        self._tokens += len(rows.tokens.input_ids)
        if self._tokens >= DEALT_TOKENS:
            self._deal()

    def sorted(self) -> Iterator[Rows]:
        """Yield all rows in their order, in parts."""
        if not self._spools:
            yield _in_order(self._parts)
            return
        self._deal()
        for number, spool in enumerate(self._spools):
            if spool.tokens <= SORTED_TOKENS:
                yield _in_order([(rows, columns["key"]) for rows, columns in spool.read()])
                continue
            self._scratch.mkdir(exist_ok=True)
            inner = Sorted(self._scratch / self._path(number).name, self._scratch, self._level + 1)
            for rows, columns in spool.read():
                inner.add(rows, columns["key"])
            yield from inner.sorted()
            inner.remove()

    def remove(self) -> None:
        """Remove the files."""
        for spool in self._spools:
            spool.remove()

    def save(self) -> dict[str, Any]:
        """Put all on the disk; return what is needed to go on, see Binning."""
        self._deal()
        return {
            "files": [spool.path.name for spool in self._spools if spool.bytes],
            "sizes": [spool.to_dict() for spool in self._spools],
        }

    def _path(self, number: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{number:02}")

    def _deal(self) -> None:
        if not self._parts:
            return
        if not self._spools:
            self._spools = [Spool(self._path(number)) for number in range(1 << BITS)]
        rows, keys = _joined(self._parts)
        self._parts, self._tokens = [], 0
        shift = np.uint64(64 - BITS * (self._level + 1))
        file_of = ((keys >> shift) & np.uint64((1 << BITS) - 1)).astype(np.int64)
        order = np.argsort(file_of, kind="stable")
        ends = np.searchsorted(file_of[order], np.arange(1, (1 << BITS) + 1))
        start = 0
        for spool, end in zip(self._spools, ends.tolist(), strict=True):
            if end > start:
                chosen = order[start:end]
                spool.append(rows.take(chosen), {"key": keys[chosen]})
            start = end


def _joined(parts: list[tuple[Rows, UInt64s]]) -> tuple[Rows, UInt64s]:
    rows = Rows.join([rows for rows, _ in parts])
    return rows, np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in parts)])


def _in_order(parts: list[tuple[Rows, UInt64s]]) -> Rows:
    rows, keys = _joined(parts)
    return rows.take(np.argsort(keys))
