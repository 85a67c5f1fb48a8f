"""The output directory: it appears whole or not at all, and its manifest says what is in it.

Owns which names turnpack writes in a directory and how they get there. It knows nothing of what the
files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from ._version import __version__

MANIFEST = "manifest.json"
NUMPY = "numpy"
# In the order in which an old output is taken away; the new one comes in reverse, so that a
# manifest is there only while everything it lists is.
ENTRIES = (MANIFEST, NUMPY, "data", "tokenizer", "rejects.jsonl", "report.json", "report.html")
# What may lie in NUMPY that no manifest lists: a loader's own cache of the data.
CACHED = (".npy", ".json", ".lock")


@contextmanager
def replacing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden folder to write into; when the block ends well, its entries move into place.

    It lies inside `directory`, so that moving is renaming also where that is a mount of its own. An
    earlier output goes as a whole. If the block or the move fails, the folder is removed and the
    directory is as it was before. Raises before anything else where `directory` cannot be written
    or holds files of these names that turnpack did not write.
    """
    target = Path(directory)
    _refuse_strangers(target)
    made = _make(target)
    hidden: Path | None = None
    try:
        hidden = _hidden(target)
        fresh, old = hidden / "new", hidden / "old"
        fresh.mkdir()
        old.mkdir()
        yield fresh
        _swap(target, fresh, old)
        made.clear()
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def is_output(directory: str | os.PathLike[str]) -> bool:
    """Whether turnpack wrote this directory: it has a manifest, and the manifest names turnpack."""
    try:
        manifest = orjson.loads((Path(directory) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"turnpack", "files"} <= manifest.keys()


def write_manifest(folder: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """List every file under `folder` with its size, its sha256 and what `counts` has for it."""
    files: list[dict[str, Any]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        size = path.stat().st_size
        files.append({"path": name, "bytes": size, **counts.get(name, {}), "sha256": _sha256(path)})
    write_json(folder / MANIFEST, {"turnpack": __version__, "files": files})


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_bytes(_dumps(value, indent=2) + b"\n")


def json_line(value: Any) -> bytes:
    """Return one line of JSON for any value a reader may have met."""
    return _dumps(value, indent=None) + b"\n"


def _dumps(value: Any, indent: int | None) -> bytes:
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        return orjson.dumps(value, default=repr, option=option)
    except TypeError:  # a lone surrogate, as in a file's name, or an integer past 64 bits
        return json.dumps(value, default=repr, skipkeys=True, indent=indent).encode()


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
    for folder in (NUMPY, "data", "tokenizer"):
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


def _hidden(target: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".turnpack-", dir=target))
    except OSError as error:
        error.filename = str(target)  # it is the directory that cannot be written
        raise


def _swap(target: Path, fresh: Path, old: Path) -> None:
    incoming = [name for name in reversed(ENTRIES) if (fresh / name).exists()]
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
        raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
