"""The check: whether training is the same as inference, conversation by conversation.

Owns the questions and the verdicts. It compares what the Encoder makes of a conversation with what
the tokenizer itself makes of the inference prompt before each answer; it computes neither.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .encode import Encoder
from .nouns import Conversation, Reject, Rendered, RowError
from .patterns import splitter
from .reading import one_line
from .rendering import loss_weight

# Conversations whose prompts are tokenized in one call.
_BATCH = 200
# Ids that are shown where two sequences part: some before, some behind.
_BEFORE, _BEHIND = 4, 4


class Line(NamedTuple):
    """A question, its verdict ("ok", "note" or "wrong") and what was found."""

    question: str
    verdict: str
    finding: str


@dataclass(slots=True)
class Check:
    """What was found. Counts are of conversations, but for `answers`, `stops` and `unstopped`.

    `text_differs`: an answer stands behind another text than its inference prompt; `first_differs`
    and `later_differs`: behind the same text in other ids, the first answer or a later one.
    `at_once`: encoding the whole text at once gives other ids; None where the tokenizer cannot
    tell. `other_differs`: the template it is compared with gives other ids or targets. `unlike`
    shows the first difference of each kind.
    """

    template: str
    tokenizer: str
    max_length: int | None = None
    other: str | None = None
    stops_at: Sequence[str] = ()
    second_bos: bool = False
    read: int = 0
    unreadable: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    unprompted: int = 0
    text_differs: int = 0
    first_differs: int = 0
    later_differs: int = 0
    at_once: int | None = None
    answers: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    unstopped: int = 0
    bos_twice: int = 0
    spells: int = 0
    cut: int = 0
    other_differs: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    unlike: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether something is wrong: training is not the same as inference, or never stops."""
        return any(line.verdict == "wrong" for line in self.lines())

    def lines(self) -> Iterator[Line]:
        """Every question with its verdict."""
        if not self.compared:
            yield Line("conversations", "wrong", f"none of {self.read:,} can be trained on")
            yield from self._shares()
            return
        same = f"what inference has, in all of {self.compared:,} conversations"
        yield self._line(
            "text before an answer",
            self.text_differs,
            "wrong",
            "another text than the inference prompt",
            same,
        )
        yield self._line(
            "ids before the first answer", self.first_differs, "wrong", "not those of it", same
        )
        yield self._line(
            "ids before a later answer",
            self.later_differs,
            "note",
            "not those of it: encoding the prompt at once merges text over an earlier cut",
            same,
        )
        yield self._stop_line()
        yield self._bos_line()
        if self.at_once is not None:
            yield self._line(
                "encoded at once",
                self.at_once,
                "note",
                "other ids (boundary=whole, as TRL does it)",
                "the same ids as cut where targets begin and end",
            )
        if self.other is not None:
            yield self._line(
                f"against {self.other}",
                self.other_differs,
                "note",
                "other ids or targets",
                "the same ids and targets",
            )
        yield from self._shares()
        for phrase, number in self.warnings.most_common():
            yield Line("warning", "note", f"{one_line(phrase)}: {self._share(number)}")

    def _line(self, question: str, number: int, verdict: str, bad: str, good: str) -> Line:
        if not number:
            return Line(question, "ok", good)
        return Line(question, verdict, f"{bad}: {self._share(number)}")

    def _stop_line(self) -> Line:
        if self.unstopped:
            ends = f"{self.unstopped:,} of {self.answers:,} answers end without one"
            return Line("stop token", "wrong", ends)
        written = ", ".join(self.stops)
        known = ", ".join(self.stops_at) or "no token"
        if any(token not in self.stops_at for token in self.stops):
            return Line(
                "stop token",
                "wrong",
                f"{written} ends the answers, but generation stops at {known}: say so in "
                "generation_config.json beside the tokenizer, or with --eos-token",
            )
        return Line("stop token", "ok", f"{written} is trained, and generation stops at it")

    def _bos_line(self) -> Line:
        if self.bos_twice:
            return Line("BOS", "wrong", f"twice in {self._share(self.bos_twice)}")
        if self.second_bos:
            return Line(
                "BOS",
                "ok",
                "once; encode prompts with add_special_tokens=False, or the tokenizer adds another",
            )
        return Line("BOS", "ok", "never twice")

    def _shares(self) -> Iterator[Line]:
        for question, number in (
            ("text spells control tokens", self.spells),
            ("cannot be read", self.unreadable),
            *((one_line(reason), number) for reason, number in self.rejected.most_common()),
            ("has an answer without a prompt", self.unprompted),
            (f"longer than {self.max_length}", self.cut),
        ):
            if number:
                yield Line(question, "note", self._share(number))

    def _share(self, number: int) -> str:
        return f"{number:,} of {self.read:,} conversations ({number / self.read:.1%})"


