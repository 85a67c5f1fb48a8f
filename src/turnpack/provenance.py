"""Provenance: text that knows which of its characters come from the conversation.

Owns `Traced`, the string that a template works on in place of a message's text, and `Trace`, what
one rendering did with such strings. Knows no template engine beyond Python's own string methods.

A Traced string equals its text and behaves as it, so a template takes the same way and writes the
same bytes. What it makes of the string is traced again, and what it asks about it is written down:
a second conversation for which every question has the same answer is rendered the same way. An
operation that is not modelled here makes the trace `opaque`: its text and the origin of its
characters are still right, but it holds for this conversation only.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import thread_time
from typing import Any, NoReturn, cast

from .nouns import RowError

# Where a piece of text comes from: the number of a message and its field.
Origin = tuple[int, str]
# The number in an Origin of all input that is no message: tools, documents, other variables.
ELSEWHERE = -1
# The origin of what the tools say.
TOOLS: Origin = (ELSEWHERE, "tools")
# The origin of a text that is made of several messages' in a way that cannot be told apart.
MIXED: Origin = (ELSEWHERE, "several messages")
# The origin of one in which the template's own text is too.
TANGLED: Origin = (ELSEWHERE, "template and messages")

# How to compute a text again from a conversation, as nested tuples that can be compared:
#   ("get", key, ...)                  messages[key]..., or ("tools", key, ...)
#   ("call", method, value, arguments) a string method
#   ("item", value, key)               an item; a slice is ("slice", start, stop, step)
#   ("json", value, options)           as the filter `tojson` writes it
#   ("constant", text)                 the same for every conversation of which the guards hold
Value = tuple[Any, ...]

# Steps that one rendering may take: a loop's turn, a call, a kilobyte that is joined.
MAX_STEPS = 4_000_000
# And seconds of the processor.
MAX_SECONDS = 5.0
# Characters that a text may have on its way.
MAX_TEXT = 1 << 24
# The reason of what goes beyond.
TOO_MUCH = "the chat template asks for too much"


class Trace:
    """What one rendering asked about the conversation's texts.

    `guards`: (question, value, arguments) → answer. `opaque`: something was done with a text that
    the guards do not tell.
    """

    __slots__ = ("ask", "begun", "guards", "opaque", "steps")

    def __init__(self) -> None:
        self.guards: dict[tuple[str, Value, tuple[Any, ...]], Any] = {}
        self.opaque = False
        self.renew()

    def renew(self) -> None:
        """Count anew, for another text."""
        self.steps = MAX_STEPS
        self.ask = max(0, MAX_STEPS - 1000)  # at how many left it asks for the time
        self.begun = thread_time()

    def spend(self, steps: int) -> None:
        """Count steps; raises RowError when there have been too many, or for too long.

        No template that is meant well is near either bound, so what is refused does not depend on
        the machine.
        """
        self.steps -= steps
        if self.steps < self.ask:
            self.ask = max(0, self.steps - 1000)
            if self.steps < 0 or thread_time() - self.begun > MAX_SECONDS:
                refuse_work("takes too long")


def bounded(text: str) -> str:
    """The text; raises RowError where it is too long."""
    if str.__len__(text) > MAX_TEXT:
        refuse_work(f"writes more than {MAX_TEXT} characters")
    return text


def refuse_work(what: str) -> NoReturn:
    """Refuse a template that would fill the memory or run for ever."""
    raise RowError(TOO_MUCH, f"it {what}")


class _Now(threading.local):
    trace = Trace()


_now = _Now()


class tracing:
    """`with tracing() as trace:` what is done with Traced strings meanwhile goes into `trace`."""

    __slots__ = ("_before",)

    def __enter__(self) -> Trace:
        self._before = _now.trace
        _now.trace = Trace()
        return _now.trace

    def __exit__(self, *_: object) -> None:
        _now.trace = self._before


def current_trace() -> Trace:
    """The trace of the rendering that is under way in this thread."""
    return _now.trace


class Mark(str):
    """An empty text that says where it stands in what is written.

    `kind` "message": from here on message `number` is written, in loop `loop`; "end": that loop is
    over; "generation" and "endgeneration": the tags of that name.
    """

    __slots__ = ("kind", "loop", "number")
    kind: str
    number: int
    loop: int

    def __new__(cls, kind: str, number: int = ELSEWHERE, loop: int = 0) -> Mark:
        """Make the mark."""
        mark = str.__new__(cls, "")
        mark.kind, mark.number, mark.loop = kind, number, loop
        return mark

    def __str__(self) -> str:
        return self


def single(text: str, origin: Origin, value: Value | None) -> Traced:
    """A text that comes from one place; `value` None where it cannot be computed again."""
    traced = str.__new__(Traced, text)
    traced._origin, traced._value, traced._pieces = origin, value, None
    return traced


def join(parts: Iterable[str]) -> str:
    """All parts joined; traced where one of them is, or is a mark."""
    parts = list(parts)
    text = "".join(parts)
    _now.trace.spend(1 + (len(bounded(text)) >> 10))
    pieces: list[str] = []
    is_plain = True
    for part in parts:
        if type(part) is str:
            if part:
                pieces.append(part)
        elif type(part) is Traced:
            is_plain = False
            if part._pieces is None:
                pieces.append(part)
            else:
                pieces += part._pieces
        else:
            is_plain = is_plain and type(part) is not Mark
            pieces.append(part)
    if is_plain:
        return text
    if len(pieces) == 1 and type(pieces[0]) is Traced:
        return pieces[0]
    return _composite(text, pieces)


def _composite(text: str, pieces: list[str]) -> Traced:
    traced = str.__new__(Traced, text)
    traced._origin, traced._value, traced._pieces = (ELSEWHERE, ""), None, pieces
    return traced


def pieces_of(text: str) -> Sequence[str]:
    """What a text consists of: plain strings are the template's, Traced ones the conversation's."""
    if type(text) is Traced and text._pieces is not None:
        return text._pieces
    return (text,)


def mixed(text: str, sources: Sequence[Traced], *, tangled: bool = False) -> Traced:
    """A text made of `sources` in a way that is not modelled: all of it counts as theirs.

    `tangled`: the template's own text went into it too.
    """
    _now.trace.opaque = True
    pieces = [piece for source in sources for piece in pieces_of(source)]
    if tangled or any(piece and type(piece) is str for piece in pieces):
        return single(text, TANGLED, None)
    origins = [piece._origin for piece in pieces if type(piece) is Traced]
    if len({number for number, _ in origins}) > 1:
        return single(text, MIXED, None)
    return single(text, max(origins, default=(ELSEWHERE, "")), None)


def traced_in(value: Any) -> list[Traced]:
    """The Traced strings in a value, in lists and dicts too."""
    if type(value) is Traced:
        return [value]
    if not isinstance(value, (Mapping, list, tuple, set, frozenset, Iterator)):
        return []
    _now.trace.spend(1)  # lists may hold each other many times
    if isinstance(value, Mapping):
        if type(value) is Data:
            return [single("", value._origin, None)]
        return [t for pair in value.items() for item in pair for t in traced_in(item)]
    if isinstance(value, Iterator):  # what it yields is not known before it is used up
        return [single("", (ELSEWHERE, ""), None)]
    return [t for item in value for t in traced_in(item)]


def plain_data(value: Any) -> Any:
    """The value as it is without tracing."""
    if isinstance(value, str):
        return plain(value)
    if type(value) in (Data, Items):
        return value._content
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(plain_data, value))
    if isinstance(value, dict):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    return value


def _known_argument(argument: Any) -> Any:
    """A text that is the same for every conversation counts as the template's."""
    if type(argument) is Traced and argument._value is not None:
        kind, *rest = argument._value
        return rest[0] if kind == "constant" else argument
    return argument


