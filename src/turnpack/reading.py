"""Reading: token ids as text that a person can read and nothing obeys, piece by piece.

Owns how tokens become readable text. Asks a tokenizer only to decode ids and to name its control
tokens (and how it spells them as ordinary text); knows neither terminal nor page.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .nouns import Rendered

if TYPE_CHECKING:
    from .tokenizers import Backend

# What a terminal would obey or hide: C0 and C1 controls, bidi and other invisible format
# characters, lone surrogates, and U+FFFD, which must not be taken for a broken character.
# The joiners U+200C and U+200D stay: emoji and Persian are spelled with them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffd\ud800-\udfff\U000e0000-\U000e007f]"
)
Ids = Sequence[int] | npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_BROKEN = "\ufffd"
_CONTEXT = 4  # groups before one that its decoding is given
_LONGEST = 64  # tokens in a group; a character has at most four bytes, but U+FFFD may be meant


def visible(text: str) -> str:
    r"""Spell out every character that a terminal would obey or hide; tabs and newlines stay.

    >>> visible("a\x1b[31mb")
    'a⟨U+001B⟩[31mb'
    """
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def one_line(text: str) -> str:
    """Return visible text without tabs and newlines, for messages and headers."""
    return visible(re.sub(r"[\t\n]+", " ", text))


@dataclass(frozen=True, slots=True)
class Piece:
    """What is shown as one: a token, or the tokens that a character is split over.

    `target`: one of its `tokens` is a target.
    """

    text: str
    target: bool
    control: bool = False
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Document:
    """One row's tokens as pieces, with what its header says."""

    title: str
    tokens: int
    targets: int
    pieces: Sequence[Piece]


def rendered_pieces(rendered: Rendered) -> list[Piece]:
    """Turn a rendered conversation's segments into pieces: no tokenizer, so no boundaries."""
    return [Piece(visible(part.text), part.target, part.control) for part in rendered.segments]


