"""Composition: a conversation of a new shape, put together from what is known of its messages.

Owns what single messages were written as, next to which others, and the programs that write them
so again. Whether a template writes whole conversations that way is not known here: whoever composes
one compares it with the template's own text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .nouns import Segment
from .provenance import TOOLS, Traced, Value, single
from .replay import Guards, Item, Program, compile_program
from .turns import Place, Written

# Of each message, all that no question is asked about (see template_data.shape_of).
Kinds = tuple[Any, ...]

# Parts that are kept for one template, and compositions that may fail before it is given up.
_PARTS, _FAILURES = 1024, 8
# No control token has more characters.
_TOKEN = 256


class Composed(NamedTuple):
    """A conversation's segments, and for each message with a target where its target begins.

    `writes_tools`: whether something of the tools is among them.
    """

    segments: list[Segment]
    starts: dict[int, int]
    writes_tools: bool


class _NotLocal(Exception):
    """A rendering that does not fall into parts, each of one message's."""


class Composer:
    """What one template writes for one message, by its kind and its neighbours' kinds.

    A kind is all of a message that no question is asked about (see `template_data.shape_of`). What
    is written before the first message of a loop is the opening, what is behind it the closing.
    """

    def __init__(
        self,
        recognised: tuple[str, ...],
        controls: re.Pattern[str],
        functions: Mapping[str, Any],
    ) -> None:
        self._recognised, self._controls, self._functions = recognised, controls, functions
        # key → what must hold → what is then written, and the program that writes it.
        self._known: dict[Any, dict[str, tuple[Any, Program]]] = {}
        self._programs: dict[Any, list[Program]] = {}
        self._write_tools: set[Program] = set()
        self._openings: tuple[int, ...] = ()  # how many messages they take
        self._size = 0
        self.failed = self.succeeded = 0  # its user counts
        self.given_up = False

    @property
    def is_worth_trying(self) -> bool:
        """Whether what it composed was mostly right."""
        return not self.given_up and self.failed <= _FAILURES + self.succeeded // 4

    def write(self, messages: Sequence[Mapping[str, Any]], kinds: Kinds, tools: Any) -> Any:
        """The conversation, Composed; None where something in it is new."""
        for opening in self._openings:
            if opening < len(messages):
                composed = self._write(messages, kinds, tools, opening)
                if composed is not None:
                    return composed
        return None

    def _write(
        self, messages: Sequence[Mapping[str, Any]], kinds: Kinds, tools: Any, opening: int
    ) -> Composed | None:
        programs = self._programs
        segments: list[Segment] = []
        starts: dict[int, int] = {}
        length = 0
        writes_tools = False
        for number, key in _keys(kinds, opening):
            own = messages[number]
            for program in programs.get(key, ()):
                found = program(messages, tools, own)
                if found is not None:
                    break
            else:
                return None
            writes_tools = writes_tools or program in self._write_tools
            if not found:
                continue
            for text, target, _, _ in found:
                if target and number not in starts:
                    starts[number] = length
                length += len(text)
            if segments and self._across(segments[-1], found[0]):
                return None
            if segments and _continue_one_run(segments[-1], found[0]):
                text = segments.pop().text + found[0].text
                found[0] = found[0]._replace(text=text)
            segments += found
        return Composed(segments, starts, writes_tools)

    def _across(self, segment: Segment, other: Segment) -> bool:
        """Whether a control token might stand across the seam of two runs of ordinary text."""
        if segment.control or other.control:
            return False
        end, begin = segment.text[-_TOKEN:], other.text[:_TOKEN]
        return any(
            match.start() < len(end) < match.end() for match in self._controls.finditer(end + begin)
        )

    def learn(self, guards: Guards, written: Written, items: Sequence[Item], kinds: Kinds) -> None:
        """Keep what a traced rendering wrote for each message, if it falls into such parts."""
        if self._size > _PARTS:
            return
        regions = sorted(written.regions)
        numbers = [number for *_, number in regions]
        if not regions or numbers != sorted(set(numbers)):
            return
        if any(before[1] != after[0] for before, after in pairwise(regions)):
            return
        cuts = [regions[0][0], *(end for _, end, _ in regions)]
        opening = numbers[0]
        try:
            head, *inner, tail = _cut_at(cuts, items, written)
            of = dict(zip(numbers, inner, strict=True))
            parts = [head, *(of.get(number, []) for number in range(opening, len(kinds))), tail]
            asked = _by_message(guards, opening, len(kinds))
            made = []
            for (number, key), part, questions in zip(
                _keys(kinds, opening), parts, asked, strict=True
            ):
                local = _Local(number, opening)
                made.append(
                    (
                        key,
                        {local.question(each): answer for each, answer in questions.items()},
                        [local.item(item) for item in part],
                    )
                )
        except _NotLocal:
            return
        if opening not in self._openings:  # made anew: another thread may be reading it
            self._openings = (*self._openings, opening)
        for key, questions, part in made:
            self._keep(key, questions, part)

    def _keep(self, key: Any, guards: dict[Any, Any], items: list[Item]) -> None:
        what = tuple((kind, _said(text), weight) for kind, text, weight in items)
        known = self._known.setdefault(key, {})
        programs = self._programs.setdefault(key, [])
        asked = repr(list(guards.items()))
        if asked not in known:
            program = compile_program(guards, items, self._recognised, self._functions)
            known[asked] = (what, program)
            if any(type(text) is Traced and text._origin == TOOLS for _, text, _ in items):
                self._write_tools.add(program)
            programs.append(program)
            self._size += 1
        elif known[asked][0] != what and known[asked][1] in programs:
            # More than its neighbours decides what is written.
            programs.remove(known[asked][1])


