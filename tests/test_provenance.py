"""Traced text does what a str does, knows where each character comes from, and what was asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnpack.nouns import RowError
from turnpack.provenance import (
    MAX_STEPS,
    Data,
    Mark,
    Traced,
    join,
    join_with,
    pieces_of,
    plain,
    single,
    structure,
    traced_in,
    tracing,
)
from turnpack.replay import compile_texts

TEXTS = ["", " ", "a", "ab\n", "\n\nx y ", "</t>", "a</t>b</t>", "<t>c", "你好", "A.b"]
ARGUMENTS = ["", " ", "a", "\n", "</t>", "b", "<"]
STEPS = {
    "strip": [(), ("\n",)],
    "lstrip": [(), ("a\n",)],
    "rstrip": [(), (" ",)],
    "upper": [()],
    "title": [()],
    "replace": [("a", "zz"), ("</t>", "")],
    "removeprefix": [("a",)],
    "removesuffix": [("\n",)],
    "center": [(9,)],
    "split": [("</t>",), (), ("a", 1)],
    "rsplit": [(" ",)],
    "splitlines": [(), (True,)],
    "partition": [("b",)],
    "rpartition": [("t",)],
    "item": [(0,), (-1,)],
    "slice": [(slice(1, None),), (slice(None, -1),), (slice(None, None, -1),)],
    "before": [("<s>",), (" ",), ("",)],
    "behind": [("\n",), ("x",), ("",)],
    "twice": [()],
}
QUESTIONS = [
    lambda text: bool(text),
    lambda text: "a" in text,
    lambda text: "</t>" in text,
    lambda text: text == "a",
    lambda text: text != "ab\n",
    lambda text: text.startswith("a"),
    lambda text: text.endswith(("\n", "b")),
    lambda text: text.find("b"),
    lambda text: text.count("t"),
    lambda text: text.isspace(),
    lambda text: text < "b",
    lambda text: len(text),
    lambda text: hash(text),
    lambda text: repr(text),
    lambda text: [plain(char) for char in text],
]
steps = st.lists(
    st.sampled_from([(name, args) for name, all_of in STEPS.items() for args in all_of]), max_size=4
)


def traced(text, number=0):
    return single(text, (number, "content"), ("get", number, "content"))


def applied(text, steps):
    """What the steps make of a text; of a list the last item is taken."""
    for name, arguments in steps:
        if name == "before":
            text = arguments[0] + text
        elif name == "behind":
            text = text + arguments[0]
        elif name == "twice":
            text = text + text
        elif name == "item":
            text = text[arguments[0]] if text else text
        elif name == "slice":
            text = text[arguments[0]]
        else:
            text = getattr(text, name)(*arguments)
        if isinstance(text, (list, tuple)):
            text = text[-1] if text else ""
    return text


@settings(max_examples=600, deadline=None)
@given(text=st.sampled_from(TEXTS), steps=steps, asked=st.sampled_from(QUESTIONS))
def test_it_is_what_a_str_is(text, steps, asked):
    with tracing():
        made = applied(traced(text), steps)
        assert plain(made) == applied(text, steps)
        assert asked(made) == asked(applied(text, steps))
        assert "".join(map(plain, pieces_of(made))) == plain(made)


@settings(max_examples=600, deadline=None)
@given(text=st.sampled_from(TEXTS), steps=steps)
def test_every_character_of_the_conversation_is_traced(text, steps):
    """Text that a template writes is plain only if the template has it."""
    text = "".join(chr(0xE000 + ord(char) % 97) if char.isalnum() else char for char in text)
    with tracing():
        for piece in pieces_of(applied(traced(text), steps)):
            if type(piece) is not Traced:
                assert not any("\ue000" <= char <= "\uf8ff" for char in piece)


@settings(max_examples=600, deadline=None)
@given(text=st.sampled_from(TEXTS), other=st.sampled_from(TEXTS), steps=steps, data=st.data())
def test_where_all_answers_are_the_same_so_is_the_way(text, other, steps, data):
    asked = data.draw(st.lists(st.sampled_from(QUESTIONS[:11]), max_size=2))
    with tracing() as trace:
        made = applied(traced(text), steps)
        answers = [question(made) for question in asked]
    pieces = list(pieces_of(made))
    if trace.opaque:
        return
    program = compile_texts(trace.guards, pieces, {})
    texts = program([{"content": other}], (), None)
    if text == other:
        assert texts is not None
    if texts is None:
        return
    left = iter(texts)
    again = "".join(next(left) if type(piece) is Traced else piece for piece in pieces)
    assert again == applied(other, steps)
    assert answers == [question(again) for question in asked]


def test_pieces_of_what_is_joined():
    with tracing() as trace:
        made = "<" + traced("a b").strip() + ">" + traced("\n", 1)
        assert [(type(p), plain(p)) for p in pieces_of(made)] == [
            (str, "<"),
            (Traced, "a b"),
            (str, ">"),
            (Traced, "\n"),
        ]
        assert [p._origin for p in pieces_of(made)[1::2]] == [(0, "content"), (1, "content")]
        assert type(join(["a", "b"])) is str
        assert plain(join_with(", ", ["a", traced("b")])) == "a, b"
    assert not trace.opaque
    assert not trace.guards


def test_a_mark_is_nothing_that_can_be_read():
    with tracing():
        made = join(["a", Mark("message", 3, 1), "b"])
    assert made == "ab"
    assert [type(piece) for piece in pieces_of(made)] == [str, Mark, str]


def test_what_is_not_modelled_is_opaque_and_still_of_its_message():
    with tracing() as trace:
        made = traced("x") * 2
        assert plain(made) == "xx"
        assert [type(piece) for piece in pieces_of(made)] == [Traced]
    assert trace.opaque


def test_an_object_is_asked_for_its_structure():
    content = {"name": "f", "n": 3, "inner": {"text": "t", "list": ["u", None]}}
    with tracing() as trace:
        data = Data(content, (-1, "tools"), ("tools", 0))
        assert not trace.guards
        assert plain(data["inner"]["list"][0]) == "u"
        assert data["n"] == 3
    assert not trace.opaque
    ((_, answer),) = trace.guards.items()
    assert answer == structure(content)
    assert structure({**content, "name": "other"}) == answer
    assert structure({**content, "n": 4}) != answer
    assert structure({**content, "n": True}) != structure({**content, "n": 1})
    assert [plain(t) for t in traced_in([data["inner"]])] != []


def test_work_is_bounded():
    with tracing(), pytest.raises(RowError, match="asks for too much: it takes too long"):
        any(not join(["a", "b"]) for _ in range(MAX_STEPS + 1))
    with tracing(), pytest.raises(RowError, match="it writes more than 16777216 characters"):
        join(["a" * (1 << 24), "b"])
