"""What an unfinished run has done, so that another can go on: the journal and its differences.

Owns the journal's file and what makes two runs the same. The state of each part of the job is that
part's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .output import JOURNAL, dumps, keep_only, loads, write_json
from .system import sync


class Journal:
    """The journal in `folder` of a run that `identity` describes.

    Beside it lies the folder `state` with the files that its entries name.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self._path = folder / JOURNAL
        self._identity = identity
        self._number = 0

    def read(self) -> dict[str, Any] | None:
        """Return the last entry, if there is one. Raises ValueError where it is of another run."""
        try:
            entry: dict[str, Any] = loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        self.check(entry["identity"])
        self._number = entry["number"]
        return entry

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise ValueError where this is not our run's identity, and say where they differ."""
        different = list(differences(identity, loads(dumps(self._identity))))
        if different:
            raise ValueError("it is of another run: " + "; ".join(different))

    @property
    def next(self) -> str:
        """What the names of the next entry's files in `state` begin with."""
        return f"{self._number + 1:06}"

    def write(self, entry: Mapping[str, Any], files: Iterable[str]) -> None:
        """Replace the last entry by this one; of the files in `state` only `files` are left."""
        self._number += 1
        fresh = self._path.with_suffix(".part")
        write_json(fresh, {**entry, "number": self._number, "identity": self._identity})
        sync(fresh)
        sync(self.state)
        os.replace(fresh, self._path)
        sync(self._path.parent)
        keep_only(self.state, files)


def input_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells whether an input file is still the same: its size, and when it was changed."""
    found = os.stat(path)
    return {"bytes": found.st_size, "changed_ns": found.st_mtime_ns}


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Say where two runs differ, one phrase for each; of two lists the first place only."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(before.get(key), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list):
        for place, (one, other) in enumerate(zip_longest(before, now)):
            if one != other:
                yield from differences(one, other, f"{name}[{place}]")
                return
    elif before != now:
        yield f"{name} was {_shown(name, before)}, now {_shown(name, now)}"


def _shown(name: str, value: Any) -> str:
    if name.endswith(".changed_ns") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1e9).isoformat(" ", "milliseconds")
    return "absent" if value is None else repr(value)
