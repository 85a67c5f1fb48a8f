"""JSON text from outside → Python values, and what is said about text that is none.

Owns the strictness (no NaN, no lone surrogate, no bottomless nesting) and the excerpts that rejects
carry. Knows nothing of conversations; opens no files.
"""

from __future__ import annotations

from typing import Any

import orjson

from ._ingest import is_nested
from .nouns import RowError

MAX_DEPTH = 100  # far below where pickle, repr and JSON writers hit Python's recursion limit
MAX_EXCERPT = 10_000  # characters


def decode(data: bytes | str) -> Any:
    """Return the value that JSON text spells; RowError says where it breaks."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RowError(*_complaint(data, error)) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise RowError if lists and objects are nested so deeply that later stages could choke."""
    if is_nested(value, MAX_DEPTH):
        raise RowError("nested too deeply", f"more than {MAX_DEPTH} levels")


def excerpt(data: bytes) -> str:
    r"""Show undecodable bytes as text: invalid ones as \xNN, the end cut off with a note."""
    text = data[: 4 * MAX_EXCERPT].decode("utf-8", "backslashreplace")
    if len(data) <= 4 * MAX_EXCERPT and len(text) <= MAX_EXCERPT:
        return text
    return f"{text[:MAX_EXCERPT]} [cut here, {len(data):,} bytes in all]"


def _complaint(data: bytes | str, error: orjson.JSONDecodeError) -> tuple[str, str]:
    if isinstance(data, bytes):
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as bad:
            byte = data[bad.start]
            return "invalid UTF-8", f"byte {bad.start} is 0x{byte:02x}: {bad.reason}"
    deep = "limit" in error.msg or "depth" in error.msg  # as versions word it
    reason = "nested too deeply" if deep else "invalid JSON"
    return reason, f"{error.msg} at character {error.pos}"
