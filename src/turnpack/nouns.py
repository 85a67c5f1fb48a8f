"""The nouns: what is passed from one stage to the next, and the invariants each one keeps.

Text nouns first (Conversation, Rendered), array nouns after them (Tokens, Plan, Packed).
Nothing here reads files, knows a template or computes a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from reprlib import repr as short
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import _checks, _ingest

ROLES = ("system", "user", "assistant", "tool")
_ROLES = frozenset(ROLES)

Message = Mapping[str, Any]


class RowError(ValueError):
    """A conversation that cannot become a training row.

    `reason` is a short, stable phrase that reports count by (`unknown role`); `detail` names the
    values at hand (`message 2 has role 'bot'`); `place`, once known, names the conversation. As
    text it reads `place: reason: detail`.
    """

    def __init__(self, reason: str, detail: str = "", place: str = "") -> None:
        super().__init__(": ".join(part for part in (place, reason, detail) if part))
        self.reason = reason
        self.detail = detail
        self.place = place

    def at(self, place: object) -> RowError:
        """The same error, with the place of its conversation."""
        return RowError(self.reason, self.detail, str(place))

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str]]:
        return type(self), (self.reason, self.detail, self.place)


class Source(NamedTuple):
    """Where a conversation was read: a file and, in it, a line (from 1) or an index (from 0)."""

    file: str
    line: int | None = None
    index: int | None = None  # type: ignore[assignment]  # hides a method of tuples

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        return self.file if self.index is None else f"{self.file}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was left out: where it stood, why, and the row itself as far as it was read."""

    source: Source | None
    reason: str
    detail: str
    row: Any

    def __str__(self) -> str:
        text = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return text if self.source is None else f"{self.source}: {text}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, and the tools the assistant may call.

    A message is a dict with `role` (one of `ROLES`) and `content` (str), and where it applies
    `input` (str, Alpaca's second user text), `train` (bool: False masks the message), `weight`
    (finite, not negative: scales its loss, 0 masks it), `tool_calls` (list, OpenAI's form with
    `arguments` as an object), `reasoning_content` (str), `name`, `tool_call_id`.

    Raises RowError where a message is none of that.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    source: Source | None = None
    row: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not is_list(self.messages):
            raise RowError("wrong type", f"messages is {kind(self.messages)}, not a list")
        if not self.messages:
            raise RowError("empty conversation")
        number = _ingest.first_unusual(self.messages, _ROLES, 0)
        while number < len(self.messages):
            _check_message(self.messages[number], number)
            number = _ingest.first_unusual(self.messages, _ROLES, number + 1)
        if self.tools is not None and not is_list(self.tools):
            raise RowError("wrong type", f"tools is {kind(self.tools)}, not a list")


class Segment(NamedTuple):
    """A stretch of rendered text.

    `target`: the model must produce it. `control`: it spells exactly one added token of the
    tokenizer; otherwise it is ordinary text, in which no added token is recognised. `weight`
    scales the loss of a target.
    """

    text: str
    target: bool
    control: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its template writes it.

    `segments`: in order; two ordinary neighbours differ in target or weight. `warnings`: short,
    stable phrases about what the template could not do for this conversation.
    """

    segments: Sequence[Segment]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        before: Segment | None = None
        for segment in self.segments:
            if not segment.text:
                raise ValueError("a segment is empty")
            if before is not None and not before.control and before[1:] == segment[1:]:
                raise ValueError(f"{before.text!r} and {segment.text!r} are one run of text")
            before = segment

    @property
    def text(self) -> str:
        """All segments joined: what the template writes for the whole conversation."""
        return "".join(segment.text for segment in self.segments)


# Loss weights are float32: none becomes 0 or infinite there.
_SMALLEST, _LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
_STRINGS = ("input", "reasoning_content", "name", "tool_call_id")


def is_list(value: Any) -> bool:
    """Whether a JSON value is a list, or what stands for one."""
    if type(value) is list or type(value) is str:
        return type(value) is list
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _check_message(message: Any, number: int) -> None:
    if not isinstance(message, Mapping):
        raise RowError("wrong type", f"message {number} is {kind(message)}, not an object")
    role = message.get("role")
    if role not in ROLES:
        if isinstance(role, str):
            raise RowError("unknown role", f"message {number} has role {short(role)}")
        raise RowError("wrong type", f"message {number}: role is {kind(role)}, not a string")
    content = message.get("content")
    if type(content) is not str:
        raise RowError(
            "wrong type", f"message {number} ({role}): content is {kind(content)}, not a string"
        )
    _check_unicode(content, number, "content")
    if len(message) == 2:
        return
    for key in _STRINGS:
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError("wrong type", f"message {number}: {key} is {kind(value)}, not a string")
        if value is not None:
            _check_unicode(value, number, key)
    train = message.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError("wrong type", f"message {number}: train is {kind(train)}, not a boolean")
    weight = message.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise RowError(
                "wrong type", f"message {number}: weight is {kind(weight)}, not a number"
            )
        if weight != 0 and not _SMALLEST <= weight <= _LARGEST:
            raise RowError(
                "wrong type", f"message {number}: weight is {short(weight)}, not in float32's range"
            )
    calls = message.get("tool_calls")
    if calls is not None and not (
        is_list(calls) and all(isinstance(call, Mapping) for call in calls)
    ):
        raise RowError(
            "wrong type", f"message {number}: tool_calls is {kind(calls)}, not a list of objects"
        )


def _check_unicode(text: str, number: int, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "invalid Unicode",
            f"message {number}: {key} has a lone surrogate at character {error.start}",
        ) from None


_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def kind(value: Any) -> str:
    """What a JSON value is called in an error message."""
    return _KINDS.get(type(value), type(value).__name__)


class Role(NamedTuple):
    """What `concat` puts around a turn of one role, and what of it is a target.

    `prefix`, `suffix`: ids before and after the turn's own. `target`: the turn's ids are targets.
    `suffix_target`: the suffix is one; None says the same as `target` (a stop token is learned
    where the answer is). A prefix never is.
    """

    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    target: bool = False
    suffix_target: bool | None = None


class _Arrays:
    """Equality by value and a short repr, for nouns that hold arrays."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            _same(getattr(self, item.name), getattr(other, item.name)) for item in fields(self)
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tokens(_Arrays):
    """Tokenized rows, back to back: row r is `input_ids[offsets[r]:offsets[r + 1]]`.

    `input_ids` int32 `[n]`; `loss_mask` uint8 `[n]`, 1 on targets; `offsets` int64 `[rows + 1]`
    (int32 and sequences of int are widened); `source` int64 `[rows]`, which conversation a row came
    from, by default its own number; `loss_weights` float32 `[n]` or None. Arrays are held, not
    copied.

    Raises TypeError for another dtype or layout, ValueError where sizes or offsets disagree.

    >>> Tokens(np.array([7, 8, 9], np.int32), np.array([0, 1, 1], np.uint8), [0, 2, 3])
    Tokens(rows=2, tokens=3, targets=2)
    """

    input_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64] = None  # type: ignore[assignment]
    loss_weights: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _checks.array("input_ids", self.input_ids, np.int32)
        _checks.array("loss_mask", self.loss_mask, np.uint8)
        offsets = _checks.indices("offsets", self.offsets)
        _checks.offsets("offsets", offsets, len(self.input_ids))
        _checks.size("loss_mask", self.loss_mask, len(self.input_ids))
        if self.loss_mask.max(initial=0) > 1:
            at = int((self.loss_mask > 1).argmax())
            raise ValueError(f"loss_mask[{at}] is {self.loss_mask[at]}, not 0 or 1")
        if self.source is None:
            source = np.arange(len(offsets) - 1, dtype=np.int64)
        else:
            source = _checks.indices("source", self.source)
            _checks.size("source", source, len(offsets) - 1)
        if self.loss_weights is not None:
            _checks.array("loss_weights", self.loss_weights, np.float32)
            _checks.size("loss_weights", self.loss_weights, len(self.input_ids))
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "source", source)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, int64 `[rows]`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        targets = int(np.count_nonzero(self.loss_mask))
        return f"Tokens(rows={len(self)}, tokens={len(self.input_ids)}, targets={targets})"

    def _repr_html_(self) -> str:
        from . import picture

        return picture.of_tokens(self)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Put the rows of all parts one after the other, `source` as each has it.

        Where some part has `loss_weights`, the loss mask stands in for those of the others.

        >>> one = Tokens(np.array([7, 8], np.int32), np.array([0, 1], np.uint8), [0, 2])
        >>> Tokens.join([one, one]).offsets.tolist()
        [0, 2, 4]
        """
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(1, np.int64))
        ends = np.cumsum([0] + [len(part.input_ids) for part in parts], dtype=np.int64)
        weights = None
        if any(part.loss_weights is not None for part in parts):
            weights = np.concatenate(
                [
                    part.loss_mask.astype(np.float32)
                    if part.loss_weights is None
                    else part.loss_weights
                    for part in parts
                ]
            )
        return cls(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.loss_mask for part in parts]),
            np.concatenate(
                [ends[:1]]
                + [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
            ),
            np.concatenate([part.source for part in parts]),
            weights,
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Plan(_Arrays):
    """Which rows stand in which bin: those of bin b are `rows[offsets[b]:offsets[b + 1]]`.

    `rows` int64 `[placed]`, row ids in order of placement; `offsets` int64 `[bins + 1]`; `fill`
    int64 `[bins]`, tokens in each bin; `capacity` tokens at most. `plan[a:b]` is the plan of those
    bins, with the row ids as they are.

    Raises TypeError for other dtypes, ValueError for a bin over capacity, a row that stands twice,
    or sizes and offsets that disagree.

    >>> whole = Plan([2, 0, 1], [0, 2, 3], [9, 4], 10)
    >>> whole
    Plan(rows=3, bins=2, capacity=10, utilization=0.650)
    >>> whole[1:]
    Plan(rows=1, bins=1, capacity=10, utilization=0.400)
    """

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    fill: npt.NDArray[np.int64]
    capacity: int

    def __post_init__(self) -> None:
        rows = _checks.indices("rows", self.rows)
        offsets = _checks.indices("offsets", self.offsets)
        fill = _checks.indices("fill", self.fill)
        capacity = _checks.number("capacity", self.capacity)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, less than 1")
        _checks.offsets("offsets", offsets, len(rows))
        _checks.size("fill", fill, len(offsets) - 1)
        for wrong, ending in (
            (fill > capacity, f", more than capacity {capacity}"),
            (fill < 0, ""),
        ):
            if wrong.any():
                at = int(wrong.argmax())
                raise ValueError(f"bin {at} has {fill[at]} tokens{ending}")
        _check_row_ids(rows)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "fill", fill)
        object.__setattr__(self, "capacity", capacity)

    @property
    def num_bins(self) -> int:
        """How many bins there are."""
        return len(self.fill)

    @property
    def utilization(self) -> float:
        """Tokens per cell, `sum(fill) / (num_bins * capacity)`; 0.0 without bins."""
        cells = self.num_bins * self.capacity
        return sum(self.fill.tolist()) / cells if cells else 0.0

    def __len__(self) -> int:
        return self.num_bins

    def __getitem__(self, bins: slice) -> Plan:
        if not isinstance(bins, slice):
            raise TypeError(f"a plan takes a slice of bins, not {type(bins).__name__}")
        start, stop, step = bins.indices(self.num_bins)
        if step != 1:
            raise ValueError(f"a slice of bins has step 1, not {step}")
        offsets = self.offsets[start : max(start, stop) + 1]
        return trusted(
            Plan,
            self.rows[offsets[0] : offsets[-1]],
            offsets - offsets[0],
            self.fill[start : max(start, stop)],
            self.capacity,
        )

    def __repr__(self) -> str:
        return (
            f"Plan(rows={len(self.rows)}, bins={self.num_bins}, capacity={self.capacity}, "
            f"utilization={self.utilization:.3f})"
        )

    def _repr_html_(self) -> str:
        from . import picture

        return picture.of_plan(self)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Packed(_Arrays):
    """Bins of cells, ready for a trainer.

    Cells, all of one dtype, int32 or int64, `[bins, capacity]` (layout "rows") or `[total]` (layout
    "flat", bins back to back without padding):
    `input_ids`; `labels`, unshifted, -100 where no loss is; `position_ids`, from 0 in every
    document and in the padding; `segment_ids`, 1, 2.. in every bin, 0 in padding.

    `rows` int64 `[placed]`: row ids in order of placement; `source` int64 `[placed]`: which
    conversation each came from; `bin_offsets` int64 `[bins + 1]`, into `rows`. `cu_seqlens` int64
    `[segments + 1]`: boundaries over all cells of the documents and of each bin's padding as one
    last segment; none is empty. `max_seqlen`: the longest of these, 0 if there is none.
    `loss_weights` float32 like the cells, or None. `capacity`: tokens a bin may have.

    Raises TypeError for another dtype or layout, ValueError where sizes or offsets disagree.
    """

    input_ids: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    position_ids: npt.NDArray[Any]
    segment_ids: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    bin_offsets: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int64]
    max_seqlen: int
    loss_weights: npt.NDArray[np.float32] | None
    capacity: int

    def __post_init__(self) -> None:
        capacity = _checks.number("capacity", self.capacity)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, less than 1")
        ndim = 1 if getattr(self.input_ids, "ndim", 2) == 1 else 2
        cells = _checks.array("input_ids", self.input_ids, np.int32, np.int64, ndim=ndim)
        for name in CELLS[1:]:
            _checks.array(name, getattr(self, name), cells.dtype, ndim=ndim)
        if self.loss_weights is not None:
            _checks.array("loss_weights", self.loss_weights, np.float32, ndim=ndim)
        for name in ("rows", "source", "bin_offsets", "cu_seqlens"):
            object.__setattr__(self, name, _checks.indices(name, getattr(self, name)))
        _checks.offsets("bin_offsets", self.bin_offsets, len(self.rows))
        shape = cells.shape if ndim == 1 else (self.num_bins, capacity)
        for name in (*CELLS, "loss_weights"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, not {shape}")
        _checks.size("source", self.source, len(self.rows))
        _checks.offsets("cu_seqlens", self.cu_seqlens, cells.size)
        segments = np.diff(self.cu_seqlens)
        if not segments.all():
            raise ValueError(f"segment {int(segments.argmin())} of cu_seqlens is empty")
        longest = int(segments.max(initial=0))
        if _checks.number("max_seqlen", self.max_seqlen) != longest:
            raise ValueError(f"max_seqlen is {self.max_seqlen}, but the longest segment {longest}")
        _check_row_ids(self.rows)
        object.__setattr__(self, "max_seqlen", longest)
        object.__setattr__(self, "capacity", capacity)

    @property
    def num_bins(self) -> int:
        """How many bins there are."""
        return len(self.bin_offsets) - 1

    @property
    def layout(self) -> str:
        """How the cells lie: "rows" `[bins, capacity]` or "flat" `[total]`."""
        return "flat" if self.input_ids.ndim == 1 else "rows"

    def __repr__(self) -> str:
        return (
            f"Packed(rows={len(self.rows)}, bins={self.num_bins}, capacity={self.capacity}, "
            f"layout={self.layout!r}, dtype={self.input_ids.dtype})"
        )

    def _repr_html_(self) -> str:
        from . import picture

        return picture.of_packed(self)


CELLS = ("input_ids", "labels", "position_ids", "segment_ids")

_Noun = TypeVar("_Noun", bound=_Arrays)


def trusted(noun: type[_Noun], *values: Any) -> _Noun:
    """Make an array noun of what a kernel computed, its invariants kept already."""
    made = object.__new__(noun)
    for item, value in zip(fields(made), values, strict=True):
        object.__setattr__(made, item.name, value)
    return made


def _check_row_ids(rows: npt.NDArray[np.int64]) -> None:
    if not len(rows):
        return
    if rows.min() < 0:
        raise ValueError(f"row id {rows.min()} is negative")
    highest = int(rows.max())
    if highest < 16 * len(rows):  # marking what is there is far cheaper than sorting it
        there = np.zeros(highest + 1, np.bool_)
        there[rows] = True
        if np.count_nonzero(there) == len(rows):
            return
    ordered = np.sort(rows)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise ValueError(f"row {ordered[int(twice.argmax())]} is there twice")