def _keys(kinds: Kinds, opening: int) -> list[tuple[int, Any]]:
    """The parts of a conversation: whose each is, and what it depends on."""
    keys: list[tuple[int, Any]] = [(0, ("opening", kinds[:opening], kinds[opening]))]
    before: Any = kinds[:opening]
    for number in range(opening, len(kinds)):
        kind = kinds[number]
        after = kinds[number + 1] if number + 1 < len(kinds) else None
        keys.append((number, (before, kind, after)))
        before = kind
    keys.append((len(kinds) - 1, ("closing", before)))
    return keys


def _continue_one_run(segment: Segment, other: Segment) -> bool:
    """Whether two neighbours are one run of ordinary text."""
    return (
        not segment.control
        and not other.control
        and segment.target == other.target
        and segment.weight == other.weight
    )


def _cut_at(cuts: Sequence[Place], items: Sequence[Item], written: Written) -> list[list[Item]]:
    """The items, cut at places of the text they make."""
    parts: list[list[Item]] = [[]]
    upcoming = [*cuts, (len(written.pieces) + 1, 0)]
    number = offset = 0
    for kind, text, weight in items:
        while upcoming[0] <= (number, offset):
            parts.append([])
            del upcoming[0]
        end = offset + str.__len__(text)
        while upcoming[0] < (number, end):
            if type(text) is Traced or kind == "control":
                raise _NotLocal
            at = upcoming.pop(0)[1] - offset
            parts[-1].append((kind, text[:at], weight))
            parts.append([])
            text, offset = text[at:], offset + at
        parts[-1].append((kind, text, weight))
        number, offset = (
            (number + 1, 0) if end == str.__len__(written.pieces[number]) else (number, end)
        )
    parts += [[] for _ in upcoming[1:]]
    return parts


def _by_message(guards: Guards, opening: int, size: int) -> list[dict[Any, Any]]:
    """What was asked of each message; of the messages that open, together, and of none at last."""
    asked: list[dict[Any, Any]] = [{} for _ in range(size - opening + 2)]
    for question, answer in guards.items():
        name, value, arguments = question
        numbers = _numbers(value) | (_numbers(arguments) if name == "same" else set())
        if all(number < opening for number in numbers):
            asked[0][question] = answer
        elif len(numbers) == 1:
            asked[numbers.pop() - opening + 1][question] = answer
        else:
            raise _NotLocal
    return asked


def _numbers(value: Value) -> set[int]:
    """The messages that a value comes from."""
    kind, first, *rest = value if len(value) > 1 else (value[0], None)
    if kind == "get":
        return {first}
    if kind in ("item", "json"):
        return _numbers(first)
    if kind == "call":
        return _numbers(rest[0])
    return set()


class _Local:
    """Values of one message said in a way that is the same wherever it stands."""

    def __init__(self, number: int, opening: int) -> None:
        self.number, self.opening = number, opening

    def value(self, value: Value) -> Value:
        if value[0] == "get":
            if value[1] < self.opening:
                return value
            if value[1] != self.number:
                raise _NotLocal
            return ("own", *value[2:])
        if value[0] in ("item", "json"):
            return (value[0], self.value(value[1]), *value[2:])
        if value[0] == "call":
            return (*value[:2], self.value(value[2]), *value[3:])
        return value

    def question(self, question: tuple[str, Value, tuple[Any, ...]]) -> Any:
        name, value, arguments = question
        return name, self.value(value), self.value(arguments) if name == "same" else arguments

    def item(self, item: Item) -> Item:
        kind, text, weight = item
        if type(text) is not Traced:
            return item
        if text._value is None:
            raise _NotLocal
        return kind, single(str.__str__(text), text._origin, self.value(text._value)), weight


def _said(text: str) -> Any:
    return text._value if type(text) is Traced else text
