"""The output directory: it appears whole or not at all, and its manifest says what is in it.

Owns which names turnpack writes in a directory and how they get there. It knows nothing of what the
files hold.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from . import system
from ._version import __version__
from .system import sync

MANIFEST = "manifest.json"
NUMPY = "numpy"
# The folder in which a run makes what it will move into place, and what may lie there.
HIDDEN = ".turnpack"
LOCK = "lock"
JOURNAL = "journal.json"
MOVING = "moving.json"
# In the order in which an old output is taken away; the new one comes in reverse, so that a
# manifest is there only while everything it lists is.
RUN = "run.json"
ENTRIES = (
    *(MANIFEST, NUMPY, "megatron", "bridge", "data", "tokenizer"),
    *("rejects.jsonl", "duplicates.jsonl", "report.json", "report.html", RUN),
)
# What may lie in NUMPY that no manifest lists: a loader's own cache of the data.
CACHED = (".npy", ".json", ".lock")


@contextmanager
def replacing(directory: str | os.PathLike[str], resume: bool = False) -> Iterator[Path]:
    """Yield a hidden folder with an output in its folder `new`, empty or unfinished.

    When the block ends well, the entries of `new` move into place. The hidden folder lies inside
    `directory`, so that moving is renaming also where that is a mount of its own. An earlier output
    goes as a whole. If the block or the move fails, the directory is as it was before, and the
    hidden folder is removed, unless the block has left a journal in it: then the next call that is
    to `resume` yields it as it is. One process at a time works on a directory; a killed one's lock
    goes with it, and a move that it began is ended.

    Raises before anything else where `directory` cannot be written or holds files of these names
    that turnpack did not write, BlockingIOError where another process works on it.
    """
    target = Path(directory)
    with alone_in(target, HIDDEN) as hidden:
        _end_move(target, hidden)
        _refuse_strangers(target)
        if not (resume and (hidden / JOURNAL).exists()):
            _clear(hidden)
        for name in ("new", "old"):
            (hidden / name).mkdir(exist_ok=True)
        yield hidden
        _move(target, hidden)
        _clear(hidden)


@contextmanager
def alone_in(target: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder in `target` that no other process is in, nor another call.

    Folders are made where they are missing, and those that were made are removed behind the block:
    the hidden one unless there is a journal in it, the others if nothing else is in them.

    Raises BlockingIOError where another is in it.
    """
    made = _make(target)
    hidden = target / name
    try:
        lock = _locked(target, hidden)
        try:
            yield hidden
        finally:
            ends = not (hidden / JOURNAL).exists()
            if ends:
                shutil.rmtree(hidden, ignore_errors=True)
            os.close(lock)
            if ends and system.OPEN_FILES_STAY:
                with suppress(OSError):  # another has it open by now
                    (hidden / LOCK).unlink()
                    hidden.rmdir()
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _locked(target: Path, hidden: Path) -> int:
    """Make the hidden folder and lock it, until the file that this returns is closed."""
    for attempt in itertools.count():
        try:
            hidden.mkdir(exist_ok=True)
            lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < 100:
                continue  # the run before us ended just now
            error.filename = str(target)  # it is the directory that cannot be written
            raise
        if not system.try_lock(lock):
            by = os.read(lock, 100).decode("ascii", "replace") or "another process"
            os.close(lock)
            raise BlockingIOError(errno.EAGAIN, f"{by} is writing there", str(target))
        with suppress(OSError):
            if os.path.samestat(os.stat(hidden / LOCK), os.fstat(lock)):
                break
        os.close(lock)  # of a folder that was removed meanwhile
    with suppress(OSError):
        os.truncate(lock, 0)
        os.write(lock, b"process %d" % os.getpid())
    return lock


def _clear(hidden: Path) -> None:
    """Remove everything but the lock; the journal first, as it would vouch for the rest."""
    (hidden / JOURNAL).unlink(missing_ok=True)
    keep_only(hidden, [LOCK, MOVING])
    keep_only(hidden, [LOCK])