def check(
    rows: Iterable[Conversation | Reject], encoder: Encoder, *, against: Encoder | None = None
) -> Check:
    """Look at every row, as `records.read` gives them.

    `encoder` says template, tokenizer, `max_length` and what is trained on; `against`, an Encoder
    with another template, is asked for ids and targets to compare. Raises ValueError for an Encoder
    that trains on everything: there are no answers to look at then.
    """
    if encoder.train_on == "all":
        raise ValueError("check looks at answers: train_on must be assistant or last, not 'all'")
    checker = _Checker(encoder, against)
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        checker.look(batch)
    return checker.found


def page(found: Check) -> str:
    """What was found, for a person to read."""
    lines = list(found.lines())
    width = max(len(line.question) for line in lines)
    parts = [
        f"{one_line(found.template)} with {one_line(found.tokenizer)}: "
        f"{found.read:,} conversations, {found.answers:,} answers",
        "",
        *(f"{line.verdict:5}  {line.question:{width}}  {line.finding}" for line in lines),
    ]
    for what, shown in found.unlike.items():
        parts += ["", f"first difference, {what}:", shown]
    verdict = "something is wrong" if found.wrong else "training is the same as inference"
    return "\n".join([*parts, "", verdict])


class _Row(NamedTuple):
    """A conversation on its way: what is trained, and the prompts before its answers."""

    place: str
    conversation: Conversation
    rendered: Rendered
    spells: bool
    prompts: list[Rendered | None]


