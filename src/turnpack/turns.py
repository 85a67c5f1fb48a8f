"""Turns: where in a rendered text each answer begins and ends, found in the text's provenance.

Owns the search. It knows no Jinja: it is given the text of the conversation, the inference prompt
of each answer, both in pieces (see provenance.py), and what control tokens look like. A turn that
it cannot find raises RowError; it never guesses.

A place is a pair (number of a piece, characters into it): other than a number of characters, it is
the same place for every conversation that a template writes in the same pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

from .nouns import RowError
from .provenance import MIXED, Mark, Traced, pieces_of, plain, single

Place = tuple[int, int]

# The fields of a message that are the answer itself; its name, say, is not.
ANSWER_FIELDS = frozenset(("content", "reasoning_content", "reasoning", "thinking", "tool_calls"))


class Span(NamedTuple):
    """What the model must produce of one message: from `start` to `end`."""

    start: Place
    end: Place
    number: int


class Written:
    """A rendered text in pieces: plain ones are the template's own, Traced ones the conversation's.

    `regions`: what was written while a loop was at a message, as (start, end, its number).
    `generation`: what stands in `{% generation %}` blocks. `after`: where the last loop ended.
    """

    __slots__ = ("after", "generation", "pieces", "regions", "text")

    def __init__(self, text: str) -> None:
        self.text = str.__str__(text)
        self.pieces: list[str] = []
        self.regions: list[tuple[Place, Place, int]] = []
        self.generation: list[tuple[Place, Place]] = []
        self.after: Place | None = None
        loops: list[tuple[int, int]] = []  # (loop, message) that are under way
        begun = (0, 0)
        opened: list[Place] = []
        for piece in pieces_of(text):
            if type(piece) is Traced:
                self.pieces.append(piece)
            elif type(piece) is not Mark:
                if self.pieces and type(self.pieces[-1]) is not Traced:
                    self.pieces[-1] += piece
                else:
                    self.pieces.append(piece)
            elif piece.kind == "generation":
                opened.append(self.here)
            elif piece.kind == "endgeneration":
                self.generation.append((opened.pop(), self.here))
            else:
                known = [loop for loop, _ in loops]
                if piece.kind == "end" and piece.loop not in known:
                    continue
                here = self.here
                if loops and begun != here:
                    self.regions.append((begun, here, loops[-1][1]))
                if piece.loop in known:
                    del loops[known.index(piece.loop) :]
                if piece.kind == "message":
                    loops.append((piece.loop, piece.number))
                else:
                    self.after = here
                begun = here
        # Only now is it known which places are the ends of pieces.
        place = self.place
        self.regions = [(place(a), place(b), k) for a, b, k in self.regions]
        self.generation = [(place(a), place(b)) for a, b in self.generation]
        self.after = None if self.after is None else place(self.after)

    def filled(self, texts: Sequence[str] | None) -> Written:
        """The same with other texts of the conversation, in order; None takes all texts out."""
        made = object.__new__(Written)
        left = iter(texts) if texts is not None else repeat("")
        made.pieces = [
            single(next(left), piece._origin, piece._value) if type(piece) is Traced else piece
            for piece in self.pieces
        ]
        made.text = "".join(made.pieces)
        made.regions, made.generation, made.after = self.regions, self.generation, self.after
        return made

    def text_with(self, texts: Sequence[str]) -> str:
        """The text with other texts of the conversation, in order."""
        left = iter(texts)
        return "".join([next(left) if type(p) is Traced else p for p in self.pieces])

    def place(self, place: Place) -> Place:
        """A place in the one way to say it: the end of a piece is the start of the next."""
        number, offset = place
        if offset and offset == str.__len__(self.pieces[number]):
            return number + 1, 0
        return place

    @property
    def here(self) -> Place:
        """The end of what has been written so far, as a place in a plain piece where it can be."""
        if self.pieces and type(self.pieces[-1]) is not Traced:
            return len(self.pieces) - 1, len(self.pieces[-1])
        return len(self.pieces), 0

    def literal(self, place: Place, until: Place | None = None) -> str:
        """The template's own text from a place up to the conversation's next, or up to `until`."""
        number, start = place
        if number >= len(self.pieces) or type(self.pieces[number]) is Traced:
            return ""
        piece = self.pieces[number]
        if until is not None and until[0] <= number:
            return piece[start : until[1] if until[0] == number else 0]
        return piece[start:]

    def traced(self, start: Place, end: Place) -> Iterator[tuple[int, Traced]]:
        """The conversation's pieces between two places, with their numbers."""
        for number in range(start[0], min(end[0] + bool(end[1]), len(self.pieces))):
            piece = self.pieces[number]
            if type(piece) is Traced:
                yield number, piece

    def literals(self, start: Place, end: Place) -> list[str]:
        """The template's own pieces between two places."""
        places = [start, *((n, 0) for n in range(start[0] + 1, end[0] + 1)), end]
        return [self.literal(a, b) for a, b in pairwise(places) if a < b]

    def region(self, number: int) -> tuple[Place, Place]:
        """What was written while a loop was at a message; all of the text where none was."""
        regions = [r for r in self.regions if r[2] == number]
        return (regions[0][0], regions[-1][1]) if regions else ((0, 0), self.end)

    @property
    def end(self) -> Place:
        """The end of the text."""
        return len(self.pieces), 0


