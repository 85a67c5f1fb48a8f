"""The fast way to the same ids: gigatoken, for as long as it agrees with the tokenizer's library.

Owns what gigatoken is asked for, what of it is compared, and the way back to the library. Knows a
tokenizer only as its twins (see tokenizers.py) and its added tokens; no template and no file.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from reprlib import repr as short
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._ingest import sampled
from .patterns import common_start

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Ragged = tuple[Ids, Offsets]

BACKENDS = ("auto", "hf", "gigatoken")

# Texts that are all compared at the start, and of all others one in how many.
FIRST = 64
ONE_IN = 256


class Fallback(NamedTuple):
    """Why gigatoken was given up, and the text at which it was."""

    text: str
    reason: str


class Unfit(ValueError):
    """Why gigatoken does not do for a tokenizer."""


class Gigatoken:
    """gigatoken with the twins of one tokenizer: ordinary text to ids.

    `load`: the name of gigatoken's function that reads the twins `fresh` and `continuing`.
    `added`: how the tokenizer's added tokens are spelled. Raises ImportError where gigatoken is not
    installed, Unfit where it cannot read a twin.
    """

    def __init__(
        self, load: str, fresh: str | bytes, continuing: str | bytes, added: Iterable[str]
    ) -> None:
        self._arguments = (load, fresh, continuing, tuple(added))
        try:
            make = getattr(importlib.import_module("gigatoken").Tokenizer, load)
        except ImportError as error:
            raise ImportError(
                f"{error.name} is not installed: pip install 'turnpack[fast]'"
            ) from None
        try:
            self._fresh = make(fresh)
            self._continuing = self._fresh if continuing == fresh else make(continuing)
        except Exception as error:
            raise Unfit(f"gigatoken does not support the tokenizer: {_line(error)}") from None
        # Beginnings will do, and there may be a thousand tokens.
        beginnings = sorted({token[:4] for token in self._arguments[-1] if token})
        self._start = common_start(beginnings)
        self._added = re.compile("|".join(map(re.escape, beginnings)) or r"(?!)")

    def __reduce__(self) -> tuple[type[Gigatoken], tuple[Any, ...]]:
        return type(self), self._arguments

    @property
    def name(self) -> str:
        """What it is, and its version."""
        return f"gigatoken {version('gigatoken')}"

    def spelled(self, texts: Sequence[str]) -> list[int]:
        """The places of all texts that spell an added token, which gigatoken might recognise."""
        start, search = self._start, self._added.search
        if not start and not search("\0".join(texts)):
            return []
        return [place for place, text in enumerate(texts) if start in text and search(text)]

    def encode(self, texts: Sequence[str], continues: Sequence[bool]) -> Ragged:
        """The ids of texts, as in Backend. It has a thread for each processor, in a worker one."""
        if self._continuing is self._fresh:
            return _arrays(self._fresh.encode_batch(list(texts)))
        groups = [np.flatnonzero(np.array(continues, bool) == goes_on) for goes_on in (False, True)]
        made = [
            _arrays(tokenizer.encode_batch([texts[place] for place in places]))
            for tokenizer, places in zip((self._fresh, self._continuing), groups, strict=True)
        ]
        return _merged(made, groups)


class Accelerated(ABC):
    """Base of a backend whose ordinary text gigatoken may encode.

    A backend itself has `encode_exactly` and `_library`. `fallback` is set where the two
    differed: that call was done again, and everything since is the library's. `exact_because` says
    why nothing is gigatoken's, `compared` counts the texts that were encoded both ways.
    """

    fallback: Fallback | None = None
    exact_because: str | None = None
    compared = 0
    _fast: Gigatoken | None = None
    _library: str

    @abstractmethod
    def encode_exactly(self, texts: Sequence[str], continues: Sequence[bool]) -> Ragged:
        """As `encode_batch`, by the tokenizer's own library."""

    @property
    def exact(self) -> bool:
        """Whether all that is encoded now is the library's."""
        return self._fast is None

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to compare than a sample."""
        return self.exact or self.compared >= FIRST

    def begin(self) -> None:
        """Compare the first texts anew: another run begins."""
        self.compared, self.fallback = 0, None

    def give_up(self) -> None:
        """Let the library encode all that follows."""
        self._fast = None

    @property
    def library(self) -> str:
        """The package that encodes ordinary text now, and its version."""
        return (
            f"{self._library} {version(self._library)}" if self._fast is None else self._fast.name
        )

    def accelerate(self, choice: str, make: Callable[[], Gigatoken], probes: Sequence[str]) -> None:
        """Let gigatoken encode: "auto" where it can and agrees, "gigatoken" or it is an error.

        `probes`: texts that are compared first. Raises ImportError where it is not installed,
        ValueError where it does not support the tokenizer or gives other ids.
        """
        if choice == "hf":
            return
        try:
            self._fast = make()
            for goes_on in (False, True):
                everything = range(len(probes))
                self._encode_fast(probes, [goes_on] * len(probes), everything)
                if self.fallback is not None:
                    raise Unfit(self.fallback.reason)
        except (ImportError, Unfit) as error:
            if choice == "gigatoken":
                raise
            self.exact_because = str(error)
        self.fallback, self.compared = None, 0

    def encode_batch(self, texts: Sequence[str], continues: Sequence[bool]) -> Ragged:
        """See Backend."""
        if self._fast is None or not texts:
            return self.encode_exactly(texts, continues)
        first = range(max(0, min(FIRST - self.compared, len(texts))))
        # By the text alone, so that no worker differs.
        sample = sampled(list(texts), ONE_IN)
        return self._encode_fast(texts, continues, {*first, *sample})

    def _encode_fast(
        self, texts: Sequence[str], continues: Sequence[bool], places: Iterable[int]
    ) -> Ragged:
        """Ids of gigatoken, those at some `places` the library's too.

        Where a text spells an added token they are the library's only.
        """
        assert self._fast is not None
        spelled = self._fast.spelled(texts)
        compared = sorted({*places} - {*spelled})
        exact = self._encode_at(texts, continues, compared)
        try:
            made = self._fast.encode(texts, continues)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            return self._give_up(texts, continues, texts[0], f"fails ({_line(error)})")
        for number, place in enumerate(compared):
            if not np.array_equal(_row(exact, number), _row(made, place)):
                return self._give_up(texts, continues, texts[place], "gives other ids")
        self.compared += len(compared)
        if not spelled:
            return made
        others = self._encode_at(texts, continues, spelled)
        return _merged([made, others], [np.arange(len(texts)), np.array(spelled)])

    def _encode_at(
        self, texts: Sequence[str], continues: Sequence[bool], places: Sequence[int]
    ) -> Ragged:
        chosen = [texts[place] for place in places]
        return self.encode_exactly(chosen, [continues[place] for place in places])

    def _give_up(
        self, texts: Sequence[str], continues: Sequence[bool], text: str, what: str
    ) -> Ragged:
        ids = self.encode_exactly(texts, continues)  # where a text is none, that is its error
        fast, self._fast = self.library, None
        self.exact_because = f"{fast} {what} for {short(text)}, which {self.library} encodes"
        self.fallback = Fallback(text, self.exact_because)
        return ids


def probes(pieces: Sequence[str]) -> list[str]:
    """Texts to compare before anything is encoded: hard ones, and some of the vocabulary."""
    groups = [pieces[at : at + 8] for at in range(0, len(pieces), 8)]
    return [*_HARD, *pieces, *map("".join, groups), *map(" ".join, groups)]


_HARD = (
    *("", " ", "  ", "\n", "a", "Hello, world!", " leading", "trailing ", "\t\ttabs", "\r\n\r\n"),
    *("I'm you're WE'LL it's'S", "12345678 1 23 456", "x\x00y\x01\x7f", "\u200b\ufeff\u202e\u2028"),
    *("ﬁ ½ ① Å Å", "a\u0301\u0302 e\u0301 é", "हिन्दी العربية עברית ไทย 한국어", "１２３ ٣٤٥"),
    *(
        "👩‍👩‍👧‍👦👍🏽",
        "\U0001f1e9\U0001f1ea" * 3,
        "\ufffe\U0010ffff",
        "{'a': [1, 2]} <b> # --- ===",
    ),
    *(" " * 300, "\n" * 300, "a" * 3000, "。，" * 200, "ab " * 500, "\u0301" * 40),
)


def _arrays(made: Any) -> Ragged:
    """What gigatoken returns, an awkward array of uint32, as it lies in memory."""
    offsets = np.asarray(made.layout.offsets.data, np.int64)
    ids = np.asarray(made.layout.content.data)
    if ids.dtype != np.uint32 or offsets[0] != 0 or offsets[-1] > len(ids):
        raise ValueError(f"{ids.dtype} ids from {offsets[0]} to {offsets[-1]} of {len(ids)}")
    return ids[: offsets[-1]].view(np.int32), offsets


def _row(ragged: Ragged, place: int) -> Ids:
    ids, offsets = ragged
    return ids[offsets[place] : offsets[place + 1]]


def _merged(parts: Sequence[Ragged], places: Sequence[npt.NDArray[np.intp]]) -> Ragged:
    """The rows of all parts in the order of their places; a later part's instead of an earlier's.

    There is a row for every place.
    """
    size = max(int(into.max(initial=-1)) for into in places) + 1
    starts, lengths = np.empty(size, np.int64), np.empty(size, np.int64)
    before = 0
    for (ids, offsets), into in zip(parts, places, strict=True):
        starts[into], lengths[into] = before + offsets[:-1], np.diff(offsets)
        before += len(ids)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    order = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
    return np.concatenate([ids for ids, _ in parts])[order], ends


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
