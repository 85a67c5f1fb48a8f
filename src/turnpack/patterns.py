r"""The pattern language of template declarations: literal text with fields in braces.

Owns how a pattern is read: `compile_pattern` turns it into literal text, control tokens and fields.
Knows no template, no message and no rule of where a pattern is written.

`{user}` is a field: it stands for a message's text, or for the tokenizer's `{bos}` and `{eos}`.
`{user|strip}` is that text without white space at its ends, `{answer|rstrip: }` without the blanks
behind it, `{answer|lstrip:\n}` without the newlines in front: Python's own string methods.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from .nouns import Segment

# A field's value: plain text, or segments where some of it is control or weighs otherwise.
Value = str | Sequence[Segment]


class Field(NamedTuple):
    """A place in a pattern that is filled for every message."""

    name: str
    method: str = ""  # strip, lstrip or rstrip; none: the text as it is
    chars: str | None = None  # what it strips; None: white space


Part = str | Segment | Field  # literal text, a control token, a field
Pattern = tuple[Part, ...]

_UNKNOWN = re.compile(r"\{\w+\|\w+[^}]*\}")
_FIELD = re.compile(r"\{(\w+)(?:\|([lr]?strip)(?::([^}]+))?)?\}")


def compile_pattern(pattern: str, fields: Collection[str], controls: tuple[str, ...]) -> Pattern:
    """A pattern as parts. Raises ValueError for a field that is not among `fields`."""
    parts: list[Part] = []
    end = 0
    for found in _FIELD.finditer(pattern):
        name, method, chars = found.groups()
        if name not in fields:
            known = ", ".join(f"{{{field}}}" for field in fields)
            raise ValueError(f"no field {found.group()} in {pattern!r}; there are: {known}")
        parts += _literal(pattern[end : found.start()], controls)
        parts.append(Field(name, method or "", chars))
        end = found.end()
    parts += _literal(pattern[end:], controls)
    for part in parts:
        if isinstance(part, str) and (wrong := _UNKNOWN.search(part)):
            raise ValueError(f"{wrong.group()} in {pattern!r}: there are strip, lstrip and rstrip")
    return tuple(parts)


def _literal(text: str, controls: tuple[str, ...]) -> list[Part]:
    pieces = enumerate(splitter(controls).split(text))
    return [control(piece) if place % 2 else piece for place, piece in pieces if piece]


def control(text: str) -> Segment:
    """A control token that is no target."""
    return Segment(text, False, True)


@functools.lru_cache(maxsize=256)
def splitter(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Splits text at tokens, the longest first; splits nowhere where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if tokens else r"(?!)()")


def common_start(tokens: Sequence[str]) -> str:
    """The character with which all tokens begin, none where they begin otherwise.

    Whether it is in a text costs far less to know than a search for tokens.
    """
    starts = {token[:1] for token in tokens}
    return starts.pop() if len(starts) == 1 else ""


def stripped(value: Value, field: Field) -> Value:
    """A field's value with its string method applied, to segments as to their joined text."""
    if isinstance(value, str):
        text: str = getattr(value, field.method)(field.chars)
        return text
    kept = [segment for segment in value if segment.text]
    for end, method in ((0, "lstrip"), (-1, "rstrip")):
        if field.method not in (method, "strip"):
            continue
        while kept and not kept[end].control:
            text = getattr(kept[end].text, method)(field.chars)
            if text:
                kept[end] = kept[end]._replace(text=text)
                break
            del kept[end]
    return kept
