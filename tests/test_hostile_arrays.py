"""Arrays and numbers that no careful caller gives, in every place of every verb that takes one: all
implementations refuse them alike, or come to the same, and none of them goes beyond its memory.

What each verb refuses by name is shown in its own test; here the hostile values are a table, and so
are the places.
"""

import threading
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest

import agree
import turnpack as tp
from turnpack import kernels

MAX = 2**63 - 1
MIN = -(2**63)


def changed(at, value):
    def change(array):
        array = array.copy()
        array.reshape(-1)[at] = value
        return array

    return change


# What is done to an array of int64, whatever it means. Its type, its layout, what it says.
TYPES = {
    "int32": lambda a: a.astype(np.int32),
    "int16": lambda a: a.astype(np.int16),
    "uint64": lambda a: a.astype(np.uint64),
    "float64": lambda a: a.astype(np.float64),
    "bool": lambda a: a.astype(bool),
    "object": lambda a: a.astype(object),
    "strings": lambda a: a.astype(str),
    "times": lambda a: a.astype("M8[s]"),
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "a list": lambda a: a.tolist(),
    "a list of floats": lambda a: a.astype(float).tolist(),
    "a list with 2**63": lambda a: [2**63, *a.tolist()] if a.ndim == 1 else [[2**63, 0]],
    "a range": lambda a: range(len(a)),
    "None": lambda a: None,
    "bytes": lambda a: a.tobytes(),
    "a memoryview": lambda a: memoryview(a),
    "a masked array": lambda a: np.ma.masked_array(a, a == 1),
    "a structure": lambda a: a.view([("x", np.int64)]),
}
LAYOUTS = {
    "one dimension more": lambda a: a[None],
    "no dimension": lambda a: np.int64(1) * np.ones((), np.int64),
    "three columns": lambda a: np.zeros((len(a), 3), np.int64),
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards twice": lambda a: a[::-1].copy()[::-1],
    "not aligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.int64),
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.int64).reshape(a.shape),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "empty": lambda a: a[:0],
    "one short": lambda a: a[:-1],
    "one too many": lambda a: np.concatenate([a, a[-1:]]),
}
VALUES = {
    f"{value} {where}": changed(at, value)
    for value in (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**62, MAX - 1, MAX, MIN, MIN + 1)
    for where, at in (("first", 0), ("second", 1), ("last", -1))
}
HOSTILE = TYPES | LAYOUTS | VALUES

IDS = np.array([5, 6, 7, 8, 9], np.int32)
MASK = np.array([0, 1, 1, 0, 1], np.uint8)
I64 = np.int64
# Of each verb, arguments that are fine, and which of them are arrays of integers.
ROLES = [tp.Role([1], [2], True), tp.Role([3])]
VERBS = {
    "unflatten": ([IDS, np.array([0, 2, 5], I64)], [1]),
    "concat": (
        [
            IDS,
            np.array([0, 2, 2, 5], I64),
            np.array([0, 1, 0], I64),
            np.array([0, 1, 3], I64),
            ROLES,
        ],
        [1, 2, 3],
    ),
    "mask_spans": (
        [
            np.array([[0, 2], [2, 3], [3, 6], [0, 1], [1, 4]], I64),
            np.array([0, 3, 5], I64),
            np.array([[1, 2], [0, 9]], I64),
            np.array([0, 1, 2], I64),
        ],
        [0, 1, 2, 3],
    ),
    "mask_markers": ([IDS, np.array([0, 3, 5], I64), [[5]], [[7]]], [1]),
    "plan": ([np.array([3, 2, 4], I64), 6], [0]),
}
PLACES = [(verb, place) for verb, (_, places) in VERBS.items() for place in places]


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("verb", "place"), PLACES)
def test_every_array_of_integers(verb, place, change):
    arguments = list(VERBS[verb][0])
    arguments[place] = change(arguments[place])
    agree.agreed(verb, *arguments)