class Reader:
    """Turns ids into pieces with one tokenizer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[int, bool] = {}
        self._alone: dict[int, str] = {}
        self._pieces: dict[tuple[int, bool, str], Piece] = {}

    def document(self, title: str, ids: Ids, targets: Sequence[bool] | Bools) -> Document:
        """Turn a row into pieces; `targets` says of each token whether it is trained on."""
        ids = [int(token) for token in ids]
        targets = [bool(target) for target in targets]
        groups = self._simple_groups(ids) or self._groups(ids)
        pieces = [self._piece(ids, targets, *group) for group in groups]
        return Document(title, len(ids), sum(targets), pieces)

    def _piece(
        self, ids: list[int], targets: Sequence[bool] | Bools, start: int, end: int, text: str
    ) -> Piece:
        """What is shown of a group of a row's tokens; tokens come again and again."""
        key = ids[start], targets[start], text
        if end - start > 1 or _BROKEN in text or key not in self._pieces:
            shown = _shown(text, ids[start:end], first=start == 0, last=end == len(ids))
            control = end - start == 1 and self.is_control(ids[start])
            piece = Piece(shown, any(targets[start:end]), control, end - start)
            if end - start > 1 or _BROKEN in text:
                return piece
            self._pieces[key] = piece
        return self._pieces[key]

    def _simple_groups(self, ids: list[int]) -> list[tuple[int, int, str]] | None:
        """The groups where every token that is a whole character by itself is so in its row, too.

        As it is with nearly all rows of a tokenizer that works on bytes; None where it is not so.
        """
        groups: list[tuple[int, int, str]] = []
        start = 0
        for end, token in enumerate(ids, 1):
            text = self._alone.get(token)
            if text is None:
                text = self._alone[token] = self._backend.decode([token])
            if start < end - 1 or not text or _BROKEN in text:
                text = self._backend.decode(ids[start:end])
            if text and not text.endswith(_BROKEN):
                groups.append((start, end, text))
                start = end
        if start < len(ids):
            return None
        whole = all(_BROKEN not in text for _, _, text in groups)
        same = whole and "".join(text for _, _, text in groups) == self._backend.decode(ids)
        return groups if same else None

    def _groups(self, ids: list[int]) -> Iterator[tuple[int, int, str]]:
        """Split at every token that ends with a whole character: (start, end, text)."""
        starts: deque[int] = deque([0], maxlen=_CONTEXT + 1)
        for end in range(1, len(ids) + 1):
            start = starts[-1]
            text = self._text(ids[starts[0] : start], ids[start:end])
            whole = not text.endswith(_BROKEN) or end - start == _LONGEST
            if end == len(ids) or whole or self.is_control(ids[end]):
                yield start, end, text
                starts.append(end)

    def _text(self, context: list[int], group: list[int]) -> str:
        """Return what decoding up to the group's end adds to decoding up to its start.

        A few groups before it are context enough, and they must be there: a SentencePiece decoder
        drops the space at the front of whatever it is given.
        """
        before = self._backend.decode(context) if context else ""
        text = self._backend.decode(context + group)
        return text[len(before) :] if text.startswith(before) else self._backend.decode(group)

    def is_control(self, token: int) -> bool:
        """Tell whether a token is one of the tokenizer's added tokens."""
        known = self._known.get(token)
        if known is None:
            known = self._backend.control_id(self._backend.decode([token])) == token
            self._known[token] = known
        return known

    def control_id(self, text: str) -> int | None:
        """Return the id of the added token that is spelled `text`, None where there is none."""
        return self._backend.control_id(text)

    @property
    def eos(self) -> str | None:
        """How the tokenizer spells EOS."""
        return self._backend.eos

    def text(self, ids: Ids) -> str:
        """Decode ids as they are, to search in; what is shown is a `document`."""
        return self._backend.decode([int(token) for token in ids])

    def spelled(self, token: int) -> str:
        """Return how one token is shown."""
        text = self._backend.decode([token])
        return visible(text) if text and _BROKEN not in text else f"⟨id {token}⟩"

    def spellings(self, ids: Iterable[int]) -> dict[str, list[int]]:
        """How ordinary text spells those of the ids that are control tokens: ids, by the token.

        First and last id are left out where enough remain, as they may merge with what is around:
        where these ids are, `spells` tells whether the token is spelled.
        """
        controls = [self._backend.decode([token]) for token in ids if self.is_control(token)]
        if not controls:
            return {}
        values, offsets = self._backend.encode_batch(controls, [True] * len(controls))
        found = {}
        for text, start, end in zip(controls, offsets, offsets[1:], strict=False):
            whole = values[start:end].tolist()
            if len(whole) > 1:  # one id that is no control token would be any word
                found[text] = whole[len(whole) > 2 : len(whole) - (len(whole) > 3)]
        return found

    def spells(self, ids: Sequence[int], text: str) -> bool:
        """Tell whether ordinary tokens among these ids spell `text`."""
        runs = groupby(ids, self.is_control)
        return any(text in self._backend.decode(list(run)) for control, run in runs if not control)


class NoTokenizer:
    """Stands in where bins came without a tokenizer: ids are shown as numbers."""

    bos: str | None = None
    eos: str | None = None

    def encode_batch(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """There is nothing to encode with."""
        raise NotImplementedError("these bins have no tokenizer")

    def control_id(self, text: str) -> int | None:
        """No token is known to be one."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the ids, a blank after each."""
        return "".join(f"{token} " for token in ids)


def _shown(text: str, ids: list[int], *, first: bool, last: bool) -> str:
    """Return a group's text; half a character at an end of a row has none, so its ids."""
    half = f"⟨ids {' '.join(map(str, ids))}⟩"
    head = tail = ""
    if first and text.startswith(_BROKEN):
        text, head = text.lstrip(_BROKEN), half
    if last and text.endswith(_BROKEN):
        text, tail = text.rstrip(_BROKEN), half
    return head + visible(text) + tail
