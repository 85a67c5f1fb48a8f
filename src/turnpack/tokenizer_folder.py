"""A tokenizer's folder: what lies beside the tokenizer itself.

Owns the names and the layout of those files: how BOS and EOS are spelled, which tokens were added,
the chat template. Knows no tokenizer library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

# What belongs to a tokenizer's folder; `save` copies these and nothing else.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# More than any vocabulary has. Libraries reserve memory for all ids up to the largest.
MAX_IDS = 1 << 24
_MORE_TEMPLATES = "additional_chat_templates"

# One chat template, or several by name ("default", "tool_use").
Templates = str | Mapping[str, str]


@dataclass(frozen=True)
class Beside:
    """What lies beside a tokenizer.

    `special`: how its special tokens are spelled, by name ("bos_token"). `added`: tokens that
    transformers keeps beside a SentencePiece model: id, and if special. `adds_bos`: whether BOS is
    put in front of a text, None where nothing says so. `stop_ids`: where generation stops.
    """

    special: Mapping[str, str] = field(default_factory=dict)
    adds_bos: bool | None = None
    chat_template: Templates | None = None
    added: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()


def read_beside(file: Path) -> Beside:
    """Read what lies beside a tokenizer's file. Raises ValueError for a file that is no JSON."""
    config = _read_json(file.with_name("tokenizer_config.json"))
    named = {**_read_json(file.with_name("special_tokens_map.json")), **config}
    spelled = {key: spelling(token) for key, token in named.items() if key.endswith("_token")}
    path = file.with_name("added_tokens.json")
    added = {text: (_token_id(token_id, path), True) for text, token_id in _read_json(path).items()}
    path = file.with_name("tokenizer_config.json")
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"{path}: added_tokens_decoder is no object")
    for token_id, token in decoder.items():
        text = spelling(token)
        if text is not None:
            special = bool(isinstance(token, dict) and token.get("special"))
            added[text] = _token_id(token_id, path), special
    stops = _read_json(file.with_name("generation_config.json")).get("eos_token_id")
    return Beside(
        special={key: text for key, text in spelled.items() if text is not None},
        adds_bos=config.get("add_bos_token"),
        chat_template=_chat_template(file, config),
        added=added,
        stop_ids=tuple(stops if isinstance(stops, list) else [stops]) if stops is not None else (),
    )


def _chat_template(file: Path, config: Mapping[str, Any]) -> Templates | None:
    """The chat template; a file of its own counts before one in the configuration."""
    own = file.with_name("chat_template.jinja")
    found = {}
    if own.is_file():
        found["default"] = _read_text(own)
    folder = file.with_name(_MORE_TEMPLATES)
    if folder.is_dir():
        more = sorted(folder.glob("*.jinja"))
        found |= {path.stem: _read_text(path) for path in more if path.is_file()}
    if not found:
        known = config.get("chat_template")
        if known is None:
            known = _read_json(file.with_name("chat_template.json")).get("chat_template")
        return named_templates(known)
    return found["default"] if list(found) == ["default"] else found


def named_templates(known: Any) -> Templates | None:
    """Chat templates as tokenizer_config.json has them: a text, or a list of names and texts."""
    if isinstance(known, list):
        known = {
            entry.get("name"): entry.get("template") for entry in known if isinstance(entry, dict)
        }
    if isinstance(known, dict):
        texts = {name: text for name, text in known.items() if isinstance(text, str)}
        return texts or None
    return known if isinstance(known, str) and known else None


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from None


def _token_id(value: Any, path: Path) -> int:
    """An id of an added token; those of `added_tokens_decoder` are keys, so strings."""
    if isinstance(value, (int, str)) and str(value).isdecimal() and int(value) < MAX_IDS:
        return int(value)
    raise ValueError(f"{path}: {short(value)} is no token's id")


def spelling(token: Any) -> str | None:
    """A token of tokenizer_config.json: a string, or an object that holds one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def save_files(
    directory: Path, main: str, content: bytes, files: Path | None, bos: str | None, eos: str | None
) -> None:
    """Write the tokenizer's own files, and its bos and eos where `load` looks for them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / main).write_bytes(content)
    beside = [] if files is None else [files.with_name(name) for name in _FILES]
    for file in beside:
        if file.is_file() and file.name != main:
            shutil.copyfile(file, directory / file.name)
    if files is not None and files.with_name(_MORE_TEMPLATES).is_dir():
        shutil.copytree(files.with_name(_MORE_TEMPLATES), directory / _MORE_TEMPLATES)
    path = directory / "tokenizer_config.json"
    config = dict(_read_json(path))
    if spelling(config.get("bos_token")) != bos or spelling(config.get("eos_token")) != eos:
        config.update(bos_token=bos, eos_token=eos)
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