class Turns:
    """The search for the turns of one rendered conversation.

    `prompt`: the inference prompt of an answer, None where the template refuses to write it.
    `upto`: the conversation up to a message and with it. `controls`: finds control tokens. `stops`:
    the tokens known to end an answer. `cues`: what prompts are known to end with. `bos` stops
    nothing.

    `differs`: the answers whose inference prompt is not what stands before them; `unstopped`: those
    without a stop token, `dropped` those that the template does not write. `stopped_by`: the stop
    tokens found. `static`: whether another conversation in the same pieces has its turns in the
    same places.
    """

    def __init__(
        self,
        written: Written,
        *,
        prompt: Callable[[int], Written | None],
        upto: Callable[[int], Written],
        controls: re.Pattern[str],
        stops: Collection[str] = (),
        cues: Collection[str] = (),
        bos: str = "",
        last: int,
    ) -> None:
        self.written = written
        self._prompt, self._upto, self._controls = prompt, upto, controls
        self._stops, self._cues, self._bos, self._last = stops, cues, bos, last
        self.differs: list[int] = []
        self.unstopped: list[int] = []
        self.dropped: list[int] = []
        self.stopped_by: set[str] = set()
        self.static = True

    def find(self, number: int) -> Span | None:
        """The span of an answer; None where the template does not write the message at all."""
        written = self.written
        regions = [r for r in written.regions if r[2] == number]
        slots = [
            (place, piece._origin[1])
            for place, piece in written.traced((0, 0), written.end)
            if piece._origin[0] == number
        ]
        within = written.region(number)
        if any(piece._origin == MIXED for _, piece in written.traced(*within)):
            self._lost(number, "its text is mixed with another's")
        if not regions and not slots:
            self.dropped.append(number)
            return None
        if regions:
            begin, end = regions[0][0], regions[-1][1]
            inside = [r for r in written.regions if begin <= r[0] < end and r[2] != number]
            if inside:
                self._lost(number, "the template writes it in several places")
        else:
            begin, end = (slots[0][0], 0), written.end
        foreign = not regions or any(
            piece._origin[0] != number for _, piece in written.traced(begin, end)
        )
        if foreign:
            end = self._as_it_would_end(number, end)
        # Some templates write a call's name again with its result: that is no answer.
        answer = [
            (place, field)
            for place, field in slots
            if begin <= (place, 0) < end and field in ANSWER_FIELDS
        ]
        outside = {
            field
            for place, field in slots
            if (place, field) not in answer and written.pieces[place]
        }
        if (slots and not answer) or (outside & ANSWER_FIELDS) - {"tool_calls"}:
            self._lost(number, "its text stands outside of its turn")
        first = (answer[0][0], 0) if answer else end
        start = self._start(number, begin, first)
        behind = max(start, (answer[-1][0] + 1, 0)) if answer else start
        for _, piece in written.traced(start, behind):
            if piece._origin[0] != number:
                self._lost(number, "other text stands within it")
        calls = bool(answer) and answer[-1][1] == "tool_calls"
        return Span(start, self._stop(number, behind, end, calls), number)

    def _lost(self, number: int, why: str) -> None:
        raise RowError(
            "cannot find an answer in what the template writes", f"message {number}: {why}"
        )

    # -- where it begins -----------------------------------------------------------------------

    def _start(self, number: int, begin: Place, first: Place) -> Place:
        """Where the inference prompt ends, or where the text leaves it."""
        written = self.written
        prompt = self._prompt(number)
        if prompt is None:
            text = written.literal(begin)
            known = [cue for cue in self._cues if cue in text]
            if not known:
                self._lost(number, "the template writes no prompt for it")
            cue = max(known, key=len)
            return written.place((begin[0], begin[1] + text.index(cue) + len(cue)))
        start = self._behind_prompt(prompt, number)
        if start is None:
            self.differs.append(number)
            start = self._behind_tail(prompt, begin, first)
            if start is None or start < begin:
                start = self._behind_cue(prompt, begin)
        if start is None:
            self._lost(number, "its prompt does not end as what stands before it")
        assert start is not None
        inside = written.traced(first, start) if first < start else ()
        if any(piece for place, piece in inside if place < start[0]):
            self._lost(number, "its prompt ends behind it")
        return start

    def _behind_prompt(self, prompt: Written, number: int) -> Place | None:
        """The end of the prompt in the text, if the text begins with it."""
        written = self.written
        if not written.text.startswith(prompt.text):
            if not _differ_for_ever(prompt.pieces, written.pieces):
                self.static = False
            return None
        last = len(prompt.pieces) - 1
        for place, piece in enumerate(prompt.pieces):
            if place >= len(written.pieces) or not _same(
                piece, written.pieces[place], begins=place == last
            ):
                break
        else:
            if last < 0:
                return 0, 0
            if type(prompt.pieces[last]) is Traced:
                return last + 1, 0
            return written.place((last, len(prompt.pieces[last])))
        # The same text from other pieces: by chance, or because nothing is known of them.
        self.static = False
        left = len(prompt.text)
        for place, piece in enumerate(written.pieces):
            length = str.__len__(piece)
            mine = type(piece) is not Traced or piece._origin[0] == number
            if left < length or (left == length == 0 and mine):
                return place, left
            left -= length
        return written.end

    def _behind_tail(self, prompt: Written, begin: Place, first: Place) -> Place | None:
        """Where the text leaves what the prompt writes behind the last message."""
        written = self.written
        before = [*written.traced((0, 0), min(begin, first))]
        asked = [*prompt.traced((0, 0), prompt.end)]
        if not before or not asked:
            return None
        (mine, last), (theirs, other) = before[-1], asked[-1]
        if last._origin != other._origin:
            return None
        return self._leaves(prompt.literal((theirs + 1, 0)), (mine + 1, 0))

    def _behind_cue(self, prompt: Written, begin: Place) -> Place | None:
        """Where the text of the turn leaves what the prompt writes behind its loop."""
        if prompt.after is None:
            return None
        cue = prompt.literal(prompt.after)
        if cue and not self.written.literal(begin).startswith(cue[0]):
            return None
        return self._leaves(cue, begin)

    def _leaves(self, cue: str, place: Place) -> Place:
        """How far the text at a place goes with a prompt's end; control tokens are whole."""
        number, offset = place
        text = self.written.literal(place)
        length = 0
        while length < min(len(cue), len(text)) and cue[length] == text[length]:
            length += 1
        if length == len(cue):
            return self.written.place((number, offset + length))
        if length == len(text):
            # What follows is the answer's: the prompt may go on as the answer does.
            rest = cue[length:]
            beyond = number + 1 if text else number
            if beyond < len(self.written.pieces):
                slot = self.written.pieces[beyond]
                if type(slot) is Traced and slot.startswith(rest):
                    self.static = False
                    return beyond, len(rest)
        for found in self._controls.finditer(cue):
            if found.start() < length < found.end():
                length = found.start()
        return self.written.place((number, offset + length))

    # -- where it ends -------------------------------------------------------------------------

    def _as_it_would_end(self, number: int, end: Place) -> Place:
        """As far as the text is the same as when the conversation ends with the message."""
        written = self.written
        if number == self._last:
            return end
        upto = self._upto(number)
        for place, (piece, other) in enumerate(zip(written.pieces, upto.pieces, strict=False)):
            if _same(piece, other, begins=False):
                continue
            if type(piece) is Traced or type(other) is Traced:
                return place, 0
            length = 0
            while length < min(len(piece), len(other)) and piece[length] == other[length]:
                length += 1
            return min(end, written.place((place, length)))
        return min(end, (len(upto.pieces), 0))

    def _stop(self, number: int, behind: Place, end: Place, calls: bool) -> Place:
        """The end of the stop token behind an answer, else the end of its text."""
        text = self.written.literal(behind, end)
        stop = self._find_stop(text, calls)
        if stop is None and number == self._last:
            # What closes the conversation is the stop token of its last answer.
            text = self.written.literal(behind)
            stop = self._find_stop(text, calls)
        if stop is not None:
            return self.written.place((behind[0], behind[1] + stop))
        self.unstopped.append(number)
        # What the template writes behind a call, up to white space, closes the call.
        text = self.written.literal(behind, end)
        more = len(text.rstrip()) if calls else 0
        return self.written.place((behind[0], behind[1] + more)) if more else behind

    def _find_stop(self, text: str, calls: bool) -> int | None:
        found = [match for match in self._controls.finditer(text) if match.group() != self._bos]
        if not found:
            return None
        for match in found:
            if match.group() in self._stops:
                self.stopped_by.add(match.group())
                return match.end()
        # Tokens that directly follow each other close the answer together: the last one stops.
        # A call is closed by text and tokens in turn.
        run = found[:1]
        for match in found[1:]:
            if match.start() != run[-1].end() and not calls:
                break
            run.append(match)
        self.stopped_by.add(run[-1].group())
        return run[-1].end()


def _same(piece: str, other: str, *, begins: bool) -> bool:
    """Whether two pieces are the same for every conversation; the other may go on at the end."""
    if type(piece) is Traced and type(other) is Traced:
        if piece._value is None:  # then the trace holds for this conversation only
            return piece._origin == other._origin and plain(piece) == plain(other)
        return piece._value == other._value
    if type(piece) is Traced or type(other) is Traced:
        return False
    return other.startswith(piece) if begins else other == piece


def _differ_for_ever(prompt: list[str], text: list[str]) -> bool:
    """Whether a text begins with a prompt for no conversation that is written in these pieces."""
    for number, (piece, other) in enumerate(zip(prompt, text, strict=False)):
        if _same(piece, other, begins=False):
            continue
        if type(piece) is Traced or type(other) is Traced:
            return False
        if piece.startswith(other) and number + 1 < len(text):
            # The prompt goes on where the conversation's own text stands: as that begins?
            slot = text[number + 1]
            return type(slot) is Traced and bool(slot) and not slot.startswith(piece[len(other)])
        return not other.startswith(piece)
    return False
