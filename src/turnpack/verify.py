"""Whether an output is what its run wrote: every file by its checksum, every bin by its numbers.

Owns what is compared with what. It changes nothing, follows no link, opens nothing outside of the
directory whatever its manifest says, and needs the memory of some bins.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from .output import CACHED, ENTRIES, MANIFEST, NUMPY, RUN, loads, sha256
from .sinks import Bins, stored
from .sinks.exports import SINKS

REPORT = "report.json"


class NoOutput(ValueError):
    """A directory of which there is nothing to verify: no manifest says what should be in it."""


@dataclass(slots=True)
class Totals:
    """What was found to be in order: `documents`, `tokens` and `trained` of all `bins`."""

    files: int = 0
    bins: int = 0
    documents: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0

    def add(self, bins: Bins) -> None:
        """Count bins; raises ValueError at the first that is none of turnpack's."""
        mask = bins.loss_mask()
        if bins.seq_lengths.min(initial=1) < 1:
            where = bins.place.holding(int(bins.seq_lengths.argmin()), bins.documents)
            raise ValueError(f"{where} has an empty document")
        opening = mask[np.cumsum(bins.seq_lengths) - bins.seq_lengths]
        if opening.any():
            where = bins.place.holding(int(opening.argmax()), bins.documents)
            raise ValueError(f"{where} has a document that opens trained")
        if bins.loss_weights is not None:
            weights = bins.loss_weights
            odd = ~np.isfinite(weights) | (weights < 0) | ((weights != 0) & (mask == 0))
            if odd.any():
                cell = int(odd.argmax())
                where = bins.place.holding(cell, bins.offsets)
                target = "a target" if mask[cell] else "no target"
                raise ValueError(f"{where} has the weight {weights[cell]} at {target}")
        self.bins += len(bins)
        self.documents += len(bins.seq_lengths)
        self.tokens += len(bins.input_ids)
        self.trained += int(np.count_nonzero(mask))
        self.longest = max(self.longest, int(np.diff(bins.offsets).max(initial=0)))


def verify(directory: str | os.PathLike[str], totals: Totals) -> Iterator[str]:
    """Yield what is wrong with an output, a line each; what is not is counted in `totals`.

    Raises NoOutput where there is no manifest, or one that cannot be read.
    """
    root = Path(directory)
    manifest = _manifest(root)
    entries: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(manifest["files"]):
        problem = _about(entry)
        if problem is None and entry["path"] in entries:
            problem = f"lists {entry['path']} twice"
        if problem is None:
            entries[entry["path"]] = entry
        else:
            yield f"{MANIFEST}: entry {number} {problem}"
    by_size: dict[int, list[dict[str, Any]]] = {}
    for entry in entries.values():
        by_size.setdefault(entry["bytes"], []).append(entry)
    whole = set()
    for name, entry in entries.items():
        problem = _absent(root, name)
        if problem is None:
            problem = _changed(root, entry, by_size)
        if problem is None:
            whole.add(name)
            totals.files += 1
        else:
            yield f"{name} {problem}"
    yield from _unlisted(root, entries)

    data = {name: entry for name, entry in entries.items() if _is_data(name)}
    complete = data.keys() <= whole
    for name, entry in data.items():
        if name in whole:
            found = Totals()
            problem = _contents(root / name, entry, found)
            complete = complete and problem is None
            if problem is not None:
                yield problem
            for key in ("bins", "documents", "tokens", "trained"):
                setattr(totals, key, getattr(totals, key) + getattr(found, key))
            totals.longest = max(totals.longest, found.longest)
    if REPORT not in entries:
        yield f"{MANIFEST} lists no {REPORT}"
    elif REPORT in whole:
        yield from _report(root / REPORT, manifest["turnpack"], data, totals if complete else None)


