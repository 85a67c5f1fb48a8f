"""Shapes: conversations of the same roles are written alike, so how is worked out once.

Owns the function that fills the texts of a conversation into what a named template writes for its
shape. It gives up where the template looks into a text (an empty one, reasoning, a token that is
an answer's own): such a conversation is rendered. Knows no tokenizer and no ids.

The function's code is written from quoted constants, numbers of messages and names of string
methods; nothing of a template or a conversation is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ._ingest import plain_roles
from .nouns import Conversation, Message, Segment
from .patterns import Field, Pattern, common_start, splitter
from .rendering import END_OF_THINK, RESULT, Rendering

if TYPE_CHECKING:
    from .declaration import Template

# The roles of the messages, and which of them have an `input`.
Shape = tuple[str, ...]
# Messages → the texts of those segments that hold something of a message, or None.
Fill = Callable[[Sequence[Message]], "list[str] | None"]

_INPUT = "+input"


def shape_of(conversation: Conversation) -> Shape | None:
    """The shape of a conversation; None where it is more than roles, texts and inputs."""
    if conversation.tools:
        return None
    messages = conversation.messages
    plain = plain_roles(messages)
    if plain is not None:
        return plain
    shape = [_spelled(message) for message in messages]
    return None if None in shape else tuple(cast("list[str]", shape))


def _spelled(message: Message) -> str | None:
    """How a message stands in a shape, None where it is more than role, content and input."""
    role: str = message["role"]
    if len(message) == 2:
        return role
    return role + _INPUT if len(message) == 3 and message.get("input") else None


class Straight(NamedTuple):
    """What a Fill does, where it takes every text as it is: for `_ingest.fill_plain`.

    `texts`: in turn what the template writes (UTF-8) and the number of a message, for each. `asked`
    of each message: whether it must have text, what must not be in it, and what not in front.
    """

    texts: tuple[tuple[bytes | int, ...], ...]
    asked: tuple[tuple[bool, tuple[bytes, ...], bytes], ...]

    def fill(self, messages: Sequence[Message]) -> list[str] | None:
        """The same in Python, slowly: what the Fill makes of messages."""
        contents: list[str] = [message["content"] for message in messages]
        for content, (needed, tokens, start) in zip(contents, self.asked, strict=True):
            if (needed and not content) or any(token.decode() in content for token in tokens):
                return None
            if start and content.startswith(start.decode()):
                return None
        return [
            "".join(contents[piece] if isinstance(piece, int) else piece.decode() for piece in text)
            for text in self.texts
        ]


class Program(NamedTuple):
    """How a template writes conversations of one shape.

    `segments`: those that hold something of a message have no text here; `fill` gives their texts.
    `warnings`: as Rendered has them. `straight`: `fill` in another form, if it has one.
    """

    segments: list[Segment]
    fill: Fill
    warnings: tuple[str, ...]
    straight: Straight | None

    def render(self, messages: Sequence[Message]) -> list[Segment] | None:
        """The segments of a conversation of this shape."""
        texts = self.fill(messages) if self.straight is None else self.straight.fill(messages)
        if texts is None:
            return None
        left = iter(texts)
        return [part if part.text else part._replace(text=next(left)) for part in self.segments]


def compile_program(template: Template, shape: Shape, train_on: str) -> Program | None:
    """The program for a shape that the template can write; None where there can be none.

    The template writes a conversation of slots. A slot takes down how it is stripped. Where text
    that holds one is stripped, that is not known, but a slot's edge is lost. None may be torn.
    """
    edge = _edge(template.spelled_patterns)
    if edge is None:
        return None
    segments, slots, warnings = _written(template, shape, train_on, edge)
    if edge:
        bare = _written(template, shape, train_on, "")[0]
        if [(pieces, part[1:]) for pieces, part in segments] != [(p, part[1:]) for p, part in bare]:
            return None
    if any(_MARK in piece for pieces, _ in segments for piece in pieces[::2]):
        return None
    texts = [pieces for pieces, _ in segments if len(pieces) > 1]
    parts = [part._replace(text="") if len(pieces) > 1 else part for pieces, part in segments]
    straight = _straight(template, shape, slots, texts)
    return Program(parts, _fill(template, shape, slots, texts), warnings, straight)


def _written(
    template: Template, shape: Shape, train_on: str, edge: str
) -> tuple[list[tuple[list[str], Segment]], list[_Slot], tuple[str, ...]]:
    """Each segment, its text in pieces: in turn what the template writes and a slot's number."""
    slots: list[_Slot] = []
    messages: list[Message] = []
    for number, role in enumerate(shape):
        message = {"role": role.removesuffix(_INPUT)}
        for key in ("content", "input")[: 1 + role.endswith(_INPUT)]:
            message[key] = _slot(slots, edge, f"messages[{number}][{key!r}]", number)
        messages.append(message)
    rendered = Rendering(template, messages, False, train_on).render(None)
    digits = "".join(map(chr, _READ))
    between = re.compile("{0}{1}([{2}]+){1}{0}".format(re.escape(edge), _MARK, digits))
    segments = []
    for part in rendered.segments:
        pieces = between.split(part.text)
        pieces[1::2] = [number.translate(_READ) for number in pieces[1::2]]
        segments.append((pieces, part))
    return segments, slots, rendered.warnings