IDS_ALIKE = {
    "int64": lambda a: a.astype(np.int64),
    "uint32": lambda a: a.astype(np.uint32),
    "float32": lambda a: a.astype(np.float32),
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "a list": lambda a: a.tolist(),
    "None": lambda a: None,
    "one dimension more": lambda a: a[None],
    "no dimension": lambda a: np.zeros((), a.dtype),
    "strided": lambda a: np.repeat(a, 2)[::2],
    "a masked array": lambda a: np.ma.masked_array(a, a == 5),
    "empty": lambda a: a[:0],
    "one short": lambda a: a[:-1],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype),
}


@pytest.mark.parametrize("change", IDS_ALIKE.values(), ids=IDS_ALIKE)
@pytest.mark.parametrize("verb", ["unflatten", "concat", "mask_markers"])
def test_every_array_of_ids(verb, change):
    ids, *rest = VERBS[verb][0]
    agree.agreed(verb, change(ids), *rest)


NUMBERS = [
    -1,
    0,
    1,
    2**31,
    MAX,
    MAX + 1,
    MIN,
    MIN - 1,
    1.0,
    "8",
    True,
    None,
    np.int32(3),
    np.ones(1),
]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_every_number(value):
    lengths = np.array([3, 2, 4])
    agree.agreed("plan", lengths, value)
    for strategy in ("best_fit", "first_fit", "in_order", value):
        agree.agreed("plan", lengths, 8, strategy=strategy)
        for name in ("align", "max_rows"):
            agree.agreed("plan", lengths, 8, strategy=strategy, **{name: value})
            agree.agreed("plan", lengths, value, strategy=strategy, **{name: value})
    for name in ("capacity", "window", "align", "max_rows"):
        settings = {"capacity": 8, "window": 4, name: value}
        agree.agreed_by("Planner", lambda planner, settings=settings: bins(planner(**settings)))
    tokens, plan, _ = nouns()
    agree.agreed("pack", tokens, plan, pad_id=value)
    agree.agreed("pack", tokens, plan, layout=value)


def bins(planner):
    made = [planner.add([1, 2, 1]), planner.add([1, 1]), planner.flush()]
    return [each.rows.tolist() for each in made]


def nouns():
    tokens = tp.Tokens(IDS.copy(), MASK.copy(), np.array([0, 2, 3, 5], I64))
    plan = tp.Plan(np.array([2, 0, 1], I64), np.array([0, 2, 3], I64), np.array([4, 1], I64), 6)
    return tokens, plan, kernels.pack(tokens, plan)


NOUNS = [
    *(("pack", "tokens", name) for name in ("offsets", "source")),
    *(("pack", "plan", name) for name in ("rows", "offsets", "fill")),
    *(("unpack", "packed", name) for name in ("rows", "bin_offsets", "cu_seqlens", "source")),
]


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(("verb", "noun", "name"), NOUNS)
def test_a_noun_that_was_written_to_after_it_was_made(verb, noun, name, change):
    """What a noun checks when it is made, a verb does not take on trust."""
    tokens, plan, packed = nouns()
    array = getattr({"tokens": tokens, "plan": plan, "packed": packed}[noun], name)
    array[:] = change(array)
    if verb == "unpack":
        agree.agreed("unpack", packed)
        return
    for layout in ("rows", "flat"):
        agree.agreed("pack", tokens, plan, layout=layout)


@pytest.mark.parametrize("offsets", [[0, 3, 1, 5], [0, -1, 5, 5], [3, 0, 5, 5], [0, 2, 9, 5]])
@pytest.mark.parametrize("kind", [pa.ListArray, pa.LargeListArray])
def test_arrow_lists_that_arrow_lets_pass(kind, offsets):
    """Arrow's validate() takes offsets that fall where the last is within the values."""
    width = np.int32 if kind is pa.ListArray else np.int64
    buffers = [None, pa.py_buffer(np.array(offsets, width))]
    type_ = pa.list_(pa.int32()) if kind is pa.ListArray else pa.large_list(pa.int32())
    lists = pa.Array.from_buffers(type_, 3, buffers, children=[pa.array(IDS)])
    outcome = agree.agreed("flatten", lists)
    assert outcome[0] is ValueError


