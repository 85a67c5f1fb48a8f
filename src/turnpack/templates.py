"""Templates: how a conversation is written as text, and which of it the model must produce.

Owns the protocol that every template follows, the named templates as declarations, and the rules
that turn a declaration into segments. Knows no tokenizer beyond the names of its tokens (`bind`)
and no ids.

The bytes come from each template's original, named in its `source`. A template is a set of
patterns: literal text with fields in braces. `{system}`, `{user}`, `{input}` and `{answer}` are
the messages' texts, `{user|strip}` without white space at its ends, `{bos}` and `{eos}` the
tokenizer's own; the `markers` in a pattern, `{bos}` and `{eos}` are control tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .nouns import Conversation, Message, Rendered, RowError, Segment

if TYPE_CHECKING:
    from .tokenizers import Backend

TRAIN_ON = ("assistant", "last", "all")


class TemplateProtocol(Protocol):
    """What the Encoder needs of a template, named or not."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        ...

    @property
    def writes_bos(self) -> bool:
        """Whether it writes BOS; otherwise the tokenizer puts its own in front, if it does."""
        ...

    def bind(self, backend: Backend) -> TemplateProtocol:
        """The template as it is written for one tokenizer."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        for_inference: bool = False,
        train_on: str = "assistant",
    ) -> Rendered:
        """The conversation as segments."""
        ...

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the text."""
        ...


class Piece(NamedTuple):
    """Text written for the message number `owner` (None: for the conversation as a whole)."""

    text: str
    control: bool = False
    owner: int | None = None


