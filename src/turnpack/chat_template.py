"""ChatTemplate: any Jinja chat template, with exact targets.

Owns what such a template is given, what of it is a target, and the programs that render further
conversations without Jinja. How Jinja runs is in jinja_render.py, where turns stand in turns.py.
It knows no template by name.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .compose import Composer
from .declaration import TRAIN_ON
from .jinja_render import REFUSED, JinjaTemplate, strftime_now, to_json
from .nouns import Message as PlainMessage
from .nouns import Rendered, RowError, Segment
from .patterns import splitter
from .provenance import (
    ELSEWHERE,
    TANGLED,
    TOO_MUCH,
    TOOLS,
    Data,
    Items,
    Trace,
    Traced,
    current_trace,
    plain,
    single,
    tracing,
)
from .rendering import loss_weight
from .replay import Item, Program, compile_program, compile_texts, write
from .template_data import (
    REASONING,
    How,
    check_messages,
    kinds_of,
    learns_answers,
    plain_message,
    shape_of,
    traced_message,
    way_of,
)
from .turns import Place, Turns, Written

if TYPE_CHECKING:
    from .tokenizers import Backend

SPANS = ("provenance", "generation")

# What a control token looks like, where no tokenizer says which there are.
_LOOKS_LIKE_CONTROL = re.compile(
    r"<[|｜][^<>\s]+?>|<[^<>|｜\s]+[|｜]>|</?s>|<(?:bos|eos|pad)>|<(?:start|end)_of_\w+>"
    r"|\[\|[^\[\]\s]+\|\]"
)
# How a template can say it: a comment with a list of strings as JSON.
_DECLARED = re.compile(r"\{#-? control tokens: (\[.*\]) -?#\}")

# Where a target begins and ends, and its weight.
Target = tuple[Place, Place, float]

# Programs that are kept for one shape of conversation, and shapes for which some are kept.
_PROGRAMS, _SHAPES = 8, 1024
# What is traced or replayed is compared with what the template alone writes: the first few, and
# one of so many afterwards.
_FIRST, _CHECKED = 16, 256


class ChatTemplate:
    """A Jinja chat template, such as models come with, under the protocol of named templates.

    `source`: the template's text. `bos_token`, `eos_token`: how the tokenizer spells them;
    `variables`: whatever else the template reads (`enable_thinking`, `pad_token`), which `render`
    may replace. `tool_use`: another template for conversations with tools. `name`: what messages
    and reports call it.

    The text is byte for byte that of transformers' `apply_chat_template`. An answer's span starts
    where its inference prompt ends and runs through its stop token; no `{% generation %}` is
    needed. With `spans="generation"` what stands in `{% generation %}` blocks is the target.

    `control_tokens`: which tokens are control tokens; without it what a comment of the template
    declares (`{# control tokens: ["<|im_start|>"] #}`), else what looks like one. `bind` replaces
    all that by what the tokenizer has.

    A template runs in Jinja's sandbox, in a bounded number of steps. Raises ValueError where
    `source` is no template. Instances can be pickled.

    >>> chatml = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    >>> messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    >>> ChatTemplate(chatml).render(messages).text
    '<|user|>Hi<|end|><|assistant|>Hello<|end|>'
    """

    # The tokenizer puts nothing in front: the template writes BOS, or there is none.
    writes_bos = True
    runs = "joined"

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        tool_use: str | None = None,
        spans: str = "provenance",
        control_tokens: Sequence[str] | None = None,
        name: str = "chat_template",
        **variables: Any,
    ) -> None:
        if not isinstance(source, str):
            raise TypeError(f"a chat template is a str, not {type(source).__name__}")
        if spans not in SPANS:
            raise ValueError(f"spans must be one of {', '.join(SPANS)}, not {spans!r}")
        self.name, self.source, self.tool_use, self.spans = name, source, tool_use, spans
        self.bos_token, self.eos_token, self.variables = bos_token, eos_token, variables
        if control_tokens is None:
            control_tokens = _declared_in(source)
        self.control_tokens = None if control_tokens is None else tuple(control_tokens)
        self.bound = False
        self.recognised: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._start()

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, name: str = "auto", **options: Any) -> ChatTemplate:
        """The chat template that a tokenizer comes with, bound to it.

        `tokenizer`: anything `turnpack.tokenizers.load` takes. `options`: as of ChatTemplate.
        Raises ValueError where the tokenizer has no chat template.
        """
        from . import tokenizers

        backend = tokenizers.load(tokenizer)
        source = getattr(backend, "chat_template", None)
        if not source:
            raise ValueError(
                f"{getattr(backend, 'name', 'the tokenizer')} comes with no chat template: "
                "name one of turnpack's (`turnpack templates` lists them)"
            )
        if not isinstance(source, str):
            if "default" not in source and len(source) > 1:
                raise ValueError(
                    f"the tokenizer's chat templates are {', '.join(source)}; none is the default"
                )
            options.setdefault("tool_use", source.get("tool_use"))
            source = source.get("default") or next(iter(source.values()))
        return cls.for_backend(source, backend, name=name, **options)

    @classmethod
    def for_backend(cls, source: str, backend: Backend, **options: Any) -> ChatTemplate:
        """A chat template with a tokenizer's special tokens, bound to it."""
        special = {**getattr(backend, "special_tokens", {})}
        special.update(bos_token=backend.bos, eos_token=backend.eos)
        given = {key: text for key, text in special.items() if text is not None}
        return cls(source, **{**given, **options}).bind(backend)

    # -- the protocol --------------------------------------------------------------------------

    @property
    def bos(self) -> str:
        """How it spells BOS; empty where it has none."""
        return self.bos_token or ""

    def to_jinja(self) -> str:
        """The template itself."""
        return self.source

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the text and the targets."""
        state = {k: v for k, v in self.__getstate__().items() if k != "name"}
        return hashlib.sha256(_stable(state).encode("utf-8", "surrogatepass")).hexdigest()

    def bind(self, backend: Backend) -> ChatTemplate:
        """The template with the control tokens that the tokenizer has, and its BOS and EOS.

        A control token that the tokenizer lacks becomes ordinary text, with one UserWarning. Raises
        ValueError where that is the token that ends an answer.
        """
        bound = copy.copy(self)
        if bound.bos_token is None:
            bound.bos_token = backend.bos
        if bound.eos_token is None:
            bound.eos_token = backend.eos
        bound._start(keep=self)
        own = (bound.bos_token, bound.eos_token)
        wanted = dict.fromkeys(t for t in own if t and backend.control_id(t) is not None)
        wanted |= dict.fromkeys(getattr(backend, "reads_in_text", ()))
        lacking: dict[str, None] = {}
        for match in bound._controls.finditer(bound._known().text):
            token = match.group()
            (wanted if backend.control_id(token) is not None else lacking)[token] = None
        bound.control_tokens, bound.bound = tuple(wanted), True
        bound._start(keep=self)
        known = bound._known()
        for token in lacking:
            if known.unstopped.lstrip().startswith(token):
                raise ValueError(
                    f"template {self.name} stops with {token!r}, which is no added token of the "
                    "tokenizer"
                )
        bound.notes = tuple(
            f"the tokenizer has no token {token}: written as text" for token in lacking
        )
        for note in bound.notes:
            warnings.warn(f"template {self.name}: {note}", stacklevel=3)
        bound.recognised = tuple(
            token for token in getattr(backend, "recognised", ()) if token not in known.turns
        )
        return bound

    def render(
        self,
        messages: Sequence[PlainMessage],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        for_inference: bool = False,
        train_on: str = "assistant",
        **variables: Any,
    ) -> Rendered:
        """The conversation as segments.

        `for_inference`: the prompt for the next answer, without any target. `train_on`: whose
        tokens are targets, "assistant", "last" (the last answer only) or "all" (whatever is
        written, BOS excepted); a message with `train` False or `weight` 0 never is. `variables`
        replace those of the template.

        Raises RowError where the template refuses the conversation, or where it cannot be told
        where an answer stands in what it writes.
        """
        how = _HOWS.get((for_inference, train_on))
        if how is None:
            raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, not {train_on!r}")
        if variables:
            how = how._replace(variables=tuple(sorted(variables.items())))
        shape = shape_of(how, messages, tools)
        for program, notes in self._programs.get(shape, ()):
            segments = program(messages, tools)
            if segments is not None:
                self._replayed += 1
                if self._distrusted or self._replayed % _CHECKED == 0:
                    self._compare("".join(s.text for s in segments), messages, tools, how)
                return _rendered(segments, notes)
        composed = self._compose(messages, tools, how, shape)
        if composed is not None:
            return composed
        check_messages(messages, tools)
        return self._render(messages, tools, how, shape)

    # -- rendering -----------------------------------------------------------------------------

    def _start(self, keep: ChatTemplate | None = None) -> None:
        """Everything that follows from the arguments."""
        if keep is None:
            self._jinja = JinjaTemplate(self.source)
            self._jinja_with_tools = None if self.tool_use is None else JinjaTemplate(self.tool_use)
        else:
            self._jinja, self._jinja_with_tools = keep._jinja, keep._jinja_with_tools
        named = [t for t in (self.bos_token, self.eos_token) if t and not self.bound]
        if self.control_tokens is not None:
            self._controls = splitter(tuple(dict.fromkeys((*self.control_tokens, *named))))
        else:
            exact = sorted(named, key=len, reverse=True)
            pattern = "|".join([*map(re.escape, exact), _LOOKS_LIKE_CONTROL.pattern])
            self._controls = re.compile(pattern)
        self._what_is_known: _Known | None = None
        self._programs: dict[Any, list[tuple[Program, tuple[str, ...]]]] = {}
        self._prompts: dict[Any, list[tuple[Program, Written, dict[Any, Any]]]] = {}
        self._composers: dict[Any, Composer] = {}
        self._seen: set[Any] = set()
        self._literals: dict[str, list[tuple[int, str, str]]] = {}
        self._replayed = self._traced = 0
        self._distrusted = False

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __repr__(self) -> str:
        return f"ChatTemplate(name={self.name!r}, {len(self.source)} characters)"

    def _template(self, tools: Any) -> JinjaTemplate:
        return self._jinja_with_tools if tools and self._jinja_with_tools else self._jinja

    def _variables(self, messages: Any, tools: Any, how: How) -> dict[str, Any]:
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        return {
            **{key: text for key, text in named.items() if text is not None},
            **self.variables,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": how.for_inference,
            **dict(how.variables),
        }

    def _bare(self, messages: Sequence[PlainMessage], tools: Any, how: How) -> str:
        """The text, by the template alone; of what was traced, and so is known to be bounded."""
        plain_messages = self._plain_messages(messages, tools)
        return self._template(tools).render(self._variables(plain_messages, tools, how))

    def _plain_messages(self, messages: Sequence[PlainMessage], tools: Any) -> list[dict[str, Any]]:
        folds = "input" not in self._template(tools).names
        return [plain_message(message, folds) for message in messages]

    def _bounded_text(self, plain_messages: list[dict[str, Any]], tools: Any, how: How) -> str:
        """The same of what was not."""
        size = sum([8 + sum(map(_size, message.values())) for message in plain_messages])
        size += 0 if tools is None else _size(tools)
        variables = self._variables(plain_messages, tools, how)
        return self._template(tools).render_bounded(variables, size)

    def _written(self, messages: Sequence[PlainMessage], tools: Any, how: How) -> Written:
        """The text in pieces; call it in a `tracing` context."""
        jinja = self._template(tools)
        folds = "input" not in jinja.names
        traced = [traced_message(number, m, folds) for number, m in enumerate(messages)]
        if tools is not None:
            listed = [Data(tool, TOOLS, ("tools", n)) for n, tool in enumerate(tools)]
            tools = Items(listed, tools, TOOLS, ("tools",))
        current_trace().renew()
        written = Written(jinja.pieces(self._variables(traced, tools, how)))
        for piece in written.pieces:
            if type(piece) is Traced and piece._origin == TANGLED:
                raise RowError(
                    "cannot follow the chat template",
                    "it makes one text of its own and the conversation's",
                )
        return written

    def _render(
        self, messages: Sequence[PlainMessage], tools: Any, how: How, shape: Any
    ) -> Rendered:
        with tracing() as trace:
            try:
                written = self._written(messages, tools, how)
            except RowError as error:
                if error.reason == REFUSED:
                    self._bare(messages, tools, how)  # says it of what the caller knows
                raise
            spans, notes, static = self._spans(written, messages, tools, how, trace)
            items = self._items(written, spans, messages, how)
            notes += self._unwritten(written, messages, tools, trace)
        self._traced += 1
        if self._distrusted or self._traced <= _FIRST or self._traced % _CHECKED == 0:
            self._compare(written.text, messages, tools, how)
        rendered = Rendered(write(items, self.recognised), (*self.notes, *notes))
        if shape is not None and static and not trace.opaque:
            if self._worth(shape):
                programs = self._programs.setdefault(shape, [])
                if len(programs) < _PROGRAMS:
                    compiled = compile_program(trace.guards, items, self.recognised, _FUNCTIONS)
                    programs.append((compiled, rendered.warnings))
            elif not notes and (composer := self._composer(shape)) is not None:
                composer.learn(trace.guards, written, items, kinds_of(shape))
        return rendered

    def _composer(self, shape: Any) -> Composer | None:
        """What composes conversations rendered in this way, None where nothing should."""
        if shape is None or self.spans != "provenance" or not learns_answers(shape):
            return None
        way = way_of(shape)
        if way not in self._composers:
            if len(self._composers) >= _PROGRAMS:
                self._composers.clear()
            self._composers[way] = Composer(self.recognised, self._controls, _FUNCTIONS)
        composer = self._composers[way]
        return composer if composer.is_worth_trying else None

    def _compose(
        self, messages: Sequence[PlainMessage], tools: Any, how: How, shape: Any
    ) -> Rendered | None:
        """A conversation of a new shape, put together from what is known of its messages.

        It is taken only if the template itself writes this very text, and if each answer begins
        where its inference prompt ends. None where it must be traced.
        """
        if shape in self._seen or (composer := self._composer(shape)) is None:
            return None
        composed = composer.write(messages, kinds_of(shape), tools)
        if composed is None:
            return None
        segments, starts, writes_tools = composed
        if tools and not writes_tools:
            return None  # there is a warning to be told
        text = "".join([segment.text for segment in segments])
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        plain_messages = self._plain_messages(messages, tools)
        if (
            list(starts) != [n for n in answers if loss_weight(messages[n]) is not None]
            or text != self._bounded_text(plain_messages, tools, how)
            or any(
                text[:start] != self._prompt_text(messages[:number], plain_messages, tools, how)
                for number, start in starts.items()
            )
        ):
            composer.failed += 1
            return None
        composer.succeeded += 1
        if composer.succeeded <= _FIRST or composer.succeeded % _CHECKED == 0:
            traced = self._render(messages, tools, how, None)
            if traced.segments != segments or traced.warnings != self.notes:
                composer.given_up = True
            return traced
        self._worth(shape)
        return _rendered(segments, self.notes)

    def _prompt_text(
        self,
        messages: Sequence[PlainMessage],
        plain_messages: list[dict[str, Any]],
        tools: Any,
        how: How,
    ) -> str | None:
        """The inference prompt behind messages; None where the template refuses to write one.

        `plain_messages`: these, and those that follow, as the template takes them.
        """
        if not messages:
            return None
        how = how._replace(for_inference=True, train_on="")
        shape = shape_of(how, messages, tools)
        for program, prompt, _ in self._prompts.get(shape, ()):
            texts = program(messages, tools)
            if texts is not None:
                return prompt.text_with(texts)
        try:
            if shape not in self._seen:
                self._worth(shape)
                return self._bounded_text(plain_messages[: len(messages)], tools, how)
        except RowError:
            return None
        written = self._prompt(messages, tools, how, Trace())
        return None if written is None else written.text

    def _worth(self, shape: Any) -> bool:
        """Whether a shape was seen before: only then a program for it is likely to run."""
        if shape in self._seen:
            return True
        if len(self._seen) >= _SHAPES:
            self._seen.clear()
            self._programs.clear()
            self._prompts.clear()
        self._seen.add(shape)
        return False

    def _compare(self, text: str, messages: Sequence[PlainMessage], tools: Any, how: How) -> None:
        """Compare a text with what the template alone writes."""
        if text != self._bare(messages, tools, how):
            self._programs.clear()
            self._distrusted = True  # from now on every text is compared
            raise RowError(
                "cannot follow the chat template", "its text is another when it is traced"
            )

    def _prompt(
        self, messages: Sequence[PlainMessage], tools: Any, how: How, trace: Trace
    ) -> Written | None:
        """The inference prompt behind messages; None where the template refuses to write one."""
        how = how._replace(for_inference=True, train_on="")
        shape = shape_of(how, messages, tools)
        for program, prompt, guards in self._prompts.get(shape, ()):
            texts = program(messages, tools)
            if texts is not None:
                trace.guards.update(guards)
                return prompt.filled(texts)
        try:
            with tracing() as own:
                prompt = self._written(messages, tools, how)
        except RowError:
            return None
        trace.guards.update(own.guards)
        trace.opaque = trace.opaque or own.opaque
        if shape is not None and not own.opaque and self._worth(shape):
            prompts = self._prompts.setdefault(shape, [])
            if len(prompts) < _PROGRAMS:
                compiled = compile_texts(own.guards, prompt.pieces, _FUNCTIONS)
                prompts.append((compiled, prompt.filled(None), own.guards))
        return prompt

    # -- what is a target ----------------------------------------------------------------------

    def _spans(
        self,
        written: Written,
        messages: Sequence[PlainMessage],
        tools: Any,
        how: How,
        trace: Trace,
    ) -> tuple[list[Target], list[str], bool]:
        """The targets as (start, end, weight), the warnings, and whether they are always there."""
        if how.for_inference:
            return [], [], True
        weights = [loss_weight(message) for message in messages]
        if how.train_on == "all":
            spans: list[tuple[Place, Place, float | None]] = []
            static = True
            at: Place = (0, 0)
            for begin, end, number in sorted(written.regions):
                spans.append((at, begin, _weight_between(written, at, begin, weights)))
                spans.append((begin, end, weights[number]))
                at = end
            last = len(messages) - 1
            if messages[last]["role"] == "assistant" and weights[last] != 1:
                # What closes the conversation may be the stop token of its last answer.
                turns = self._turns(written, messages, tools, how, trace)
                span = turns.find(last)
                static = turns.static
                if span is not None and span.end > at:
                    spans.append((at, span.end, weights[last]))
                    at = span.end
            spans.append((at, written.end, _weight_between(written, at, written.end, weights)))
            return [(a, b, w) for a, b, w in spans if w is not None], [], static
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if how.train_on == "last":
            answers = answers[-1:]
        trained = [number for number in answers if weights[number] is not None]
        if self.spans == "generation":
            return self._generated(written, trained, weights), [], True
        turns = self._turns(written, messages, tools, how, trace)
        found = [span for number in trained if (span := turns.find(number)) is not None]
        notes = []
        if turns.unstopped:
            notes.append("no stop token")
        if turns.differs:
            notes.append("prompt differs")
        if turns.dropped:
            notes.append(f"template {self.name} does not write an answer")
        targets = [(s.start, s.end, weights[s.number] or 0.0) for s in found if s.start < s.end]
        return targets, notes, turns.static

    def _generated(
        self, written: Written, trained: list[int], weights: list[float | None]
    ) -> list[Target]:
        """The targets that the template itself marks, of the messages that are trained."""
        if not written.generation:
            raise RowError(
                "the template marks no answer", "there is no {% generation %} in what it writes"
            )
        spans = []
        for start, end in written.generation:
            number = next((k for a, b, k in written.regions if a <= start < b), None)
            if number is None or number in trained:
                weight = 1.0 if number is None else weights[number]
                spans.append((start, end, weight or 0.0))
        return spans

    def _turns(
        self,
        written: Written,
        messages: Sequence[PlainMessage],
        tools: Any,
        how: How,
        trace: Trace,
    ) -> Turns:
        known = self._known()
        return Turns(
            written,
            prompt=lambda n: self._prompt(messages[:n], tools, how, trace) if n else None,
            upto=lambda n: self._written(messages[: n + 1], tools, how),
            controls=self._controls,
            stops=known.stops,
            cues=known.cues,
            bos=self.bos,
            last=len(messages) - 1,
        )

    def _items(
        self,
        written: Written,
        spans: list[Target],
        messages: Sequence[PlainMessage],
        how: How,
    ) -> list[Item]:
        """The pieces, cut where targets begin and end and around control tokens."""
        # Where the weight changes, and to what, in order; after the end to nothing.
        changes: list[tuple[Place, float | None]] = []
        for start, end, own in sorted(spans):
            if changes and changes[-1][0] == start:
                changes.pop()
            changes += ((start, own), (end, None))
        changes.append(((len(written.pieces) + 1, 0), None))
        upcoming = iter(changes)
        change, coming = next(upcoming)
        weight: float | None = None
        items: list[Item] = []
        everything = how.train_on == "all" and not how.for_inference
        for number, piece in enumerate(written.pieces):
            if type(piece) is Traced:
                origin, field = piece._origin
                kind = "text"
                if origin != ELSEWHERE:
                    own = messages[origin]["role"] == "assistant"
                    kind = "own" if own and field != "name" else kind
                parts: list[tuple[int, str, str]] = [(0, kind, piece)]
            else:
                origin, parts = ELSEWHERE, self._split(piece)
            for at, kind, text in parts:
                while change <= (number, at):
                    weight = coming
                    change, coming = next(upcoming)
                while kind != "control" and change < (number, at + str.__len__(text)):
                    if change[1] > at:
                        head, text = _cut(text, change[1] - at)
                        items.append((kind, head, weight))
                    at, weight = change[1], coming
                    change, coming = next(upcoming)
                if text == self.bos and kind == "control":
                    items.append((kind, text, None))
                elif everything and origin != ELSEWHERE:
                    items.append((kind, text, loss_weight(messages[origin])))
                else:
                    items.append((kind, text, weight))
        return items

    def _split(self, piece: str) -> list[tuple[int, str, str]]:
        """The template's text at its control tokens: (where, kind, text)."""
        parts = self._literals.get(piece)
        if parts is None:
            parts = []
            at = 0
            for match in self._controls.finditer(piece):
                if match.start() > at:
                    parts.append((at, "text", piece[at : match.start()]))
                parts.append((match.start(), "control", match.group()))
                at = match.end()
            if at < len(piece):
                parts.append((at, "text", piece[at:]))
            if len(self._literals) < _SHAPES:
                self._literals[piece] = parts
        return parts

    def _unwritten(
        self, written: Written, messages: Sequence[PlainMessage], tools: Any, trace: Trace
    ) -> list[str]:
        """Warnings of what the template leaves out altogether."""
        notes = []
        origins = {piece._origin for piece in written.pieces if type(piece) is Traced}
        for number, message in enumerate(messages):
            for names, what in _WRITTEN.items():
                values = {name: message[name] for name in names if message.get(name) is not None}
                if not values or any((number, name) in origins for name in values):
                    continue
                for name, value in values.items():
                    trace.guards["bool", ("get", number, name), ()] = bool(value)
                if any(values.values()):
                    notes.append(f"template {self.name} does not write {what}")
        if tools and TOOLS not in origins:
            notes.append(f"template {self.name} does not write tools")
        return list(dict.fromkeys(notes))

    # -- what is known of every conversation ---------------------------------------------------

    def _known(self) -> _Known:
        """What stands around answers, from conversations made for this."""
        if self._what_is_known is None:
            self._what_is_known = _NOTHING_KNOWN
            for messages in _PROBES:
                try:
                    with tracing() as trace:
                        self._what_is_known = self._learn(messages, trace)
                    break
                except RowError as error:  # of a kind that this template does not write
                    if error.reason == TOO_MUCH:
                        break
        return self._what_is_known

    def _learn(self, messages: Sequence[PlainMessage], trace: Trace) -> _Known:
        how = How(False, "assistant", ())
        written = self._written(messages, None, how)
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        prompts = []
        for number in answers:
            with contextlib.suppress(RowError):
                prompting = how._replace(for_inference=True)
                prompts.append(self._written(messages[:number], None, prompting))
        cues = {p.literal(p.after) for p in prompts if p.after is not None} - {""}
        turns = self._turns(written, messages, None, how, trace)
        spans = [turns.find(number) for number in answers]
        unstopped = ""
        outside: list[str] = []  # what the template writes around the answers
        at: Place = (0, 0)
        for span in spans:
            if span is None:
                continue
            begin, end = written.region(span.number)
            outside += written.literals(at, begin)
            opening = self._controls.search("".join(written.literals(begin, span.start)))
            outside += [opening.group()] if opening else []
            if span.number in turns.unstopped:
                unstopped = written.literal(span.end, end)
            at = span.end
        outside += written.literals(at, written.end)
        tokens = {match.group() for text in outside for match in self._controls.finditer(text)}
        named = {token for token in (self.bos_token, self.eos_token) if token}
        return _Known(
            stops=frozenset(turns.stopped_by),
            cues=tuple(sorted(cues)),
            turns=frozenset(tokens | turns.stopped_by | named),
            unstopped=unstopped,
            text="\n".join([written.text, *(p.text for p in prompts)]),
        )