def is_output(directory: str | os.PathLike[str]) -> bool:
    """Whether turnpack wrote this directory: it has a manifest, and the manifest names turnpack."""
    try:
        manifest = orjson.loads((Path(directory) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"turnpack", "files"} <= manifest.keys()


def on_disk(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    """Put every file under a part of a folder on the disk; what a manifest says of it, by name."""
    known = {}
    for path in _files(folder / part):
        sync(path)
        known[_name(folder, path)] = {"sha256": sha256(path)}
    return known


def write_manifest(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    """List every file under `folder` but RUN, with its size, its sha256 and what is `known` of it.

    All that is not known with its sha256 is put on the disk first.
    """
    files: list[dict[str, Any]] = []
    for path in _files(folder):
        name = _name(folder, path)
        if name == RUN:
            continue
        facts = {"bytes": path.stat().st_size, **known.get(name, {})}
        if "sha256" not in facts:
            sync(path)
            facts["sha256"] = sha256(path)
        files.append({"path": name, **facts})
    write_json(folder / MANIFEST, {"turnpack": __version__, "files": files})
    sync(folder / MANIFEST)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_bytes(dumps(value, indent=2) + b"\n")


def json_line(value: Any) -> bytes:
    """Return one line of JSON for any value a reader may have met."""
    return dumps(value) + b"\n"


_SURROGATE = re.compile("[\ud800-\udfff]")


def dumps(value: Any, indent: int | None = None) -> bytes:
    """JSON of any value, as far as that goes."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        return orjson.dumps(value, default=repr, option=option)
    except TypeError:  # a lone surrogate, as in a file's name, or an integer past 64 bits
        text = json.dumps(value, default=repr, skipkeys=True, indent=indent, ensure_ascii=False)
        # Spelled out with a backslash of its own: strict readers refuse a surrogate's escape.
        return _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode()


def loads(data: bytes) -> Any:
    """What `dumps` wrote."""
    try:
        return orjson.loads(data)
    except ValueError:  # a lone surrogate
        return json.loads(data)


def _refuse_strangers(target: Path) -> None:
    if not is_output(target):
        for name in reversed(ENTRIES):
            if os.path.lexists(target / name):
                raise FileExistsError(
                    f"{target} holds {name}, but no manifest.json of turnpack: "
                    "it is not replaced, choose another directory"
                )
        return
    listed = {file["path"] for file in orjson.loads((target / MANIFEST).read_bytes())["files"]}
    for folder in ENTRIES:
        for path in (target / folder).rglob("*"):
            name = path.relative_to(target).as_posix()
            cached = folder == NUMPY and path.suffix in CACHED
            if not path.is_dir() and name not in listed and not cached:
                raise FileExistsError(
                    f"{target} holds {name}, which turnpack did not write: "
                    "it is not replaced, choose another directory"
                )


def _make(target: Path) -> list[Path]:
    """Make the directory; return the folders that were missing, the innermost first."""
    missing = []
    for folder in (target, *target.parents):
        if folder.exists():
            break
        missing.append(folder)
    target.mkdir(parents=True, exist_ok=True)
    return missing


def _move(target: Path, hidden: Path) -> None:
    """Replace the entries of `target` by those in `new`; undo it where that fails."""
    fresh, old = hidden / "new", hidden / "old"
    incoming = [name for name in reversed(ENTRIES) if (fresh / name).exists()]
    write_json(hidden / MOVING, incoming)
    sync(hidden / MOVING)
    sync(hidden)
    try:
        for name in ENTRIES:
            if os.path.lexists(target / name):
                os.rename(target / name, old / name)
        for name in incoming:
            os.rename(fresh / name, target / name)
    except BaseException:
        for name in reversed(ENTRIES):
            if name in incoming and not (fresh / name).exists():
                os.rename(target / name, fresh / name)
            if os.path.lexists(old / name):
                os.rename(old / name, target / name)
        (hidden / MOVING).unlink()
        raise
    sync(target)


def _end_move(target: Path, hidden: Path) -> None:
    """Go on where a process was killed while it moved entries."""
    try:
        incoming = orjson.loads((hidden / MOVING).read_bytes())
    except (FileNotFoundError, ValueError):  # it was killed before it moved anything
        return
    fresh, old = hidden / "new", hidden / "old"
    for name in ENTRIES:
        is_old = name not in incoming or (fresh / name).exists()
        if is_old and os.path.lexists(target / name):
            os.rename(target / name, old / name)
    for name in incoming:
        if (fresh / name).exists():
            os.rename(fresh / name, target / name)
    _clear(hidden)


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove what is in a folder but is not called so."""
    kept = {*names}
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