@dataclass(frozen=True)
class Template:
    """A named template.

    `user` (or `user_with_input`, where the message has an Alpaca `input`; without that pattern the
    input follows the user's text after a newline), `cue` (the header of an answer: with it the
    inference prompt ends), `answer` and `stop` (what the model must produce), `tail` (what follows
    the stop token) make up a turn. `start` opens the text. Where the conversation opens with a
    system message, `system` writes it; otherwise `preamble` (`preamble_with_input`) stands there.
    With `system_in_user` the system text is written that way and becomes the first part of the
    first user's text instead. `alternates`: the original knows only user and assistant in turn.
    """

    name: str
    source: str
    summary: str
    user: str
    user_with_input: str | None = None
    cue: str = ""
    answer: str = "{answer}"
    stop: str = "{eos}"
    tail: str = ""
    start: str = ""
    system: str | None = None
    system_in_user: str | None = None
    preamble: str = ""
    preamble_with_input: str | None = None
    alternates: bool = False
    markers: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = "</s>"
    # What `get_template` was told to spell, and what `bind` found in the tokenizer.
    spelled: tuple[str, ...] = ()
    recognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def _patterns(self) -> dict[str, tuple[Piece | str, ...]]:
        return {
            field.name: self._compile(pattern)
            for field in dataclasses.fields(self)
            if field.name in _PATTERNS and (pattern := getattr(self, field.name)) is not None
        }

    def _compile(self, pattern: str) -> tuple[Piece | str, ...]:
        """A pattern as pieces of text and names of fields."""
        parts: list[Piece | str] = []
        for index, part in enumerate(_FIELD.split(pattern)):
            if index % 2:
                parts.append(part)
                continue
            for place, text in enumerate(_splitter(self.markers).split(part)):
                if text:
                    parts.append(Piece(text, control=place % 2 == 1))
        return tuple(parts)

    @property
    def writes_bos(self) -> bool:
        """Whether the template writes BOS itself; otherwise it leaves that to the tokenizer."""
        return any("bos" in parts for parts in self._patterns.values())

    def fingerprint(self) -> str:
        """Sha256 (hex) of the declaration as it is spelled for the tokenizer at hand."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def bind(self, backend: Backend) -> Template:
        """The template with the tokenizer's BOS and EOS, and with the markers it really has.

        A marker that the tokenizer lacks becomes ordinary text, with one UserWarning. Raises
        ValueError where the tokenizer lacks the stop token, or BOS and EOS have no name.
        """
        names = {
            key: getattr(self, key) if key in self.spelled else getattr(backend, key)
            for key in ("bos", "eos")
        }
        used = {part for parts in self._patterns.values() for part in parts if type(part) is str}
        for key, name in names.items():
            if key in used and name is None:
                raise ValueError(
                    f"template {self.name} writes {key.upper()}, and the tokenizer names none: "
                    f"spell it (--{key}-token)"
                )
            if key in used and name and backend.control_id(name) is None:
                raise ValueError(
                    f"template {self.name} writes {key.upper()} {name!r}, which is no added token "
                    "of the tokenizer"
                )
        stops = {part.text for part in self._patterns["stop"] if isinstance(part, Piece)}
        lacking = [marker for marker in self.markers if backend.control_id(marker) is None]
        for marker in lacking:
            if marker in stops:
                raise ValueError(
                    f"template {self.name} stops with {marker!r}, which is no added token of the "
                    "tokenizer"
                )
        notes = [f"the tokenizer has no token {marker}: written as text" for marker in lacking]
        if not stops and not names["eos"]:
            notes.append("no stop token")
        for note in notes:
            warnings.warn(f"template {self.name}: {note}", stacklevel=3)
        turn = {*self.markers, *names.values()}
        return dataclasses.replace(
            self,
            bos=names["bos"] or "",
            eos=names["eos"] or "",
            markers=tuple(marker for marker in self.markers if marker not in lacking),
            recognised=tuple(
                token for token in getattr(backend, "recognised", ()) if token not in turn
            ),
            notes=tuple(notes),
        )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        for_inference: bool = False,
        train_on: str = "assistant",
    ) -> Rendered:
        """The conversation as segments.

        `for_inference`: the prompt for the next answer, without any target. `train_on`: whose
        tokens are targets, "assistant", "last" (the last answer only) or "all" (whatever is
        written, BOS excepted); a message with `train` False or `weight` 0 never is.

        Raises RowError where the template cannot express the conversation.
        """
        if train_on not in TRAIN_ON:
            raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, not {train_on!r}")
        messages = Conversation(messages, tools).messages
        self._check(messages, tools, for_inference)
        answers = [number for number, m in enumerate(messages) if m["role"] == "assistant"]
        trained = set(answers[-1:] if train_on == "last" else answers)
        writer = _Writer(self, messages)
        writer.write("start")
        first = self._open(writer, messages)
        for number in range(first, len(messages)):
            message = messages[number]
            if message["role"] == "system":
                writer.write("system", number)
            elif message["role"] == "user":
                writer.write(self._form("user", message), number)
            else:
                writer.write("cue", number)
                mark = len(writer.pieces)
                writer.write("answer", number)
                writer.write("stop", number)
                if number in trained and not for_inference:
                    writer.targets.append((mark, len(writer.pieces), number))
                writer.write("tail", number)
        if for_inference:
            writer.write("cue")
        notes = self.notes
        if any(message.get("reasoning_content") for message in messages):
            notes = (*notes, f"template {self.name} does not write reasoning_content")
        everything = train_on == "all" and not for_inference
        return Rendered(writer.segments(everything), notes)

    def _open(self, writer: _Writer, messages: Sequence[Message]) -> int:
        """Write what stands before the first turn; returns the number of the next message."""
        first = 0
        if messages[0]["role"] == "system":
            if self.system_in_user is not None:
                writer.folded = writer.pieces_of("system_in_user", 0)
            else:
                writer.write("system", 0)
            first = 1
        elif self.preamble:
            writer.write(self._form("preamble", messages[0]))
        return first

    def _form(self, pattern: str, message: Message) -> str:
        """The name of a pattern, in its form for a message with or without an input."""
        with_input = f"{pattern}_with_input"
        return with_input if message.get("input") and with_input in self._patterns else pattern

    def _check(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        for_inference: bool,
    ) -> None:
        if tools:
            raise RowError(f"template {self.name} has no tools", f"the row lists {len(tools)}")
        opens = messages[0]["role"] == "system"
        if opens and self.system is None and self.system_in_user is None:
            raise RowError(f"template {self.name} has no system message")
        expected = "user"
        for number, message in enumerate(messages):
            role = message["role"]
            if role == "tool" or message.get("tool_calls"):
                what = "is a tool's" if role == "tool" else "calls a tool"
                raise RowError(f"template {self.name} has no tools", f"message {number} {what}")
            if role == "system" and number and (self.alternates or self.system is None):
                raise RowError(
                    f"template {self.name} takes a system message at the start only",
                    f"message {number} is a system message",
                )
            if self.alternates and role != "system":
                if role != expected:
                    raise RowError(
                        f"template {self.name} needs user and assistant in turn",
                        f"message {number} is of the {role}, not of the {expected}",
                    )
                expected = "assistant" if role == "user" else "user"
        if for_inference and self.alternates and expected == "user":
            raise RowError(
                f"template {self.name} prompts for an answer after a user's message only",
                f"the last message is of the {messages[-1]['role']}",
            )


_PATTERNS = {
    "start",
    "system",
    "system_in_user",
    "preamble",
    "preamble_with_input",
    "user",
    "user_with_input",
    "cue",
    "answer",
    "stop",
    "tail",
}
_FIELD = re.compile(r"\{((?:system|user|input|answer|bos|eos)(?:\|strip)?)\}")


@functools.lru_cache(maxsize=256)
def _splitter(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Splits text at tokens, the longest first; splits nowhere where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if tokens else r"(?!)()")


class _Writer:
    """Collects the pieces of one conversation, and which of them are targets."""

    def __init__(self, template: Template, messages: Sequence[Message]) -> None:
        self.template = template
        self.messages = messages
        self.pieces: list[Piece] = []
        self.targets: list[tuple[int, int, int]] = []  # pieces from, to; message
        self.folded: list[Piece] = []

    def write(self, pattern: str, number: int | None = None) -> None:
        self.pieces += self.pieces_of(pattern, number)

    def pieces_of(self, pattern: str, number: int | None = None) -> list[Piece]:
        pieces: list[Piece] = []
        for part in self.template._patterns.get(pattern, ()):
            if isinstance(part, Piece):
                pieces.append(part._replace(owner=number))
            elif part in ("bos", "eos"):
                pieces.append(Piece(getattr(self.template, part), True, number))
            elif number is not None:
                field, _, strip = part.partition("|")
                value = self._value(field, number)
                pieces += _strip(value) if strip else value
        return [piece for piece in pieces if piece.text]

    def _value(self, field: str, number: int) -> list[Piece]:
        message = self.messages[number]
        if field == "input":
            return [Piece(message["input"], owner=number)]
        text: str = message["content"]
        if field == "answer":
            parts = _splitter(self.template.recognised).split(text)
            return [Piece(part, place % 2 == 1, number) for place, part in enumerate(parts)]
        if field == "system":
            return [Piece(text, owner=number)]
        if message.get("input") and self.template.user_with_input is None:
            text = f"{text}\n{message['input']}"
        folded, self.folded = self.folded, []
        return [*folded, Piece(text, owner=number)]

    def segments(self, everything: bool) -> list[Segment]:
        """The pieces as segments. `everything`: all that is written is a target."""
        weights = self._weights(everything)
        segments: list[Segment] = []
        text: list[str] = []
        run: float | None = None

        def flush() -> None:
            if text:
                segments.append(_segment("".join(text), run, control=False))
                text.clear()

        for piece, weight in zip(self.pieces, weights, strict=True):
            if piece.control:
                flush()
                segments.append(_segment(piece.text, weight, control=True))
            else:
                if weight != run:
                    flush()
                    run = weight
                text.append(piece.text)
        flush()
        return segments

    def _weights(self, everything: bool) -> list[float | None]:
        """The weight of each piece's loss, None for a piece that is no target."""
        weights: list[float | None] = [None] * len(self.pieces)
        if everything:
            for index, piece in enumerate(self.pieces):
                if not (piece.control and piece.text == self.template.bos):
                    weights[index] = 1.0 if piece.owner is None else self._weight(piece.owner)
        for start, end, number in self.targets:
            weights[start:end] = [self._weight(number)] * (end - start)
        return weights

    def _weight(self, number: int) -> float | None:
        message = self.messages[number]
        weight = message.get("weight")
        if message.get("train") is False or weight == 0:
            return None
        return 1.0 if weight is None else float(weight)