_PROBES: tuple[tuple[PlainMessage, ...], ...] = tuple(
    tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))
    for texts in [("Good morning", "Yes", "What now", "Well then", "Bye", "So long")]
    for roles in (
        ("system", "user", "assistant", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant"),
    )
)


class _Known(NamedTuple):
    """What a template writes around any answer.

    `stops`: the tokens that end one. `cues`: what prompts end with. `turns`: the control tokens
    that open or close a turn. `unstopped`: what follows an answer that no control token stops.
    `text`: what it wrote to find out.
    """

    stops: frozenset[str]
    cues: tuple[str, ...]
    turns: frozenset[str]
    unstopped: str
    text: str


_NOTHING_KNOWN = _Known(frozenset(), (), frozenset(), "", "")


# Fields of a message that a template should write, by what a warning calls them.
_WRITTEN = {
    ("content",): "the text of every message",
    ("tool_calls",): "tool_calls",
    REASONING: "reasoning_content",
}
_HOWS = {
    (prompt, train_on): How(prompt, train_on, ())
    for prompt in (False, True)
    for train_on in TRAIN_ON
}
_FUNCTIONS = {"to_json": to_json, "strftime_now": strftime_now}


def _size(value: Any) -> int:
    """About how many characters and items a value has."""
    return len(value) if type(value) is str else len(repr(value))


