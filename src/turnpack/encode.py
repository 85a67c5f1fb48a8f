"""The Encoder: conversations to Tokens. The last module that sees text.

Owns the order of the steps (render, tokenize, mask, truncate), where ordinary text is cut, and
what happens to a conversation that is too long. Knows no file format, no template's name and no
tokenizer library.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from . import kernels, tokenizers
from ._checks import is_int
from ._ingest import fill_plain, longest
from .formats import conversation as read_row
from .nouns import ROLES, Conversation, Message, Reject, Rendered, Role, RowError, Segment, Tokens
from .rendering import asks
from .shapes import Fill, Program, Shape, Straight, compile_program, shape_of
from .templates import TRAIN_ON, Template, TemplateProtocol, find_template

if TYPE_CHECKING:
    from .plain_rows import PlainRows  # which needs Arrow, and an Encoder does not

TRUNCATE = ("right", "turns", "split", "reject")
BOUNDARY = ("cut", "whole")

# Conversations that are tokenized in one call: enough to keep the tokenizer's threads busy.
BATCH = 1000
# Characters of one text. A tokenizer takes some 180 bytes for each of them.
MAX_TEXT = 1 << 24
# Shapes of conversations that are remembered.
SHAPES = 1000

# What the tokenizers call white space (Unicode's White_Space; str.strip() takes four more).
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class FallbackWarning(UserWarning):
    """A fast tokenizer gave other ids than the tokenizer's library, which goes on in its place."""