def _segment(text: str, weight: float | None, *, control: bool) -> Segment:
    return Segment(text, weight is not None, control, 1.0 if weight is None else weight)


def _strip(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces without the white space at both ends of their joined text."""
    kept = [piece for piece in pieces if piece.text]
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while kept and not kept[end].control:
            text = strip(kept[end].text)
            if text:
                kept[end] = kept[end]._replace(text=text)
                break
            del kept[end]
    return kept


_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately "
_ALPACA += "completes the request.\n\n"

_NAMED = (
    Template(
        name="alpaca",
        source="tatsu-lab/stanford_alpaca train.py, PROMPT_DICT",
        summary="Stanford Alpaca; nothing between 'Response:' and the answer. Single-turn in the "
        "original: later turns repeat the turn block without the preamble; a system message "
        "takes the preamble's place",
        preamble=_ALPACA.format(""),
        preamble_with_input=_ALPACA.format(", paired with an input that provides further context"),
        system="{system}\n\n",
        user="### Instruction:\n{user}\n\n",
        user_with_input="### Instruction:\n{user}\n\n### Input:\n{input}\n\n",
        cue="### Response:",
        alternates=True,
    ),
    Template(
        name="llama2",
        source="facebookresearch/llama llama/generation.py, chat_completion",
        summary="Llama-2 chat; the system text is folded into the first user turn",
        system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n",
        user="{bos}[INST] {user|strip} [/INST]",
        answer=" {answer|strip} ",
        alternates=True,
    ),
    Template(
        name="chatml",
        source="OpenAI's ChatML as unslothai/unsloth chat_templates.py writes it",
        summary="ChatML; no default system message",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        user="<|im_start|>user\n{user}<|im_end|>\n",
        cue="<|im_start|>assistant\n",
        stop="<|im_end|>",
        tail="\n",
        markers=("<|im_start|>", "<|im_end|>"),
    ),
)

_BY_NAME = {template.name: template for template in _NAMED}


def templates() -> list[str]:
    """The names of the templates, in the order in which they are declared.

    >>> "llama2" in templates()
    True
    """
    return list(_BY_NAME)


def get_template(name: str, *, bos: str | None = None, eos: str | None = None) -> Template:
    """A named template. By itself it spells BOS and EOS as its original's tokenizer does.

    `bos`, `eos`: spell them otherwise, for any tokenizer; an empty BOS is not written.

    >>> get_template("llama2").render([{"role": "user", "content": "Hi"}]).text
    '<s>[INST] Hi [/INST]'

    Raises ValueError for a name that no template has.
    """
    try:
        template = _BY_NAME[name]
    except KeyError:
        known = ", ".join(_BY_NAME)
        raise ValueError(f"unknown template {name!r}; there are: {known}") from None
    spelled = tuple(key for key, value in (("bos", bos), ("eos", eos)) if value is not None)
    if not spelled:
        return template
    bos, eos = template.bos if bos is None else bos, template.eos if eos is None else eos
    return dataclasses.replace(template, bos=bos, eos=eos, spelled=spelled)