# Stands around a slot's number, whose digits are spelled by the ten that follow: noncharacters, in
# no template, and in no token at which an answer might be split.
_MARK = "\ufdd0"
_SPELLED = {ord(digit): 0xFDD1 + int(digit) for digit in "0123456789"}
_READ = {spelled: digit for digit, spelled in _SPELLED.items()}


class _Slot(str):
    """Stands for a message's text while its shape is worked out."""

    slots: list[_Slot]
    edge: str
    place: int  # in `slots`
    code: str  # how the text is computed
    message: int | None  # whose text it is, as it stands there

    def _change(self, method: str, chars: str | None) -> _Slot:
        code = f"{self.code}.{method}({'' if chars is None else repr(chars)})"
        return _slot(self.slots, self.edge, code, None)

    def strip(self, chars: str | None = None, /) -> _Slot:
        return self._change("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> _Slot:
        return self._change("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> _Slot:
        return self._change("rstrip", chars)


def _slot(slots: list[_Slot], edge: str, code: str, message: int | None) -> _Slot:
    slot = _Slot(f"{edge}{_MARK}{str(len(slots)).translate(_SPELLED)}{_MARK}{edge}")
    slot.slots, slot.edge, slot.place, slot.code = slots, edge, len(slots), code
    slot.message = message
    slots.append(slot)
    return slot


def _edge(patterns: Mapping[str, Pattern]) -> str | None:
    """A character that every field's method strips, none where no field has one."""
    stripped = {
        part.chars
        for pattern in patterns.values()
        for part in pattern
        if isinstance(part, Field) and part.method
    }
    if not stripped:
        return ""
    candidates = "".join(chars or "" for chars in stripped) + " "
    for edge in candidates:
        if all(edge.isspace() if chars is None else edge in chars for chars in stripped):
            return edge
    return None


def _used(texts: Sequence[Sequence[str]]) -> list[int]:
    """The slots in texts."""
    return sorted({int(piece) for pieces in texts for piece in pieces[1::2]})


def _looked_for(template: Template) -> tuple[tuple[str, ...], bool]:
    """The tokens that no answer may hold, and whether no question may begin with a result."""
    reasons = template.answer_with_reasoning is not None
    return (*template.recognised, *([END_OF_THINK] if reasons else [])), reasons


def _straight(
    template: Template, shape: Shape, slots: Sequence[_Slot], texts: Sequence[Sequence[str]]
) -> Straight | None:
    """The same as `_fill`, None where a text is not taken as it is or not the message's own."""
    used = {slots[place].message for place in _used(texts)}
    if None in used or any(role.endswith(_INPUT) for role in shape):
        return None
    tokens, reasons = _looked_for(template)
    if not all(tokens):
        return None
    answers, questions = tuple(token.encode() for token in tokens), RESULT.encode() * reasons
    return Straight(
        tuple(
            tuple(
                cast(int, slots[int(piece)].message) if n % 2 else piece.encode()
                for n, piece in enumerate(pieces)
            )
            for pieces in texts
        ),
        tuple(
            (
                number in used,
                answers if role == "assistant" else (),
                questions if role == "user" else b"",
            )
            for number, role in enumerate(shape)
        ),
    )


def _fill(
    template: Template, shape: Shape, slots: Sequence[_Slot], texts: Sequence[Sequence[str]]
) -> Fill:
    used = _used(texts)
    looked_at = [f"not t{place}" for place in used]
    tokens, reasons = _looked_for(template)
    for number, role in enumerate(shape):
        content = f"messages[{number}]['content']"
        if role.startswith("assistant") and tokens:
            start = common_start(tokens)
            looked_at.append(f"{start!r} in {content} and recognises({content})")
        elif role.startswith("user") and reasons:
            looked_at.append(f"{content}.startswith({RESULT!r})")
    joined = [
        [f"t{piece}" if n % 2 else repr(piece) for n, piece in enumerate(pieces) if piece]
        for pieces in texts
    ]
    lines = [
        *(f"t{place} = {slots[place].code}" for place in used),
        *([f"if {' or '.join(looked_at)}: return None"] if looked_at else []),
        f"return [{', '.join(map(_sum, joined))}]",
    ]
    body = "\n    ".join(lines)
    compiled: Fill | None = None

    def fill(messages: Sequence[Message]) -> list[str] | None:
        nonlocal compiled
        if compiled is None:  # rows in columns need none
            names: dict[str, Any] = {"recognises": splitter(tokens).search}
            exec(compile(f"def fill(messages):\n    {body}\n", "<shape>", "exec"), names)
            compiled = names["fill"]
        return compiled(messages)

    return fill


def _sum(terms: Sequence[str]) -> str:
    """Code that joins texts; one of very many would nest deeper than Python compiles."""
    return " + ".join(terms) if len(terms) < 50 else f"''.join([{', '.join(terms)}])"
