"""What is asked of every row in C, beside the same in Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnpack import _ingest
from turnpack.nouns import Source

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


@given(JSON, LEVELS)
def test_text_size(value, levels):
    assert _ingest.text_size(value, levels) == size(value, levels)


@given(st.lists(st.one_of(st.text(), st.text().map(np.str_)), max_size=5))
def test_longest(texts):
    assert _ingest.longest(texts) == max(map(len, texts), default=0)


def test_the_numbers_of_files():
    sources = [Source("b", 3), Source("a", None, 0), Source("b", 4)]
    made = _ingest.numbers_of_files(sources, {"a": 7, "b": 1})
    assert (made.tolist(), made.dtype) == ([1, 7, 1], np.int32)
    assert _ingest.numbers_of_files([], {}).tolist() == []
    with pytest.raises(KeyError, match="'c'"):
        _ingest.numbers_of_files([Source("c")], {"a": 7})


def test_plain_messages_are_new_and_role_is_first():
    row = [{"role": "developer", "content": "be"}, {"content": "q", "role": "user"}]
    roles = {"developer": "system", "user": "user"}
    made = _ingest.plain_messages(row, "role", "content", roles)
    assert made == [{"role": "system", "content": "be"}, {"role": "user", "content": "q"}]
    assert [[*message] for message in made] == [["role", "content"]] * 2
    row[1]["content"] = "\ud800"
    assert made[1]["content"] == "q"
    assert _ingest.plain_messages(row, "role", "content", roles) is None


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