class Encoder:
    """Turns conversations into `Tokens`, by one template, for one tokenizer.

    `tokenizer`: anything `turnpack.tokenizers.load` takes. `template`: a template, the name of
    one, "auto" (the tokenizer's own) or the path of a `.jinja` file. `max_length`: tokens a row
    may have, None for no limit; `truncate` says what happens to a
    longer conversation:

    - "right": it is cut at `max_length`, and what follows the last target is dropped;
    - "turns": its oldest exchanges are dropped whole, system messages stay;
    - "split": it goes over several rows of `max_length` tokens and a rest, without those pieces
      that hold no target;
    - "reject": it is a reject.

    `train_on`: "assistant" (every answer), "last" (the last answer) or "all" (all that is
    written). `boundary`: "cut" encodes the text up to a target and the target by themselves, as
    inference does; "whole" encodes at once what stands between two control tokens and masks by
    extents, as TRL does. `system`: the system message of conversations that have none.

    `warnings` counts conversations by what the template could not do for them, and by what was
    truncated; `truncated` the tokens and targets that were cut off. `seconds_tokenizing` is time
    spent in the tokenizer, `thread_seconds_tokenizing` what of it the calling thread computed.
    `fallback` says where a fast tokenizer was given up (see `tokenizers.load`), of which a
    FallbackWarning tells. An Encoder can be pickled.
    Raises ValueError for arguments that make no sense, and where the template needs a token that
    the tokenizer lacks.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: TemplateProtocol | str,
        *,
        max_length: int | None = None,
        truncate: str = "right",
        train_on: str = "assistant",
        boundary: str = "cut",
        system: str | None = None,
    ) -> None:
        if max_length is not None and not is_int(max_length):
            raise TypeError(f"max_length must be an int, not {type(max_length).__name__}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        for key, value, known in (
            ("truncate", truncate, TRUNCATE),
            ("train_on", train_on, TRAIN_ON),
            ("boundary", boundary, BOUNDARY),
        ):
            if value not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}, not {value!r}")
        self.backend = tokenizers.load(tokenizer)
        if boundary == "whole" and not isinstance(self.backend, tokenizers.ExtentBackend):
            raise ValueError("boundary 'whole' needs a backend with encode_batch_extents")
        named = find_template(template, self.backend)
        if boundary == "whole" and named.runs == "apart":
            raise ValueError(f"template {named.name} encodes every utterance apart, not 'whole'")
        self.template = named.bind(self.backend)
        self.max_length = max_length
        self.truncate = truncate
        self.train_on = train_on
        self.boundary = boundary
        self.system = system
        self.warnings: collections.Counter[str] = collections.Counter()
        self.truncated: collections.Counter[str] = collections.Counter()
        self.seconds_tokenizing = self.thread_seconds_tokenizing = 0.0
        self.fallback: str | None = None
        self._prefix = () if self.template.writes_bos else getattr(self.backend, "prefix_ids", ())
        self._fresh_after = _fresh_after(self.template.runs, self.backend)
        # What `concat` puts around the turns, by number; what shapes are made of refers to it.
        self._roles: dict[Role, int] = {}
        self._known: dict[Shape, _Known | None] = {}
        self._straight: dict[bytes, tuple[Straight, _Layout]] = {}  # by the roles of plain rows
        self._constants: dict[tuple[str, bool], tuple[int, ...]] = {}
        # A template learns from what it renders, so no two threads use it at once.
        self._rendering = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # They hold functions made here.
        kept = {**self.__dict__, "_known": {}, "_straight": {}}
        del kept["_rendering"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _rendering=threading.Lock())

    def __call__(
        self,
        conversations: Iterable[Conversation | Mapping[str, Any] | Sequence[Message]],
        rejects: list[Reject] | None = None,
    ) -> Tokens:
        """Encode conversations: Conversations, rows of any known format, or lists of messages.

        `Tokens.source` counts them from 0. A conversation that cannot become a row raises
        RowError; with a list `rejects`, it is appended there as a Reject and the others go on.
        """
        parts = []
        told, first, rest = self.fallback, 0, iter(conversations)
        while batch := list(islice(rest, BATCH)):
            parts.append(self.finish(self.begin(batch, first), rejects))
            first += len(batch)
            if self.fallback != told:
                told = self.fallback
                warnings.warn(cast(str, told), FallbackWarning, stacklevel=2)
        if len(parts) == 1:
            return parts[0]
        return Tokens.join(parts) if parts else self.tokens([], [])

    def begin(self, batch: Sequence[Any], first: int = 0) -> Begun:
        """Render a batch: the first half of a call, the one that has to do with Python objects.

        `finish` is the other half, and may run in another thread meanwhile, batch after batch.
        `first`: the number of the batch's first conversation.
        """
        begun = Begun()
        conversations: list[Conversation] = []
        with self._rendering:
            for number, item in enumerate(batch, first):
                try:
                    conversation = self.conversation(item)
                    warned = self._add(conversation, begun.turns)
                except RowError as error:
                    begun.refused[number] = item, error.with_traceback(None)
                    continue
                begun.numbers.append(number)
                conversations.append(conversation)
                if warned:
                    begun.noted.append((number, warned))
        begun.conversations = conversations
        begun.roles = tuple(self._roles)
        return begun

    def begin_plain(self, rows: PlainRows, conversations: Sequence[Conversation]) -> Begun:
        """As `begin`, of rows whose columns are there, where `fills` says that it may be called.

        `conversations`: the same rows; few are looked at, those that are not written straight.
        """
        begun, row = Begun(), 0
        texts, layouts = begun.turns.texts, begun.turns.layouts
        taken: list[int] = []
        with self._rendering:
            while True:
                first, row = row, fill_plain(self._straight, rows, row, MAX_TEXT, texts, layouts)
                taken += range(first, row)
                if row == len(conversations):
                    break
                try:
                    warned = self._add(conversations[row], begun.turns)
                    taken.append(row)
                    if warned:
                        begun.noted.append((row, warned))
                    self._learn(rows.roles[rows.offsets[row] : rows.offsets[row + 1]])
                except RowError as error:
                    begun.refused[row] = conversations[row], error.with_traceback(None)
                row += 1
        begun.numbers, begun.conversations = taken, _Chosen(conversations, taken)
        begun.roles = tuple(self._roles)
        return begun

    def _learn(self, roles: npt.NDArray[np.uint8]) -> None:
        """Write plain rows of such roles straight from now on, if that can be."""
        known = self._known.get(tuple(ROLES[number] for number in roles))
        straight = _straight(known)
        if known is not None and straight is not None:
            self._straight[roles.tobytes()] = straight, known.layout

    def finish(self, begun: Begun, rejects: list[Reject] | None = None) -> Tokens:
        """Tokenize, mask and truncate what `begin` made, in the order in which it made it.

        Of a fast tokenizer that is given up only `fallback` tells, there is no warning.
        """
        numbers, conversations, refused = begun.numbers, begun.conversations, begun.refused
        tokens = self._encode(begun.turns, numbers, begun.roles)
        tokens, too_bad = self._fit(tokens, conversations)
        self._look_for_fallback(begun.turns, conversations, numbers)  # it may have come to it there
        for index, reason in too_bad.items():
            refused[numbers[index]] = conversations[index], reason
        for number, (item, reason) in sorted(refused.items()):
            if rejects is None:
                raise reason.at(getattr(item, "source", None) or f"conversation {number}")
            rejects.append(_reject(item, reason))
        for number, warned in begun.noted:
            if number not in refused:
                self.warnings.update(warned)
        return tokens

    def _look_for_fallback(
        self, turns: _Turns, conversations: Sequence[Conversation], numbers: Sequence[int]
    ) -> None:
        """Note, once, that the backend gave up its fast tokenizer, and at which row."""
        found = getattr(self.backend, "fallback", None)
        if found is None or self.fallback is not None:
            return
        place = f"template {self.template.name}"
        if found.text in turns.texts:
            texts_of_row = [len(layout.continues) for layout in turns.layouts]
            rows = np.repeat(np.arange(len(texts_of_row)), texts_of_row)
            row = rows[turns.texts.index(found.text)]
            place = str(conversations[row].source or f"conversation {numbers[row]}")
        self.fallback = f"{place}: {found.reason}; encoded again, and all that follows"

    @property
    def fills(self) -> bool:
        """Whether `begin_plain` is any use: a named template, and nothing is put before rows.

        Where shapes are known, one of them must be written straight.
        """
        if not isinstance(self.template, Template) or self.boundary != "cut":
            return False
        if self.system is not None:
            return False
        return not self._known or any(map(_straight, self._known.values()))

    def conversation(self, item: Any) -> Conversation:
        """What `item` is as a Conversation, with the system message where it has none."""
        if not isinstance(item, Conversation):
            row = item if isinstance(item, Mapping) else {"messages": item}
            item = read_row(row)
        conversation: Conversation = item
        if self.system is None or conversation.messages[0]["role"] == "system":
            return conversation
        first = {"role": "system", "content": self.system}
        return dataclasses.replace(conversation, messages=(first, *conversation.messages))

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation as segments; raises RowError where none is a target."""
        rendered = self.template.render(
            conversation.messages, conversation.tools, train_on=self.train_on
        )
        if not any(segment.target for segment in rendered.segments):
            raise RowError("nothing to train on")
        if not isinstance(self.template, Template):  # those write nothing but what was checked
            try:
                rendered.text.encode()
            except UnicodeEncodeError:
                raise RowError("invalid Unicode", "the template writes a lone surrogate") from None
        return rendered

    # -- text to tokens ------------------------------------------------------------------------

    def tokens(self, rendered: Sequence[Rendered], numbers: Sequence[int] | None = None) -> Tokens:
        """All of `rendered` as rows, whatever their length; `numbers` are their `source`."""
        turns = _Turns()
        with self._rendering:
            for row in rendered:
                self._turn(self._cut(row.segments), turns)
            roles = tuple(self._roles)
        return self._encode(turns, range(len(rendered)) if numbers is None else numbers, roles)

    def _add(self, conversation: Conversation, turns: _Turns) -> tuple[str, ...]:
        """Append the turns of a conversation; returns the template's warnings."""
        shape = shape_of(conversation)
        if shape is not None:
            known = self._known.get(shape)
            if known is not None:
                texts = known.fill(conversation.messages)
                if texts is not None:
                    _check_size(texts)
                    turns.texts += texts
                    turns.layouts.append(known.layout)
                    return known.warnings
        rendered = self.render(conversation)
        _check_size([segment.text for segment in rendered.segments])
        self._turn(self._cut(rendered.segments), turns)
        if shape is not None and shape not in self._known and len(self._known) < SHAPES:
            self._known[shape] = self._know(shape, conversation, rendered)
        return rendered.warnings

    def _know(self, shape: Shape, conversation: Conversation, rendered: Rendered) -> _Known | None:
        """How conversations become turns that have the shape of one that was rendered."""
        template = self.template
        if not isinstance(template, Template) or self.boundary != "cut":
            return None
        strips = getattr(self.backend, "strips", lambda control: (False, False))
        if any(any(strips(text)) for text, _, control, _ in rendered.segments if control):
            return None
        program = compile_program(template, shape, self.train_on)
        if program is None:
            return None
        made = program.render(conversation.messages)
        if made is not None and made != rendered.segments:
            return None
        # Any text does: whether it continues another depends on what stands before it.
        parts = self._cut(
            [part if part.text else part._replace(text="?") for part in program.segments]
        )
        layout = _layout(program, parts, self._ids_of, self._role)
        return layout and _Known(program.fill, program.warnings, layout, program.straight)

    def _ids_of(self, part: _Part) -> tuple[int, ...]:
        """The ids of a part that is in many conversations."""
        if part.control_id is not None:
            return (part.control_id,)
        key = part.text, part.continues
        if key not in self._constants:
            encode = getattr(self.backend, "encode_exactly", self.backend.encode_batch)
            self._constants[key] = tuple(encode([part.text], [part.continues])[0].tolist())
        return self._constants[key]

    def _role(self, role: Role) -> int:
        return self._roles.setdefault(role, len(self._roles))

    def _turn(self, parts: Sequence[_Part], turns: _Turns) -> None:
        """Append a row's parts, each as a turn: text, or none with a control token behind it."""
        for part in parts:
            if part.control_id is None:
                turns.texts.append(part.text)
                turns.pieces.append(part.pieces)
            turns.weighted |= any(weight != 1 for _, target, weight in part.pieces if target)
        layout = _Layout.of(
            [part.continues for part in parts if part.control_id is None],
            [self._role(part.role) for part in parts],
            [part.control_id is None for part in parts],
            [part.pieces[0][2] for part in parts],
        )
        turns.layouts.append(layout)

    def _encode(self, turns: _Turns, numbers: Sequence[int], roles: Sequence[Role]) -> Tokens:
        """Rows from their turns; `numbers` are the rows' `source`, `roles` all that they have."""
        ids, text_offsets, text_weights = self._encode_texts(turns)
        of_rows = turns.layouts
        has_text = np.frombuffer(b"".join([row.has_text for row in of_rows]), bool)
        lengths = np.zeros(len(has_text), np.int64)
        lengths[has_text] = np.diff(text_offsets)
        role_of = np.frombuffer(b"".join([row.roles for row in of_rows]), np.int64)
        ends = _offsets([len(row.has_text) for row in of_rows])
        made = kernels.concat(ids, _offsets(lengths), role_of, ends, roles)
        loss_mask = made.loss_mask
        weights = None
        if turns.weighted or text_weights is not None:
            around = np.array([len(role.prefix) + len(role.suffix) for role in roles], np.int64)
            lengths += around[role_of]
            from_text = np.repeat(has_text, lengths)
            if text_weights is not None:
                loss_mask[from_text] = text_weights > 0
            if turns.weighted:
                of_turns = np.frombuffer(b"".join([row.weights for row in of_rows]), np.float32)
                weights = np.repeat(of_turns, lengths) * loss_mask
                if text_weights is not None:
                    weights[from_text] = text_weights
        # Nothing precedes a row's first token, so no model is ever asked for it.
        filled = made.offsets[:-1][made.lengths > 0]
        loss_mask[filled] = 0
        if weights is not None:
            weights[filled] = 0
            if np.all(weights[loss_mask == 1] == 1):
                weights = None
        return Tokens(
            input_ids=made.input_ids,
            loss_mask=loss_mask,
            offsets=made.offsets,
            source=np.array(numbers, np.int64),
            loss_weights=weights,
        )

    def _cut(self, segments: Sequence[Segment]) -> list[_Part]:
        """The parts of one row: control ids, and runs of ordinary text between them."""
        parts = [_Part("", False, token_id, [(0, False, 1.0)]) for token_id in self._prefix]
        first = len(parts)
        swallows = getattr(self.backend, "strips", None)
        opens = self._fresh_after != "never"
        for index, segment in enumerate(segments):
            if segment.control:
                token_id = self.backend.control_id(segment.text)
                if token_id is None:
                    raise ValueError(f"{segment.text!r} is no added token of the tokenizer")
                parts.append(_Part("", False, token_id, [(0, segment.target, segment.weight)]))
                opens = self._fresh_after in ("control", "always") or (
                    self._fresh_after == "bos"
                    and segment.text == self.template.bos
                    and not segment.target
                )
                continue
            text = segment.text
            if swallows is not None and not segment.target:
                text = _swallowed(text, segments, index, swallows)
            if text:
                piece = (len(text), segment.target, segment.weight)
                last = parts[-1] if len(parts) > first else None
                if self.boundary == "whole" and last is not None and last.control_id is None:
                    parts[-1] = last._replace(text=last.text + text, pieces=[*last.pieces, piece])
                else:
                    parts.append(_Part(text, not opens, None, [piece]))
                opens = self._fresh_after == "always"
        return parts

    def _encode_texts(
        self, turns: _Turns
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
        """Ids of the texts and their offsets.

        With boundary "whole" also the weight of each id, 0 where it is no target: a text then holds
        what stands before a target, the target and what follows.
        """
        if not turns.texts:
            return np.zeros(0, np.int32), np.zeros(1, np.int64), None
        joined = b"".join([row.continues for row in turns.layouts])
        continues = np.frombuffer(joined, bool).tolist()
        if self.boundary == "cut" or not isinstance(self.backend, tokenizers.ExtentBackend):
            with self._clock():
                ids, offsets = self.backend.encode_batch(turns.texts, continues)
            return ids, offsets, None
        with self._clock():
            ids, offsets, extents = self.backend.encode_batch_extents(turns.texts, continues)
        weights = np.zeros(len(ids), np.float32)
        for weight in sorted({w for pieces in turns.pieces for _, target, w in pieces if target}):
            spans, span_offsets = _spans(turns.pieces, weight)
            mask = kernels.mask_spans(extents, offsets, spans, span_offsets)
            weights[mask == 1] = weight
        return ids, offsets, weights

    @contextmanager
    def _clock(self) -> Iterator[None]:
        begun, computed = perf_counter(), thread_time()
        yield
        self.seconds_tokenizing += perf_counter() - begun
        self.thread_seconds_tokenizing += thread_time() - computed

    # -- rows that are too long ----------------------------------------------------------------

    def _fit(
        self, tokens: Tokens, conversations: Sequence[Conversation]
    ) -> tuple[Tokens, dict[int, RowError]]:
        """Rows of no more than `max_length` tokens with a target in each, and what cannot be one.

        The errors are by the conversation's place in the batch.
        """
        bad: dict[int, RowError] = {}
        rows: list[Tokens] = []
        limit = self.max_length
        lengths = tokens.lengths
        trained = _targets(tokens)
        fine = trained > 0 if limit is None else (trained > 0) & (lengths <= limit)
        if fine.all():
            return tokens, bad
        start = 0
        for index in np.flatnonzero(~fine):
            rows.append(_rows(tokens, start, index))
            start = index + 1
            try:
                if trained[index] == 0:
                    raise RowError("nothing to train on")
                row = _rows(tokens, index, index + 1)
                kept = self._shorten(row, conversations[index], limit or 0)
                rows.append(kept)
                self.warnings["truncated"] += 1
                targets = int(trained[index] - np.count_nonzero(kept.loss_mask))
                self.truncated.update(
                    tokens=int(lengths[index]) - len(kept.input_ids), targets=targets
                )
            except RowError as error:
                bad[int(index)] = error.with_traceback(None)
        rows.append(_rows(tokens, start, len(lengths)))
        return Tokens.join(rows), bad

    def _shorten(self, row: Tokens, conversation: Conversation, limit: int) -> Tokens:
        length = len(row.input_ids)
        if self.truncate == "reject":
            raise RowError("over-long", f"{length} tokens, more than max_length {limit}")
        if self.truncate == "split":
            starts = range(0, length, limit)
            return self._split(row, [*starts, length])
        if self.truncate == "turns":
            return self._drop_turns(row, conversation, limit)
        targets = np.flatnonzero(row.loss_mask[:limit])
        if not len(targets):
            raise RowError(
                "nothing to train on", f"no target in the first {limit} of {length} tokens"
            )
        return _pieces(row, [0, int(targets[-1]) + 1])

    def _split(self, row: Tokens, ends: Sequence[int]) -> Tokens:
        """The row in pieces; one without a target teaches nothing and is left out."""
        pieces = _pieces(row, ends)
        trained = _targets(pieces) > 0
        if trained.all():
            return pieces
        if not trained.any():
            raise RowError("nothing to train on", "no target but first tokens")
        self.warnings["split left out a piece without targets"] += 1
        return Tokens.join([_rows(pieces, i, i + 1) for i in np.flatnonzero(trained)])

    def _drop_turns(self, row: Tokens, conversation: Conversation, limit: int) -> Tokens:
        """The conversation without as few of its oldest exchanges as make it fit.

        The number to drop is found by bisection. (Where fewer exchanges make more tokens, as with
        Alpaca's longer preamble for an `input`, one more may be dropped than must.)
        """
        head, exchanges = _exchanges(conversation.messages)
        best: Tokens | None = None
        low, high = 1, len(exchanges) - 1
        number = int(row.source[0])
        while low <= high:
            middle = (low + high) // 2
            kept = [m for exchange in exchanges[:middle] for m in exchange if m["role"] == "system"]
            kept += [message for exchange in exchanges[middle:] for message in exchange]
            with self._rendering:
                rendered = self.template.render(
                    (*head, *kept), conversation.tools, train_on=self.train_on
                )
            shorter = self.tokens([rendered], [number])
            if len(shorter.input_ids) <= limit:
                best, high = shorter, middle - 1
            else:
                low = middle + 1
        if best is None:
            raise RowError(
                "over-long",
                f"the last exchange alone does not fit into max_length {limit}",
            )
        if not _targets(best)[0]:
            raise RowError(
                "nothing to train on",
                f"no target in the last exchanges, which fit into {limit} tokens",
            )
        return best


def _fresh_after(runs: str, backend: tokenizers.Backend) -> str:
    """Where a run of text is encoded as the start of a text.

    As Backend says it ("none", "bos", "control"), and "always" or "never" besides.

    "restarted" and "spelled" are about the blank that a SentencePiece model puts in front of a
    text. A tokenizer.json says itself where it puts one, at inference too, so that is kept.
    """
    own = str(getattr(backend, "fresh_after", "bos"))
    if runs == "apart":
        return "always"
    return {"restarted": "control", "spelled": "never"}.get(runs, own) if own == "bos" else own


class _Part(NamedTuple):
    """A control token, or a run of ordinary text that is encoded by itself."""

    text: str
    continues: bool
    control_id: int | None
    pieces: list[tuple[int, bool, float]]  # characters, target, weight

    @property
    def role(self) -> Role:
        """What `concat` makes of the part: two of them are equal where it is the same."""
        target = self.pieces[0][1]
        if self.control_id is None:
            return Role(target=target)
        return Role(suffix=(self.control_id,), suffix_target=target)


class Begun:
    """A batch between the two halves of an Encoder's call.

    `turns` of the conversations that were rendered, those with their `numbers`, the warnings
    `noted` of each, and what was `refused`, by errors without a traceback: that would hold the
    whole batch until Python searches for cycles. `roles`: what the numbers in `turns` mean.
    """

    def __init__(self) -> None:
        self.turns = _Turns()
        self.roles: tuple[Role, ...] = ()
        self.numbers: list[int] = []
        self.conversations: Sequence[Conversation] = []
        self.noted: list[tuple[int, tuple[str, ...]]] = []
        self.refused: dict[int, tuple[Any, RowError]] = {}


class _Chosen(Sequence[Any]):
    """Some items of a sequence, by their places; each is fetched when it is asked for."""

    def __init__(self, items: Sequence[Any], places: Sequence[int]) -> None:
        self._items, self._places = items, places

    def __getitem__(self, place: Any) -> Any:
        return self._items[self._places[place]]

    def __len__(self) -> int:
        return len(self._places)


class _Turns:
    """The turns of some rows, as `concat` takes them: texts, and what stands around each.

    `texts`: of those turns that have one, and their `pieces` where the template was asked for them.
    `layouts`: of every row.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pieces: list[list[tuple[int, bool, float]]] = []
        self.layouts: list[_Layout] = []
        self.weighted = False  # whether the weight of a target is not 1


class _Layout(NamedTuple):
    """What the turns of a row are but for their texts: arrays as bytes, which are soon joined.

    `continues` (bool): of those turns that have text. `roles` (int64, by number), `has_text`
    (bool), `weights` (float32): of every turn.
    """

    continues: bytes
    roles: bytes
    has_text: bytes
    weights: bytes

    @classmethod
    def of(
        cls,
        continues: Sequence[bool],
        roles: Sequence[int],
        has_text: Sequence[bool],
        weights: Sequence[float],
    ) -> _Layout:
        """The layout of turns of which this is so."""
        return cls(
            bytes(continues),
            np.array(roles, np.int64).tobytes(),
            bytes(has_text),
            np.array(weights, np.float32).tobytes(),
        )


class _Known(NamedTuple):
    """How conversations of one shape become turns."""

    fill: Fill
    warnings: tuple[str, ...]
    layout: _Layout
    straight: Straight | None


def _straight(known: _Known | None) -> Straight | None:
    """How plain rows of a shape are written without a look at each, if they can be."""
    return None if known is None or known.warnings else known.straight


def _layout(
    program: Program,
    parts: Sequence[_Part],
    ids_of: Callable[[_Part], tuple[int, ...]],
    role_number: Callable[[Role], int],
) -> _Layout | None:
    """The layout of a program; `parts` are what its segments are cut into.

    What is the same in all conversations is tokenized now, once. It goes around the texts of the
    turns, and where that cannot be said (a role's prefix never is a target) into a turn of no text.
    """
    written = [(not text, target, weight) for text, target, _, weight in program.segments]
    before = len(parts) - len(written)
    blocks: list[tuple[bool, tuple[int, ...], bool]] = []  # whether text, its ids, whether target
    continues = []
    for part, (filled, target, weight) in zip(
        parts, [(False, False, 1.0)] * before + written, strict=True
    ):
        if target and weight != 1:
            return None
        if filled:
            blocks.append((True, (), target))
            continues.append(part.continues)
        elif blocks and not blocks[-1][0] and blocks[-1][2] == target:
            blocks[-1] = (False, blocks[-1][1] + ids_of(part), target)
        else:
            blocks.append((False, ids_of(part), target))
    roles: list[int] = []
    has_text: list[bool] = []
    left = collections.deque(blocks)
    while left:
        text, ids, target = left.popleft()
        prefix: tuple[int, ...] = ()
        if not text and not target and left and left[0][0]:
            prefix = ids
            text, ids, target = left.popleft()
        suffix_target = target
        if text and left and not left[0][0]:
            _, ids, suffix_target = left.popleft()
        roles.append(role_number(Role(prefix, ids, target, suffix_target)))
        has_text.append(text)
    return _Layout.of(continues, roles, has_text, [1.0] * len(roles))


def _check_size(texts: list[str]) -> None:
    """Raise RowError for a text that is too long for any tokenizer's memory."""
    if (size := longest(texts)) > MAX_TEXT:
        raise RowError(
            "too large", f"a text of {size:,} characters, and no more than {MAX_TEXT:,} go"
        )


def _offsets(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _swallowed(text: str, segments: Sequence[Segment], index: int, strips: Any) -> str:
    """Text as the tokenizer sees it between control tokens that take the white space beside."""
    if index and segments[index - 1].control and strips(segments[index - 1].text)[1]:
        text = text.lstrip(_WHITE_SPACE)
    behind = segments[index + 1] if index + 1 < len(segments) else None
    # A target behind is not there yet when the prompt is encoded.
    if behind is not None and behind.control and not behind.target and strips(behind.text)[0]:
        text = text.rstrip(_WHITE_SPACE)
    return text


def _spans(
    runs: Sequence[Sequence[tuple[int, bool, float]]], weight: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The character spans of each run that are targets of one weight."""
    spans: list[tuple[int, int]] = []
    offsets = [0]
    for pieces in runs:
        start = 0
        for length, target, own in pieces:
            if target and own == weight:
                spans.append((start, start + length))
            start += length
        offsets.append(len(spans))
    return np.array(spans, np.int64).reshape(-1, 2), np.array(offsets, np.int64)


def _targets(tokens: Tokens) -> npt.NDArray[np.int64]:
    """How many targets each row has."""
    made = np.zeros(len(tokens), np.int64)
    filled = np.flatnonzero(tokens.lengths)
    if len(filled):
        starts = tokens.offsets[filled]
        made[filled] = np.add.reduceat(tokens.loss_mask, starts, dtype=np.int64)
    return made


def _rows(tokens: Tokens, start: int, stop: int) -> Tokens:
    """Rows start to stop of tokens."""
    first, last = tokens.offsets[start], tokens.offsets[stop]
    weights = tokens.loss_weights
    return Tokens(
        input_ids=tokens.input_ids[first:last],
        loss_mask=tokens.loss_mask[first:last],
        offsets=tokens.offsets[start : stop + 1] - first,
        source=tokens.source[start:stop],
        loss_weights=None if weights is None else weights[first:last],
    )


def _pieces(row: Tokens, ends: Sequence[int]) -> Tokens:
    """One row, cut at `ends` (the first is 0), as rows; the first token of each is masked."""
    starts, stop = ends[:-1], ends[-1]
    loss_mask = row.loss_mask[:stop].copy()
    loss_mask[starts] = 0
    weights = None if row.loss_weights is None else row.loss_weights[:stop].copy()
    if weights is not None:
        weights[starts] = 0
    return Tokens(
        input_ids=row.input_ids[:stop],
        loss_mask=loss_mask,
        offsets=np.array(ends, np.int64),
        source=np.repeat(row.source, len(starts)),
        loss_weights=weights,
    )


def _opens(message: Message) -> bool:
    return message["role"] == "system" or asks(message)


def _exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The opening system messages, and the exchanges: each begins where a user asks something."""
    first = 0
    while first < len(messages) and messages[first]["role"] == "system":
        first += 1
    exchanges: list[list[Message]] = []
    for number in range(first, len(messages)):
        begins = _opens(messages[number]) and (number == first or not _opens(messages[number - 1]))
        if begins or not exchanges:
            exchanges.append([])
        exchanges[-1].append(messages[number])
    return list(messages[:first]), exchanges


def _reject(item: Any, error: RowError) -> Reject:
    if isinstance(item, Conversation):
        row = item.row if item.row is not None else _as_row(item)
        return Reject(item.source, error.reason, error.detail, row)
    return Reject(None, error.reason, error.detail, item)


def _as_row(conversation: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": list(conversation.messages)}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row