_CONSTANT = {str, int, bool, type(None)}


def _constant(arguments: tuple[Any, ...]) -> bool:
    for argument in arguments:
        if type(argument) is tuple:
            if not _constant(argument):
                return False
        elif type(argument) not in _CONSTANT:
            return False
    return True


class Traced(str):
    """A text with its pieces: one that comes from one place, or several and plain ones between."""

    __slots__ = ("_origin", "_pieces", "_value")
    _origin: Origin
    _value: Value | None
    _pieces: list[str] | None

    def __new__(cls, text: str = "") -> Traced:
        """Text of unknown origin; see `single` and `join`."""
        return mixed(str.__str__(text), [])

    def __str__(self) -> str:
        return self

    # -- joining -------------------------------------------------------------------------------

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return join((self, other))

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return join((other, self))

    def join(self, parts: Iterable[Any]) -> str:
        """See str."""
        return join_with(self, parts)

    def __mod__(self, values: Any) -> str:
        return formatted(self, values)

    def __rmod__(self, pattern: str) -> str:
        return formatted(pattern, self)

    def __mul__(self, times: Any) -> str:
        return mixed(str.__mul__(self, times), [self])

    __rmul__ = __mul__

    # -- questions -----------------------------------------------------------------------------

    def _ask(self, question: str, arguments: tuple[Any, ...], answer: Any) -> Any:
        trace = _now.trace
        value = self._value
        arguments = tuple(map(_known_argument, arguments)) if question != "same" else arguments
        if value is not None and value[0] == "constant" and _constant(arguments):
            return answer
        if value is not None and (question == "same" or _constant(arguments)):
            trace.guards[question, value, arguments] = answer
        else:
            trace.opaque = True
        return answer

    def __bool__(self) -> bool:
        if self._pieces is None:
            return bool(self._ask("bool", (), str.__len__(self) > 0))
        return any(str.__len__(p) > 0 for p in self._pieces if type(p) is not Traced) or any(
            bool(p) for p in self._pieces if type(p) is Traced
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        answer = str.__eq__(self, other)
        if type(other) is Traced and other._value is not None and self._pieces is None:
            return bool(self._ask("same", other._value, answer))
        return bool(self._ask("__eq__", (other,), answer))

    def __ne__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        return not self.__eq__(other)

    def __hash__(self) -> int:
        if self._value is None or self._value[0] != "constant":
            _now.trace.opaque = True
        return str.__hash__(self)

    def __contains__(self, part: Any) -> bool:
        if self._pieces is not None and type(part) is str:
            if any(part in piece for piece in self._pieces if type(piece) is str):
                return True  # whatever the conversation says
            if not _straddles(self._pieces, part):
                return any(part in piece for piece in self._pieces if type(piece) is Traced)
        return bool(self._ask("__contains__", (part,), str.__contains__(self, part)))

    def __len__(self) -> int:
        _now.trace.opaque = True
        return str.__len__(self)

    def longer_than(self, length: int) -> bool:
        """Whether there are more characters; asks only that."""
        if length == 0:
            return bool(self)
        return bool(self._ask("longer", (length,), str.__len__(self) > length))

    def __repr__(self) -> str:
        _now.trace.opaque = True
        return str.__repr__(self)

    def __format__(self, how: str) -> str:
        _now.trace.opaque = True
        return str.__format__(self, how)

    # -- parts ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        _now.trace.opaque = True
        for place in range(str.__len__(self)):
            yield self._slice(place, place + 1)

    def __getitem__(self, key: Any) -> str:
        try:
            text = str.__getitem__(self, key)
        except (IndexError, TypeError):
            _now.trace.opaque = True
            raise
        if isinstance(key, slice):
            if self._pieces is not None and key.step in (None, 1):
                start, stop, _ = key.indices(str.__len__(self))
                return self._slice(start, max(start, stop))
            key = ("slice", key.start, key.stop, key.step)
        elif self._pieces is None:  # that there is such a character
            self._ask("__len__", (), str.__len__(self))
        if self._pieces is not None:
            return mixed(text, [self])
        return self._made(text, ("item", self._value, key), key if isinstance(key, tuple) else ())

    def _made(self, text: str, value: Value, arguments: tuple[Any, ...]) -> Traced:
        if self._value is not None and self._value[0] == "constant" and _constant(arguments):
            return single(text, self._origin, ("constant", text))
        if self._value is None or not _constant(arguments):
            _now.trace.opaque = True
            return single(text, self._origin, None)
        return single(text, self._origin, value)

    def _slice(self, start: int, stop: int) -> str:
        """The characters from start to stop, each of where it comes from."""
        _now.trace.opaque = True
        parts: list[str] = []
        end = 0
        for piece in pieces_of(self):
            begin, end = end, end + str.__len__(piece)
            text = str.__getitem__(piece, slice(max(start - begin, 0), max(stop - begin, 0)))
            if type(piece) is Traced:
                parts.append(single(text, piece._origin, None))
            elif type(piece) is Mark or text:
                parts.append(piece if type(piece) is Mark else text)
        return join(parts)

    def _strip(self, method: str, chars: str | None) -> str:
        text = getattr(str, method)(self, chars)
        if type(chars) is Traced:
            return mixed(text, [self, chars])
        if self._pieces is None:
            arguments = () if chars is None else (chars,)
            return self._made(text, ("call", method, self._value, arguments), arguments)
        pieces = list(self._pieces)
        for end, own in ((0, "lstrip"), (-1, "rstrip")):
            if method not in (own, "strip"):
                continue
            rest: list[str] = []  # marks, which stay where they are
            while pieces:
                piece = pieces.pop(end)
                if type(piece) is not Mark:
                    piece = getattr(piece, own)(chars)
                rest.append(piece)
                if piece:  # a traced one is asked, so that the answer is known to hold
                    break
            pieces = rest + pieces if end == 0 else pieces + rest[::-1]
        return join(pieces)

    def replace(self, old: str, new: str, count: int = -1, /) -> str:  # type: ignore[override]
        """See str."""
        return replaced(self, old, new, count)

    def encode(self, *_: Any) -> bytes:
        """Bytes cannot be traced."""
        raise RowError("cannot follow the chat template", "it encodes a text")

    def strip(self, chars: str | None = None, /) -> str:
        """See str."""
        return self._strip("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        """See str."""
        return self._strip("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> str:
        """See str."""
        return self._strip("rstrip", chars)

    def _split(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[str]:
        texts = getattr(str, method)(self, *arguments, **options)
        if (
            self._pieces is not None
            and method == "split"
            and len(arguments) == 1
            and type(arguments[0]) is str
            and not _straddles(self._pieces, arguments[0])
        ):
            return _split_pieces(self._pieces, arguments[0])
        if options or self._pieces is not None or not _constant(arguments):
            _now.trace.opaque = True
            made: list[str] = []
            end = 0
            for text in texts:  # what is cut out stands between them, in order
                start = str.find(self, text, end)
                end = start + str.__len__(text)
                made.append(self._slice(start, end))
            return made
        value = None
        if self._value is not None and self._value[0] == "constant":
            return [single(text, self._origin, ("constant", text)) for text in texts]
        if self._value is None:
            _now.trace.opaque = True
        else:
            value = ("call", method, self._value, arguments)
            _now.trace.guards["__len__", value, ()] = len(texts)
        return [
            single(text, self._origin, None if value is None else ("item", value, place))
            for place, text in enumerate(texts)
        ]

    def split(self, *arguments: Any, **options: Any) -> list[str]:
        """See str."""
        return self._split("split", arguments, options)

    def rsplit(self, *arguments: Any, **options: Any) -> list[str]:
        """See str."""
        return self._split("rsplit", arguments, options)

    def splitlines(self, *arguments: Any, **options: Any) -> list[str]:
        """See str."""
        return self._split("splitlines", arguments, options)

    def partition(self, sep: str) -> tuple[str, str, str]:
        """See str."""
        return cast("tuple[str, str, str]", tuple(self._split("partition", (sep,), {})))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        """See str."""
        return cast("tuple[str, str, str]", tuple(self._split("rpartition", (sep,), {})))


def _straddles(pieces: list[str], part: str) -> bool:
    """Whether `part` might stand across the end of one piece and the start of the next."""
    inner = [piece for piece in pieces if type(piece) is not Mark]
    for left, right in itertools.pairwise(inner):
        if type(left) is Traced and type(right) is Traced:
            return True
        for length in range(1, len(part)):
            if type(left) is str and (left.endswith(part[:length]) or left in part):
                return True
            if type(right) is str and (right.startswith(part[length:]) or right in part):
                return True
    return False


def _split_pieces(pieces: list[str], separator: str) -> list[str]:
    """The pieces of a text, split at a separator that never stands across two of them."""
    made: list[list[str]] = [[]]
    for piece in pieces:
        first, *others = [piece] if type(piece) is Mark else piece.split(separator)
        made[-1].append(first)
        made += ([other] for other in others)
    return [join(parts) for parts in made]


def replaced(text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace(old, new, count)`; what `new` brings in is of where it comes from."""
    traces = type(text) is Traced or type(new) is Traced
    if not traces and type(old) is not Traced:
        return text.replace(old, new, count)
    if old and count == -1 and type(old) is str:
        if type(text) is Traced and type(new) is str and (len(new) < 2 or new.isspace()):
            if text._pieces is None:
                return text._made(
                    str.replace(text, old, new),
                    ("call", "replace", text._value, (old, new)),
                    (old, new),
                )
            if not _straddles(text._pieces, old):
                return join(piece.replace(old, new) for piece in text._pieces)
        return join_with(new, text.split(old))
    sources = traced_in([text, old, new])
    tangled = any(t and type(t) is str for t in (text, new))
    return mixed(str.replace(plain(text), plain(old), plain(new), count), sources, tangled=tangled)


def _question(name: str) -> Any:
    method = getattr(str, name)

    def ask(self: Traced, *arguments: Any) -> Any:
        return self._ask(name, arguments, method(self, *arguments))

    ask.__name__ = name
    return ask


def _change(name: str) -> Any:
    method = getattr(str, name)

    def change(self: Traced, *arguments: Any, **options: Any) -> str:
        text = method(self, *arguments, **options)
        if name in _BY_CHARACTER and self._pieces is not None and "Σ" not in plain(self):
            return join(getattr(piece, name)() for piece in self._pieces)
        if options or self._pieces is not None:
            return mixed(text, [self, *traced_in(arguments)])
        return self._made(text, ("call", name, self._value, arguments), arguments)

    change.__name__ = name
    return change


QUESTIONS = (
    "startswith",
    "endswith",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
)
CHANGES = (
    "removeprefix",
    "removesuffix",
    "lower",
    "upper",
    "title",
    "capitalize",
    "casefold",
    "swapcase",
    "expandtabs",
    "center",
    "ljust",
    "rjust",
    "zfill",
)
# These make of every character by itself what they make of it in a text (but for a final sigma).
_BY_CHARACTER = ("upper", "lower", "casefold")
SPLITS = ["split", "rsplit", "splitlines", "partition", "rpartition"]
STRIPS = ["strip", "lstrip", "rstrip"]
for _name in QUESTIONS:
    setattr(Traced, _name, _question(_name))
for _name in CHANGES:
    setattr(Traced, _name, _change(_name))


def plain(text: str) -> str:
    """The text as a str that is nothing else."""
    return str.__str__(text)


def join_with(separator: str, parts: Iterable[Any]) -> str:
    """`separator.join(parts)`, each character of where it comes from."""
    items = list(parts)
    for item in items:
        if not isinstance(item, str):
            return separator.join(items)  # raises what str raises
    length = sum(map(str.__len__, items)) + str.__len__(separator) * len(items)
    if length > 2 * MAX_TEXT:
        refuse_work(f"joins {length} characters")
    between: list[str] = []
    for item in items:
        between += (separator, item)
    return join(between[1:])


def formatted(pattern: str, values: Any) -> str:
    """`pattern % values`; exact where a plain pattern has no other fields than `%s`."""
    given = values if isinstance(values, tuple) else (values,)
    if type(pattern) is str and not isinstance(values, Mapping):
        parts = pattern.split("%s")
        if len(parts) == len(given) + 1 and not any("%" in part for part in parts):
            texts = [value if type(value) is Traced else str(value) for value in given]
            if not traced_in([v for v in given if not isinstance(v, str)]):
                filled = [piece for pair in zip(parts, texts, strict=False) for piece in pair]
                return join([*filled, parts[-1]])
    sources = traced_in([pattern, *(values.values() if isinstance(values, Mapping) else given)])
    text = plain(pattern) % plain_data(values)
    return mixed(text, sources, tangled=True) if sources else text


class Data(dict[Any, Any]):
    """An object of the conversation (a tool, a call's arguments), traced as a whole.

    Written as JSON it is one piece of text. To look into it is to ask for its structure: what its
    keys are, and what its numbers.
    """

    __slots__ = ("_content", "_filled", "_origin", "_value")

    def __init__(self, content: Mapping[str, Any], origin: Origin, value: Value) -> None:
        super().__init__()
        self._content, self._origin, self._value, self._filled = content, origin, value, False

    @classmethod
    def known(
        cls, content: Mapping[str, Any], origin: Origin, value: Value, items: Mapping[Any, Any]
    ) -> Data:
        """An object with its items, of which the structure is known."""
        made = cls(content, origin, value)
        made._filled = True
        dict.update(made, items)
        return made

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            _now.trace.guards["structure", self._value, ()] = structure(self._content)
            dict.update(self, _items_of(self._content, self._origin, self._value))

    def __bool__(self) -> bool:
        _now.trace.guards["bool", self._value, ()] = bool(self._content)
        return bool(self._content)


def structure(value: Any) -> Any:
    """All of a value but its texts."""
    if isinstance(value, str):
        return str
    if isinstance(value, Mapping):
        return tuple((key, structure(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [structure(item) for item in value]
    return type(value), repr(value)


def _items_of(content: Mapping[str, Any], origin: Origin, value: Value) -> dict[Any, Any]:
    return {
        single(key, origin, ("constant", key)) if isinstance(key, str) else key: _inner(
            item, origin, ("item", value, key)
        )
        for key, item in content.items()
    }


def _inner(item: Any, origin: Origin, value: Value) -> Any:
    """What stands in an object of which the structure was asked."""
    if isinstance(item, str):
        return single(plain(item), origin, value)
    if isinstance(item, Mapping):
        return Data.known(item, origin, value, _items_of(item, origin, value))
    if isinstance(item, (list, tuple)):
        inner = [_inner(each, origin, ("item", value, n)) for n, each in enumerate(item)]
        return Items(inner, item, origin, value)
    return item


class Items(list[Any]):
    """A list of the conversation; written as JSON it is one piece of text."""

    __slots__ = ("_content", "_origin", "_value")

    def __init__(
        self, items: Iterable[Any], content: Sequence[Any], origin: Origin, value: Value
    ) -> None:
        super().__init__(items)
        self._content, self._origin, self._value = content, origin, value


def _looking(name: str) -> Any:
    method = getattr(dict, name)

    def look(self: Data, *arguments: Any) -> Any:
        for each in (self, *arguments):
            if type(each) is Data:
                each._fill()
        return method(self, *arguments)

    look.__name__ = name
    return look


for _name in (
    "__getitem__",
    "__contains__",
    "__iter__",
    "__len__",
    "__eq__",
    "__ne__",
    "__repr__",
    "__or__",
    "__ror__",
    "__reversed__",
    "get",
    "items",
    "keys",
    "values",
    "copy",
):
    setattr(Data, _name, _looking(_name))


def wrapped(value: Any, origin: Origin) -> Any:
    """Plain data with every text in it traced, keys too."""
    if isinstance(value, str):
        return single(plain(value), origin, None)
    if isinstance(value, Mapping):
        return {wrapped(key, origin): wrapped(item, origin) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [wrapped(item, origin) for item in value]
    return value