def _stable(value: Any) -> str:
    """The value as a text that is the same in every process."""
    if isinstance(value, Mapping):
        return f"{{{sorted((str(key), _stable(item)) for key, item in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"set({sorted(map(_stable, value))})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_stable, value))}]"
    return repr(value)


_new = object.__new__
_set_segments = vars(Rendered)["segments"].__set__
_set_warnings = vars(Rendered)["warnings"].__set__


def _rendered(segments: list[Segment], notes: tuple[str, ...]) -> Rendered:
    """A Rendered of what a program made, which keeps its invariants."""
    made = _new(Rendered)
    _set_segments(made, segments)
    _set_warnings(made, notes)
    return made


def _weight_between(
    written: Written, start: Place, end: Place, weights: Sequence[float | None]
) -> float | None:
    """The weight of what is written outside of every turn: that of the one message it is about."""
    origins = {piece._origin[0] for _, piece in written.traced(start, end)}
    if len(origins) == 1 and ELSEWHERE not in origins:
        return weights[origins.pop()]
    return 1.0


def _cut(text: str, length: int) -> tuple[str, str]:
    """A piece in two."""
    whole = plain(text)
    if type(text) is not Traced:
        return whole[:length], whole[length:]
    return (
        single(whole[:length], text._origin, None),
        single(whole[length:], text._origin, None),
    )


def _declared_in(source: str) -> list[str] | None:
    """The control tokens that a comment of the template declares."""
    found = _DECLARED.search(source)
    if found is None:
        return None
    try:
        tokens = json.loads(found.group(1))
    except ValueError:
        tokens = None
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
        raise ValueError("the template's comment on its control tokens is no list of strings")
    return tokens