def _manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NoOutput(f"{path} is no regular file")
        manifest = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NoOutput(
            f"{root} holds no {MANIFEST}: it is not what `turnpack prepare` writes"
        ) from None
    except orjson.JSONDecodeError as error:
        raise NoOutput(f"{path} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("turnpack"), str):
        raise NoOutput(f"{path} is not turnpack's")
    if not isinstance(manifest.get("files"), list):
        raise NoOutput(f"{path} has no list of files")
    return manifest


def _about(entry: Any) -> str | None:
    """Return what is wrong with an entry of the manifest."""
    if not isinstance(entry, dict):
        return f"is {short(entry)}, not an object"
    path = entry.get("path")
    if not isinstance(path, str) or not path:
        return f"has the path {short(path)}"
    pure = PurePosixPath(path)
    inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts
    if not inside or str(pure) != path or "\0" in path:
        return f"has the path {short(path)}, which is none inside the directory"
    if path == MANIFEST:
        return f"is {MANIFEST} itself"
    for key in ("bytes", "rows", "tokens"):
        needed = key == "bytes" or _is_data(path)
        if (needed or key in entry) and not _is_count(entry.get(key)):
            return f"says of {path} that {key} is {short(entry.get(key))}"
    checksum = entry.get("sha256")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        return f"says of {path} that sha256 is {short(checksum)}"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_data(name: str) -> bool:
    return re.fullmatch(r"data/[^/]+\.parquet", name) is not None


def _absent(root: Path, name: str) -> str | None:
    """Return why there is no file of this name that may be opened."""
    path, mode = root, 0
    try:
        for part in PurePosixPath(name).parts:
            path /= part
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                link = path.relative_to(root).as_posix()
                return "is a symbolic link" if link == name else f"lies behind {link}, a link"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISREG(mode) else "is no regular file"


def _changed(
    root: Path, entry: dict[str, Any], by_size: dict[int, list[dict[str, Any]]]
) -> str | None:
    """Return what is in a file instead of what the manifest says."""
    path = root / entry["path"]
    try:
        size = path.stat().st_size
        alike = by_size.get(size, [])
        found = sha256(path) if alike else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    belongs = [other["path"] for other in alike if other["sha256"] == found]
    if entry["path"] in belongs:
        return None
    if belongs:
        return f"holds what belongs into {belongs[0]}"
    if size != entry["bytes"]:
        return f"has {size} bytes, not {entry['bytes']}"
    return "has been changed: its checksum is another"


def _unlisted(root: Path, entries: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What lies under the names that turnpack writes, and is in no manifest."""

    def unreadable(error: OSError) -> None:
        denied.append(error)

    denied: list[OSError] = []
    for top in dict.fromkeys([*ENTRIES, *SINKS]):
        if top in (MANIFEST, RUN) or not os.path.lexists(root / top):
            continue
        found: Iterator[str] = iter([top])
        if (root / top).is_dir() and not (root / top).is_symlink():
            found = _below(root, top, unreadable)
        for name in found:
            cached = name.startswith(f"{NUMPY}/") and PurePosixPath(name).suffix in CACHED
            if name not in entries and not cached:
                yield f"{name} is not in {MANIFEST}"
    for error in denied:
        yield f"{Path(error.filename).relative_to(root)} cannot be read: {error.strerror}"


def _below(root: Path, top: str, unreadable: Callable[[OSError], None]) -> Iterator[str]:
    for folder, folders, files in os.walk(root / top, onerror=unreadable):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _contents(path: Path, entry: dict[str, Any], found: Totals) -> str | None:
    """Count a Parquet file's bins, and return what is wrong with them."""
    try:
        for bins in stored([path]):
            found.add(bins)
    except (pa.ArrowException, OSError, ValueError) as error:
        text = str(error)
        return text if text.startswith(f"{path}") else f"{entry['path']} cannot be read: {text}"
    for key, there in (("rows", found.bins), ("tokens", found.tokens)):
        if there != entry[key]:
            return f"{entry['path']} has {there} {key}, but {MANIFEST} says {entry[key]}"
    return None


def _report(
    path: Path, version: str, data: dict[str, dict[str, Any]], totals: Totals | None
) -> Iterator[str]:
    """Compare the report with the manifest, and with what was counted if all of it could be."""
    try:
        report = loads(path.read_bytes())
    except ValueError as error:
        yield f"{REPORT} is not JSON: {error}"
        return
    if not isinstance(report, dict):
        yield f"{REPORT} is {short(report)}, not an object"
        return
    if report.get("turnpack") != version:
        yield f"{REPORT} is of turnpack {short(report.get('turnpack'))}, {MANIFEST} of {version!r}"
    files = report.get("files")
    said = {
        file["path"]: (file.get("bins"), file.get("tokens"), file.get("bytes"))
        for file in (files if isinstance(files, list) else [])
        if isinstance(file, dict) and isinstance(file.get("path"), str)
    }
    if said != {name: (e["rows"], e["tokens"], e["bytes"]) for name, e in data.items()}:
        yield f"{REPORT} and {MANIFEST} say different things of the files in data"
    if totals is None:
        return
    tokens = report.get("tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    for key, value, there in (
        ("bins", report.get("bins"), totals.bins),
        ("rows", report.get("rows"), totals.documents),
        ("tokens", tokens.get("total"), totals.tokens),
        ("trained tokens", tokens.get("trained"), totals.trained),
    ):
        if type(value) is not int or value != there:
            yield f"{REPORT} says {short(value)} {key}, but there are {there}"
    capacity = report.get("capacity")
    if type(capacity) is not int or totals.longest > capacity:
        yield f"a bin has {totals.longest} tokens, but {REPORT} says {short(capacity)} at the most"
