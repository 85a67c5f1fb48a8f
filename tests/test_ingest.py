"""What is asked of every row in C, beside the same in Python."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnpack import _ingest
from turnpack.nouns import Conversation, Source
from turnpack.records import RawRow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)
LEVELS = st.integers(0, 6)


def children(value):
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def depth(value):
    inner = [depth(child) for child in children(value)]
    return isinstance(value, (dict, list)) + max(inner, default=0)


def size(value, levels):
    if isinstance(value, (str, bytes)):
        return len(value)
    return sum(size(child, levels - 1) for child in children(value)) if levels else 0


@given(JSON, LEVELS)
def test_is_nested(value, levels):
    assert _ingest.is_nested(value, levels) == (depth(value) > levels)


@given(st.lists(JSON, max_size=8), st.integers(1, 5), st.integers(0, 40))
def test_rows_are_taken_up_to_a_number_and_a_size(contents, most, most_bytes):
    rows = [RawRow(Source("a", number), content) for number, content in enumerate(contents)]
    left = iter(rows)
    taken, text, known = _ingest.taken(left, most, most_bytes)
    assert [*taken, *left] == rows
    sizes = [size(content, 8) for content in contents]
    whole = len(taken) in (len(rows), most)
    assert len(taken) <= most
    assert sum(sizes[: len(taken) - 1]) <= most_bytes or not taken
    assert whole or sum(sizes[: len(taken)]) > most_bytes
    assert text == sum(sizes[: len(taken)])
    assert known == sum(len(row.content) for row in taken if type(row.content) is bytes)


def test_the_row_of_a_line_is_what_its_classes_make():
    for path in ("a", np.str_("a")):
        made = _ingest.line_row(RawRow, Source, path, 3, b"{}")
        assert made == RawRow(Source("a", 3), b"{}")
        assert (type(made), type(made.source), made.source.index) == (RawRow, Source, None)


@given(st.lists(st.one_of(st.text(), st.text().map(np.str_)), max_size=5))
def test_longest(texts):
    assert _ingest.longest(texts) == max(map(len, texts), default=0)


PLACE = st.none() | st.integers(0, 2**62)


@given(st.lists(st.builds(Source, st.sampled_from(["a", "ä/b", "c:1", "\udcff"]), PLACE, PLACE)))
def test_places_are_numbered_and_spelled(sources):
    numbers = {"a": 7, "ä/b": 1, "c:1": 0, "\udcff": 3}
    files, spelled, offsets = _ingest.places(sources, numbers)
    assert (files.tolist(), files.dtype) == ([numbers[source.file] for source in sources], np.int32)
    assert offsets.dtype == np.int64
    assert [spelled[start:end].decode() for start, end in pairwise(offsets)] == [
        str(source).replace("\udcff", r"\udcff") for source in sources
    ]
    assert len(spelled) == offsets[-1]


def test_a_file_without_a_number_has_no_place():
    with pytest.raises(KeyError, match="'c'"):
        _ingest.places([Source("c")], {"a": 7})


def test_plain_messages_are_new_and_role_is_first():
    row = [{"role": "developer", "content": "be"}, {"content": "q", "role": "user"}]
    roles = {"developer": "system", "user": "user"}
    made = _ingest.plain_messages(row, "role", "content", roles)
    assert made == [{"role": "system", "content": "be"}, {"role": "user", "content": "q"}]
    assert [[*message] for message in made] == [["role", "content"]] * 2
    row[1]["content"] = "\ud800"
    assert made[1]["content"] == "q"
    assert _ingest.plain_messages(row, "role", "content", roles) is None


def test_a_plain_row_is_a_conversation():
    roles = {"user": "user"}
    messages = [{"content": "q", "role": "user"}]
    for more in ({}, {"id": 3, "system": None, "tools": None, "functions": None}):
        row, source = {"messages": messages, **more}, Source("a", 1)
        made = _ingest.plain_row(Conversation, row, source, roles)
        assert made == Conversation([{"role": "user", "content": "q"}], None, source)
        assert made.row is row
        assert type(made) is Conversation


@pytest.mark.parametrize(
    "row",
    [
        {},
        [],
        {"messages": []},
        {"messages": ()},
        {"messages": [{"role": "user", "content": "q"}], "system": ""},
        {"messages": [{"role": "user", "content": "q"}], "tools": []},
        {"messages": [{"role": "user", "content": "q"}], "functions": 0},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "bot", "content": "q"}]},
        {"messages": [{"role": ["user"], "content": "q"}]},
        {"messages": [{"role": "user", "text": "q"}]},
        {"messages": [{"role": "user", 1: "q"}]},
        {"messages": [{"role": "user", "content": "q", "train": False}]},
        {"messages": [["role", "content"]]},
    ],
)
def test_any_other_row_is_not_plain(row):
    assert _ingest.plain_row(Conversation, row, None, {"user": "user"}) is None


@given(st.lists(st.text(), max_size=20), st.integers(1, 4))
def test_a_sample_is_chosen_by_each_text_alone(texts, one_in):
    alone = [place for place, text in enumerate(texts) if _ingest.sampled([text], one_in)]
    assert _ingest.sampled(texts, one_in) == alone


def test_a_sample_has_about_so_many_texts():
    for texts in (
        [chr(32 + n) for n in range(20_000)],
        ["x" * n for n in range(20_000)],
        [f"A question of the same length, {n:05}?" for n in range(20_000)],
        [f"{'Something before. ' * 99}{n:05}{', and behind' * 99}" for n in range(20_000)],
        [chr(0x4E00 + n // 100) * 3 + chr(0x1F300 + n % 100) for n in range(20_000)],
    ):
        assert 40 < len(_ingest.sampled(texts, 256)) < 160


def test_a_surrogate_may_be_in_a_sample():
    assert _ingest.sampled(["\ud800"], 1) == [0]