@pytest.mark.parametrize("strategy", ["best_fit", "in_order"])
@pytest.mark.parametrize("capacity", [4096, 1 << 40])
@pytest.mark.parametrize("bad", [-1, 0, -(1 << 62), (1 << 63) - 1])
def test_a_bad_length_comes_and_goes_during_a_plan(bad, capacity, strategy):
    """It was there or it was not; the error says what was there."""
    lengths = np.full(60_000, 7)
    over = threading.Event()

    def write():
        while not over.is_set():
            lengths[-1] = bad
            lengths[-1] = 7

    writer = threading.Thread(target=write)
    writer.start()
    told = set()
    try:
        for _ in range(100):
            try:
                assert len(tp.plan(lengths, capacity, strategy=strategy).rows) == len(lengths)
            except ValueError as error:
                told.add(str(error))
    finally:
        over.set()
        writer.join()
    for error in told:
        assert error.startswith("row 59999 ")
        assert " 7 tokens" not in error


@pytest.mark.parametrize(
    "verb",
    [
        *("plan", "plan first_fit", "plan in_order", "plan by digits"),
        *("planner", "pack", "unpack", "concat", "spans", "markers"),
    ],
)
def test_another_thread_writes_during_a_call(verb):
    """A result may be of any mixture then, or an error; memory stays whole."""
    rows = 2000
    lengths = np.random.default_rng(0).integers(1, 40, rows)
    offsets = agree.ragged(lengths)
    tokens = tp.Tokens(np.zeros(offsets[-1], np.int32), np.zeros(offsets[-1], np.uint8), offsets)
    long = lengths << 24
    plan = tp.plan(lengths, 64)
    packed = tp.pack(tokens, plan)
    turns = np.arange(rows + 1)
    roles = np.zeros(rows, np.int64)
    spans = np.tile([[0, 9]], (rows, 1))
    extents = np.tile([[0, 1]], (offsets[-1], 1))
    calls = {
        "plan": ([lengths], lambda: tp.plan(lengths, 64)),
        "plan first_fit": ([lengths], lambda: tp.plan(lengths, 64, strategy="first_fit")),
        "plan in_order": ([lengths], lambda: tp.plan(lengths, 64, strategy="in_order")),
        "plan by digits": ([long], lambda: tp.plan(long, 1 << 40)),
        "planner": ([lengths], lambda: tp.Planner(64, window=256).add(lengths)),
        "pack": ([offsets, plan.rows, plan.offsets, plan.fill], lambda: tp.pack(tokens, plan)),
        "unpack": (
            [packed.rows, packed.bin_offsets, packed.cu_seqlens],
            lambda: tp.unpack(packed),
        ),
        "concat": (
            [offsets, roles, turns],
            lambda: kernels.concat(tokens.input_ids, offsets, roles, turns, ROLES),
        ),
        "spans": (
            [extents, offsets, spans, turns],
            lambda: kernels.mask_spans(extents, offsets, spans, turns),
        ),
        "markers": (
            [offsets],
            lambda: kernels.mask_markers(tokens.input_ids, offsets, [[0]], [[1]]),
        ),
    }
    arrays, call = calls[verb]
    kept = [array.copy() for array in arrays]
    over = threading.Event()

    def write():
        random = np.random.default_rng(1)
        while not over.is_set():
            for array, right in zip(arrays, kept, strict=True):
                places = random.integers(0, len(array), 8)
                array[places] = random.choice([MAX, MIN, -1, 2**40, 10**6])
                array[:] = right

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            with suppress(IndexError, TypeError, ValueError):
                call()
    finally:
        over.set()
        writer.join()
    for array, right in zip(arrays, kept, strict=True):
        array[:] = right
    assert agree.outcome(call)[0] == "result"
