"""Template: what a template declares, what it refuses, and how it is bound to a tokenizer.

Knows no named template, and of a tokenizer only what its tokens are called. How the patterns are
written out is in rendering.py, how they are exported in jinja_export.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .jinja_export import export
from .nouns import Conversation, Message, Rendered, RowError, Segment
from .patterns import Field, Part, Pattern, compile_pattern, control
from .rendering import Rendering

if TYPE_CHECKING:
    from .tokenizers import Backend

TRAIN_ON = ("assistant", "last", "all")
RUNS = ("joined", "restarted", "apart", "spelled")

# The patterns of a declaration, and the fields that each may have besides {bos} and {eos}.
FIELDS: dict[str, tuple[str, ...]] = {
    "start": (),
    "system": ("system",),
    "system_later": ("system",),
    "system_in_user": ("system",),
    "user": ("user",),
    "user_with_input": ("user", "input"),
    "cue": (),
    "answer": ("answer",),
    "answer_with_reasoning": ("reasoning", "answer"),
    "stop": (),
    "tail": (),
    "finish": (),
}
# What stands around an answer: its control tokens are never the assistant's own text.
_TURN = set(FIELDS) - {"answer", "answer_with_reasoning"}
TOOL_FIELDS: dict[str, tuple[str, ...]] = {
    "block": ("tools",),
    "call": ("name", "arguments"),
    "results": ("results",),
    "result": ("result",),
}


# A pattern without this field would drop a message's text.
_NEEDED = {
    "system": ("system",),
    "system_later": ("system",),
    "system_in_user": ("system",),
    "user": ("user",),
    "user_with_input": ("user", "input"),
    "answer": ("answer",),
    "answer_with_reasoning": ("reasoning", "answer"),
    **TOOL_FIELDS,
}


@dataclass(frozen=True)
class Tools:
    """How a template writes tools, in patterns.

    `block` follows the system text after an empty line, or stands for it; its `{tools}` are the
    tools as JSON. `call` writes one call's `{name}` and `{arguments}`; calls follow the answer's
    text. `result` writes the text of one tool message, `results` goes around those that follow
    each other. Tools, calls and results stand on lines of their own; JSON is that of
    `json.dumps(ensure_ascii=False)`.
    """

    block: str
    call: str
    results: str
    result: str


@dataclass(frozen=True)
class Template:
    r"""A named template, declared in patterns (see `turnpack.patterns`).

    To add one, write down what its original writes and name the original. This one is Zephyr's::

        Template(
            name="zephyr",
            source="huggingface/alignment-handbook chat_templates, zephyr",
            summary="Zephyr; no default system message",
            system="<|system|>\n{system}{eos}\n",
            user="<|user|>\n{user}{eos}\n",
            cue="<|assistant|>\n",
            tail="\n",
        )

    A turn is `user` (`user_with_input` where the message has an Alpaca `input`; without that
    pattern the input follows the user's text after a newline), `cue` (the header of an answer:
    with it the inference prompt ends), `answer` and `stop` (what the model must produce), `tail`
    (what follows the stop token). `start` opens the text, `finish` closes that of a conversation,
    not of a prompt; where there is no `stop`, what `finish` writes is the last answer's.

    A system message at the start is written by `system`, a later one by `system_later` (None: as
    `system`); without either the template refuses it. `default_system` is the text of conversations
    that have none (`default_system_with_input`: if the first message has an `input`).
    `system_in_user`: the system text, written that way, becomes the beginning of the first user's
    text, with `system_in_last_user` of the last user's. `gathers_system`: system messages move to
    the start, wherever they stand, with an empty line between them.

    `answer_with_reasoning` writes reasoning (`reasoning_content`, or what stands before `</think>`)
    in answers after the last user's message: in the last one always, in others that have some.
    Reasoning of earlier answers is not written. `tools`: how tools are written; None refuses them.
    `alternates`: the original knows only user and assistant in turn.

    `markers` in a pattern are control tokens, as are `{bos}` and `{eos}`, which stand for the
    tokenizer's own (`bos`, `eos` here: the original's). `markup` is control where the tokenizer
    has such a token and text where it has none. `runs` says how a run of ordinary text is encoded:
    "joined" as a continuation of what stands before it; "restarted" as the start of a text behind
    every control token, as transformers' older Llama tokenizers do; "apart" always as the start of
    a text; "spelled" never, because the patterns spell the blanks that a SentencePiece model would
    put there. `variables`: other fields, as names and texts, for `get_template` to replace.
    """

    name: str
    source: str
    summary: str
    user: str
    user_with_input: str | None = None
    cue: str = ""
    answer: str = "{answer}"
    answer_with_reasoning: str | None = None
    stop: str = "{eos}"
    tail: str = ""
    start: str = ""
    finish: str = ""
    system: str | None = None
    system_later: str | None = None
    system_in_user: str | None = None
    system_in_last_user: bool = False
    gathers_system: bool = False
    default_system: str | None = None
    default_system_with_input: str | None = None
    tools: Tools | None = None
    alternates: bool = False
    markers: tuple[str, ...] = ()
    markup: tuple[str, ...] = ()
    runs: str = "joined"
    variables: tuple[tuple[str, str], ...] = ()
    bos: str = "<s>"
    eos: str = "</s>"
    # What `get_template` was told to spell, and what `bind` found in the tokenizer.
    spelled: tuple[str, ...] = ()
    recognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.runs not in RUNS:
            raise ValueError(f"runs must be one of {', '.join(RUNS)}, not {self.runs!r}")
        folds = self.system_in_user is not None
        for wrong, message in (
            (folds and not self.alternates, "system_in_user needs alternates"),
            (folds and bool(self.tools), "system_in_user does not go with tools"),
            (
                folds and self.user_with_input is not None,
                "system_in_user does not go with user_with_input",
            ),
            (self.gathers_system and self.system is None, "gathers_system needs system"),
            (self.tools is not None and self.system is None, "tools need system"),
            (
                self.default_system is not None and not self.has_system,
                "default_system needs system or system_in_user",
            ),
            (
                self.default_system_with_input is not None and self.default_system is None,
                "default_system_with_input needs default_system",
            ),
        ):
            if wrong:
                raise ValueError(f"template {self.name}: {message}")
        constant = {"bos", "eos", *dict(self.variables)}
        for key, parts in self.patterns.items():
            fields = {part.name: part.method for part in parts if isinstance(part, Field)}
            for name in _NEEDED.get(key, ()):
                if name not in fields:
                    raise ValueError(f"template {self.name}: {key} has no {{{name}}}")
            for name, method in fields.items():
                if method and (name in constant or (name == "system" and self.tools)):
                    raise ValueError(f"template {self.name}: {key} cannot strip {{{name}}}")

    @functools.cached_property
    def patterns(self) -> dict[str, Pattern]:
        """The declared patterns as parts, those of the tools among them."""
        controls = (*self.markers, *self.markup)
        everywhere = ("bos", "eos", *dict(self.variables))
        return {
            key: compile_pattern(pattern, (*fields, *everywhere), controls)
            for owner, patterns in ((self, FIELDS), (self.tools, TOOL_FIELDS))
            for key, fields in patterns.items()
            if (pattern := getattr(owner, key, None)) is not None
        }

    @functools.cached_property
    def spelled_patterns(self) -> dict[str, Pattern]:
        """The patterns with BOS, EOS and the variables as this template spells them."""
        own: dict[str, Part] = dict(self.variables)
        # BOS has no weight: the tokenizer or the template puts it there, never the model.
        own.update(bos=control(self.bos)._replace(weight=0.0), eos=control(self.eos))

        def spell(parts: Pattern) -> Iterator[Part]:
            for part in parts:
                spelled = own.get(part.name, part) if isinstance(part, Field) else part
                if not isinstance(spelled, Segment) or spelled.text:
                    yield spelled

        return {key: tuple(spell(parts)) for key, parts in self.patterns.items()}

    def _uses(self, field: str) -> bool:
        return any(
            isinstance(part, Field) and part.name == field
            for parts in self.patterns.values()
            for part in parts
        )

    def _spells(self, key: str, token: str) -> bool:
        return any(isinstance(part, str) and token in part for part in self.patterns[key])

    @property
    def writes_bos(self) -> bool:
        """Whether the template writes BOS itself; otherwise it leaves that to the tokenizer."""
        return self._uses("bos")

    @property
    def has_tools(self) -> bool:
        """Whether the template can write tools, calls and results."""
        return self.tools is not None

    @property
    def has_system(self) -> bool:
        """Whether the template can write a system message."""
        return self.system is not None or self.system_in_user is not None

    def to_jinja(self, *, bos: bool = False) -> str:
        """The template as a Jinja chat template: the same text, for training and for the prompt.

        It takes what transformers and vLLM give one: `messages` (an Alpaca `input` too), `tools`,
        `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception`, which it calls where
        this template raises RowError. A template that leaves BOS to the tokenizer exports none:
        right where the text is tokenized as any other text. `apply_chat_template` and vLLM's chat
        endpoint add no BOS to it; with `bos=True` the export writes the one that the tokenizer
        would have put there.
        """
        return export(self, bos=bos and not self.writes_bos)

    def fingerprint(self) -> str:
        """Sha256 (hex) of the declaration as it is spelled for the tokenizer at hand."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def bind(self, backend: Backend) -> Template:
        """The template with the tokenizer's BOS and EOS, and with the markers it really has.

        A marker that the tokenizer lacks becomes ordinary text, with one UserWarning; markup that
        it lacks does so silently. What the tokenizer reads as an added token in the template's own
        patterns is control, declared or not. Raises ValueError where the tokenizer lacks the stop
        token, or BOS and EOS have no name.
        """
        names = {
            key: getattr(self, key) if key in self.spelled else getattr(backend, key)
            for key in ("bos", "eos")
        }
        for key, name in names.items():
            if not self._uses(key):
                continue
            if name is None:
                raise ValueError(
                    f"template {self.name} writes {key.upper()}, and the tokenizer names none: "
                    f"spell it (--{key}-token)"
                )
            if name and backend.control_id(name) is None:
                raise ValueError(
                    f"template {self.name} writes {key.upper()} {name!r}, which is no added token "
                    "of the tokenizer"
                )
        stops = {part.text for part in self.patterns["stop"] if isinstance(part, Segment)}
        lacking = [marker for marker in self.markers if backend.control_id(marker) is None]
        for marker in lacking:
            if marker in stops:
                raise ValueError(
                    f"template {self.name} stops with {marker!r}, which is no added token of the "
                    "tokenizer"
                )
        notes = [f"the tokenizer has no token {marker}: written as text" for marker in lacking]
        for note in notes:
            warnings.warn(f"template {self.name}: {note}", stacklevel=3)
        markers = [marker for marker in self.markers if marker not in lacking]
        markup = [tag for tag in self.markup if backend.control_id(tag) is not None]
        # At inference the tokenizer reads these in the template's text, declared or not.
        for token in getattr(backend, "reads_in_text", ()):
            keys = {key for key in self.patterns if self._spells(key, token)}
            if keys & _TURN:
                markers.append(token)
            elif keys:
                markup.append(token)
        turn = {*markers, *names.values()}
        return dataclasses.replace(
            self,
            bos=names["bos"] or "",
            eos=names["eos"] or "",
            markers=tuple(markers),
            markup=tuple(markup),
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
        return Rendering(self, messages, for_inference, train_on).render(tools)

    def _check(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        for_inference: bool,
    ) -> None:
        if tools and not self.tools:
            raise RowError(f"template {self.name} has no tools", f"the row lists {len(tools)}")
        if messages[0]["role"] == "system" and not self.has_system:
            raise RowError(f"template {self.name} has no system message")
        later_system = self.gathers_system or (self.system is not None and not self.alternates)
        expected = "user"
        for number, message in enumerate(messages):
            role = message["role"]
            if not self.tools and (role == "tool" or message.get("tool_calls")):
                what = "is a tool's" if role == "tool" else "calls a tool"
                raise RowError(f"template {self.name} has no tools", f"message {number} {what}")
            if role == "system":
                if number and not later_system:
                    raise RowError(
                        f"template {self.name} takes a system message at the start only",
                        f"message {number} is a system message",
                    )
            elif self.alternates:
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
