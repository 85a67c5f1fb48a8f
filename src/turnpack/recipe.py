"""recipe.toml → what `prepare` is to do: sources, what is chosen of each, and the options.

Owns the keys of a recipe and what may stand there. Every mistake is one RecipeError that names the
file, the source and the key with its value; what an option means is `prepare`'s.
"""

from __future__ import annotations

import glob
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .selection import DUPLICATES, UNITS, Choice, Filters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class RecipeError(ValueError):
    """A recipe that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are treated alike.

    `options`: those of the encoder that differ from the recipe's, and `format`.
    """

    name: str
    files: list[str]
    options: dict[str, Any]
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe says; paths in `options` are as seen from here. `notes`: worth a warning."""

    path: str
    sources: list[Source]
    options: dict[str, Any]
    duplicates: str
    shuffle: bool
    notes: list[str]


# Kinds of values: how a message calls them, and what is one.
_Kind = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_TEXT: _Kind = "a string", lambda value: type(value) is str
_NAME: _Kind = "a string that is not empty", lambda value: type(value) is str and value != ""
_FLAG: _Kind = "true or false", lambda value: type(value) is bool
_INT: _Kind = "an integer", _is_int
_COUNT: _Kind = "an integer, at least 1", lambda value: _is_int(value) and value >= 1
_NUMBER: _Kind = "a number", _is_number
_SHARE: _Kind = "a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1
_WEIGHT: _Kind = "a number greater than 0", lambda value: _is_number(value) and value > 0
_TABLE: _Kind = "a table", lambda value: type(value) is dict
_TEXTS: _Kind = (
    "a string or a list of strings",
    lambda value: all(type(text) is str for text in (value if type(value) is list else [value])),
)


def _one_of(*names: str) -> _Kind:
    return "one of " + ", ".join(names), lambda value: type(value) is str and value in names


_OF_ENCODER: dict[str, _Kind] = {
    "template": _NAME,
    **dict.fromkeys(("truncate", "train_on", "system", "format"), _TEXT),
}
_OPTIONS: dict[str, _Kind] = {
    **_OF_ENCODER,
    **dict.fromkeys(("tokenizer", "output"), _NAME),
    **dict.fromkeys(("boundary", "strategy", "tokenizer_backend"), _TEXT),
    **dict.fromkeys(("bos_token", "eos_token"), _TEXT),
    **dict.fromkeys(("max_length", "capacity", "window", "seed", "workers", "shard_tokens"), _INT),
    "validation": _NUMBER,
    "strict": _FLAG,
    "page": _FLAG,
    "sinks": _TEXTS,
}
_TOP: dict[str, _Kind] = {
    **_OPTIONS,
    "duplicates": _one_of(*DUPLICATES),
    "shuffle": _FLAG,
    "sources": (
        "a list of tables, each under [[sources]]",
        lambda value: type(value) is list and all(type(source) is dict for source in value),
    ),
}
_SOURCE: dict[str, _Kind] = {
    **_OF_ENCODER,
    "name": _NAME,
    "files": _TEXTS,
    "weight": _WEIGHT,
    "by": _one_of(*UNITS),
    "cap": _TABLE,
    "filters": _TABLE,
}
_CAP: dict[str, _Kind] = dict.fromkeys(UNITS, _COUNT)
_FILTERS: dict[str, _Kind] = {
    item.name: _SHARE if item.name.endswith("trained") else _COUNT for item in fields(Filters)
}


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; raises RecipeError where it says what makes no sense, OSError without one."""
    name, folder = os.fspath(path), os.path.dirname(os.fspath(path))
    try:
        with open(name, "rb") as file:
            said = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: {error}") from None
    _check(said, _TOP, name)
    listed = said.pop("sources", [])
    if not listed:
        raise RecipeError(f"{name}: there are no [[sources]]")
    sources: list[Source] = []
    for number, table in enumerate(listed, 1):
        called = table.get("name")
        here = f"{name}: source {number if called is None else repr(called)}"
        _check(table, _SOURCE, here, needed=("name", "files"))
        if any(source.name == called for source in sources):
            raise RecipeError(f"{here}: name = {called!r} is another source's too")
        sources.append(_source(table, folder, here))
    duplicates, shuffle = said.pop("duplicates", "keep"), said.pop("shuffle", True)
    options = {key: _from(folder, key, value) for key, value in said.items()}
    if isinstance(options.get("sinks"), str):
        options["sinks"] = [options["sinks"]]
    return Recipe(name, sources, options, duplicates, shuffle, list(_overlaps(sources)))


def _check(
    table: Mapping[str, Any], known: Mapping[str, _Kind], here: str, needed: Sequence[str] = ()
) -> None:
    for key, value in table.items():
        if key not in known:
            raise RecipeError(
                f"{here}: {key} = {short(value)}: there is no such key; "
                f"there are {', '.join(known)}"
            )
        what, fits = known[key]
        if not fits(value):
            raise RecipeError(f"{here}: {key} = {short(value)} is not {what}")
    for key in needed:
        if key not in table:
            raise RecipeError(f"{here}: {key} is missing")


def _source(table: dict[str, Any], folder: str, here: str) -> Source:
    cap, filters = table.get("cap", {}), table.get("filters", {})
    _check(cap, _CAP, f"{here}: cap")
    _check(filters, _FILTERS, f"{here}: filters")
    for key, value in filters.items():
        most = filters.get(key.replace("min_", "max_"), value)
        if value > most:
            raise RecipeError(f"{here}: filters: {key} = {value} is more than the most, {most}")
    return Source(
        table["name"],
        _files(table["files"], folder, here),
        {key: _from(folder, key, table[key]) for key in _OF_ENCODER if key in table},
        Choice(
            Filters(**filters),
            float(table.get("weight", 1.0)),
            table.get("by", "rows"),
            cap.get("rows"),
            cap.get("tokens"),
        ),
    )


def _files(patterns: str | list[str], folder: str, here: str) -> list[str]:
    """The files that are meant, each once, those of a pattern in the order of their names."""
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = os.path.join(folder, pattern)
        matches = [path]
        if not os.path.isfile(path):
            whole = os.path.join(glob.escape(folder), pattern)
            matches = sorted(p for p in glob.glob(whole, recursive=True) if os.path.isfile(p))
        if not matches:
            raise RecipeError(f"{here}: files = {pattern!r}: there is no such file")
        found.update(dict.fromkeys(matches))
    if not found:
        raise RecipeError(f"{here}: files = [] names no file")
    return list(found)


def _from(folder: str, key: str, value: Any) -> Any:
    """A path of the recipe as seen from here; any other value as it is."""
    is_path = key in ("tokenizer", "output") or (key == "template" and value.endswith(".jinja"))
    return os.path.join(folder, value) if is_path else value


def _overlaps(sources: Sequence[Source]) -> list[str]:
    """Say which files are in more than one source."""
    holders: dict[Path, list[tuple[str, str]]] = {}
    for source in sources:
        for file in source.files:
            holders.setdefault(Path(file).resolve(), []).append((file, source.name))
    return [
        f"{held[0][0]} is in the sources {', '.join(name for _, name in held)}"
        for held in holders.values()
        if len(held) > 1
    ]