class _Checker:
    def __init__(self, encoder: Encoder, against: Encoder | None) -> None:
        backend, template = encoder.backend, encoder.template
        self.backend = backend
        self.encoder = _uncut(encoder)
        self.against = None if against is None else _uncut(against)
        self.own_ids = getattr(backend, "own_ids", None)
        self.prefix = () if template.writes_bos else getattr(backend, "prefix_ids", ())
        self.bos_id = None if backend.bos is None else backend.control_id(backend.bos)
        self.controls = splitter(tuple(getattr(backend, "reads_in_text", ())))
        stops = [token for token in (backend.eos, *getattr(backend, "stop_tokens", ())) if token]
        self.found = Check(
            template=template.name,
            tokenizer=str(getattr(backend, "name", type(backend).__name__)),
            max_length=encoder.max_length,
            other=None if against is None else against.template.name,
            stops_at=tuple(dict.fromkeys(stops)),
            second_bos=template.writes_bos
            and bool(template.bos)
            and bool(getattr(backend, "prefix_ids", ())),
            at_once=None if self.own_ids is None else 0,
        )

    def look(self, batch: Sequence[Conversation | Reject]) -> None:
        """Look at some rows."""
        found = self.found
        rows: list[_Row] = []
        for item in batch:
            found.read += 1
            if isinstance(item, Reject):
                found.unreadable += 1
                continue
            try:
                row = self._row(item, found.read - 1)
            except RowError as error:
                found.rejected[error.reason] += 1
                continue
            rows.append(row)
        tokens = self.encoder.tokens([row.rendered for row in rows])
        prompts = iter(self._ids_at_inference([p for row in rows for p in row.prompts if p]))
        wholes = self._own([row.rendered.text for row in rows])
        for number, row in enumerate(rows):
            start, stop = tokens.offsets[number : number + 2]
            ids, mask = tokens.input_ids[start:stop], tokens.loss_mask[start:stop]
            asked = [None if prompt is None else next(prompts) for prompt in row.prompts]
            self._compare_prompts(row, ids, mask, asked)
            self._look_at_tokens(row, ids)
            if wholes is not None and not row.spells and not _equal(ids, wholes[number]):
                found.at_once = (found.at_once or 0) + 1
                self._show("encoded at once", row.place, ids, wholes[number], "at once")
            if self.against is not None:
                self._compare_other(row, ids, mask)

    def _row(self, item: Conversation, number: int) -> _Row:
        conversation = self.encoder.conversation(item)
        rendered = self.encoder.render(conversation)
        messages = conversation.messages
        trained = [
            n
            for n, message in enumerate(messages)
            if message["role"] == "assistant" and loss_weight(message) is not None
        ]
        if self.encoder.train_on == "last":
            trained = trained[-1:]
        prompts: list[Rendered | None] = []
        for n in trained:
            try:
                prompts.append(
                    self.encoder.template.render(
                        messages[:n], conversation.tools, for_inference=True
                    )
                )
            except RowError:
                prompts.append(None)
        spells = any(
            self.controls.search(segment.text) is not None
            for segment in rendered.segments
            if not segment.control
        )
        place = str(conversation.source or f"conversation {number}")
        return _Row(place, conversation, rendered, spells, prompts)

    # -- ids -----------------------------------------------------------------------------------

    def _own(self, texts: Sequence[str]) -> list[list[int]] | None:
        """What the tokenizer itself makes of texts."""
        if self.own_ids is None:
            return None
        return [[*self.prefix, *ids] for ids in self.own_ids(texts)]

    def _ids_at_inference(self, prompts: Sequence[Rendered]) -> Sequence[Sequence[int]]:
        own = self._own([prompt.text for prompt in prompts])
        if own is not None:
            return own
        tokens = self.encoder.tokens(prompts)
        return [
            tokens.input_ids[start:stop].tolist()
            for start, stop in zip(tokens.offsets, tokens.offsets[1:], strict=False)
        ]

    # -- questions -----------------------------------------------------------------------------

    def _compare_prompts(
        self,
        row: _Row,
        ids: npt.NDArray[np.int32],
        mask: npt.NDArray[np.uint8],
        prompts: Sequence[Sequence[int] | None],
    ) -> None:
        found = self.found
        found.compared += 1
        texts = _texts_before(row.rendered)
        starts = np.flatnonzero(np.diff(mask, prepend=np.uint8(0)) == 1)
        if not len(texts) == len(starts) == len(prompts) or None in prompts:
            found.unprompted += 1
            if not len(texts) == len(starts) == len(prompts):
                return
        kinds: dict[str, int] = {}
        for answer, (text, start, prompt) in enumerate(zip(texts, starts, prompts, strict=True)):
            wanted = row.prompts[answer]
            if prompt is None or wanted is None:
                continue
            before = ids[:start]
            if text != wanted.text:
                kind = "text before an answer"
            elif row.spells or _equal(before, prompt):
                continue
            else:
                kind = "ids before " + ("the first answer" if answer == 0 else "a later answer")
            kinds.setdefault(kind, answer)
            place = f"{row.place}, answer {answer + 1} of {len(texts)}"
            self._show(kind, place, before, prompt, "inference")
        found.text_differs += "text before an answer" in kinds
        found.first_differs += "ids before the first answer" in kinds
        found.later_differs += "ids before a later answer" in kinds

    def _look_at_tokens(self, row: _Row, ids: npt.NDArray[np.int32]) -> None:
        found = self.found
        found.warnings.update(row.rendered.warnings)
        found.spells += row.spells
        found.cut += found.max_length is not None and len(ids) > found.max_length
        found.bos_twice += len(ids) > 1 and ids[0] == ids[1] == self.bos_id
        for target, run in groupby(row.rendered.segments, lambda segment: segment.target):
            if target:
                last = list(run)[-1]
                found.answers += 1
                if last.control:
                    found.stops[last.text] += 1
                else:
                    found.unstopped += 1

    def _compare_other(
        self, row: _Row, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8]
    ) -> None:
        assert self.against is not None
        what = f"against {self.found.other}"
        try:
            other = self.against.tokens([self.against.render(row.conversation)])
        except RowError as error:
            self.found.unlike.setdefault(what, f"  {one_line(row.place)}: it refuses: {error}")
            self.found.other_differs += 1
            return
        if not _equal(ids, other.input_ids):
            self._show(what, row.place, ids, other.input_ids, "the other")
        elif _equal(mask, other.loss_mask):
            return
        else:
            at = int(np.flatnonzero(mask != other.loss_mask)[0])
            has, lacks = ("training", "the other") if mask[at] else ("the other", "training")
            self.found.unlike.setdefault(
                what,
                f"  {one_line(row.place)}, token {at}, {self._spelled(ids[at : at + 1])}: "
                f"a target of {has}, none of {lacks}",
            )
        self.found.other_differs += 1

    def _show(self, what: str, place: str, here: Any, there: Any, name: str) -> None:
        """Keep the first difference of a kind, side by side."""
        if what in self.found.unlike:
            return
        shortest = min(len(here), len(there))
        at = next((i for i in range(shortest) if here[i] != there[i]), shortest)
        first = max(0, at - _BEFORE)
        width = max(len("training"), len(name))
        sides = "\n".join(
            f"  {side:{width}}  {self._spelled(ids[first:at])} | "
            f"{self._spelled(ids[at : at + _BEHIND])}"
            for side, ids in (("training", here), (name, there))
        )
        self.found.unlike[what] = f"  {one_line(place)}, from token {at} on\n{sides}"

    def _spelled(self, ids: Any) -> str:
        return " ".join(repr(one_line(self.backend.decode([int(i)]))) for i in ids) or "(its end)"


def _uncut(encoder: Encoder) -> Encoder:
    """The Encoder for whole rows."""
    made = copy.copy(encoder)
    made.max_length = None
    made.warnings = Counter()
    return made


def _texts_before(rendered: Rendered) -> list[str]:
    """The text before each run of targets."""
    texts: list[str] = []
    before = ""
    for target, run in groupby(rendered.segments, lambda segment: segment.target):
        if target:
            texts.append(before)
        before += "".join(segment.text for segment in run)
    return texts


def _equal(ids: Any, others: Any) -> bool:
    return len(ids) == len(others) and bool(np.array_equal(ids, others))
