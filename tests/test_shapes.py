"""Programs of shapes: what they fill in is what the template writes, or they give up."""

from __future__ import annotations

import pickle
import warnings

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import turnpack as tp
from at_hand import mistral_v1, qwen, tiny
from chats import assistant, user
from turnpack import tokenizers
from turnpack.encode import Encoder
from turnpack.nouns import Conversation, RowError
from turnpack.plain_rows import plain_rows
from turnpack.shapes import compile_program, shape_of

TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "\n", "x", "  Hi there \n", "<think>so</think> yes", "a</think>b"),
            *("<tool_response>\n4\n</tool_response>", "\ufdd00\ufdd0", "None", "<|im_end|>"),
            *("1 or 0", "\ufdd0\ufdd1\ufdd0"),
        ]
    ),
    st.text(st.sampled_from("ab :\n<>/|#你🙂'\"\\{}"), max_size=12),
)
ROLES = st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool"])


@st.composite
def chats(draw):
    roles = draw(st.lists(ROLES, min_size=1, max_size=5))
    messages = []
    for role in draw(st.sampled_from([roles, ["user", "assistant"] * 2, ["system", *roles]])):
        messages.append({"role": role, "content": draw(TEXTS)})
        if draw(st.booleans()) and role == "user":
            messages[-1]["input"] = draw(TEXTS)
    return messages


def bound(name):
    """The template with the tokens that an answer of Qwen's yields."""
    template = tp.get_template(name)
    return template if name != "chatml" else template.bind(QWEN)


def with_digits():
    """Qwen's tokenizer with digits that an answer yields as tokens, as some have them."""
    own = Tokenizer.from_str(qwen().to_str())
    own.add_tokens([AddedToken(digit, special=False) for digit in "01"])
    with warnings.catch_warnings(action="ignore"):  # that no text can hold them otherwise
        return tokenizers.load(own, eos="<|im_end|>")


QWEN = tokenizers.load(qwen(), eos="<|im_end|>")
DIGITS = with_digits()
TEMPLATES = {name: bound(name) for name in tp.templates()}


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15, deadline=None)
@given(first=chats(), data=st.data())
def test_a_program_writes_what_its_template_writes(name, train_on, first, data):
    template = TEMPLATES[name]
    shape = shape_of(Conversation(first))
    try:
        template.render(first, train_on=train_on)
    except RowError:
        return
    program = shape and compile_program(template, shape, train_on)
    if not program:
        return
    # Another conversation of the same shape.
    other = [
        {key: data.draw(TEXTS.filter(bool)) if key != "role" else m["role"] for key in m}
        for m in first
    ]
    assert shape_of(Conversation(other)) == shape
    for messages in (first, other):
        made = program.render(messages)
        assert made == program._replace(straight=None).render(messages)
        rendered = template.render(messages, train_on=train_on)
        if made is not None:
            assert made == list(rendered.segments)
            assert program.warnings == rendered.warnings


@pytest.mark.parametrize("name", TEMPLATES)
def test_ordinary_conversations_have_a_program(name):
    chat = [user("Hi there"), assistant("Hello, you.")]
    program = compile_program(TEMPLATES[name], shape_of(Conversation(chat)), "assistant")
    assert program.render(chat) == list(TEMPLATES[name].render(chat).segments)
    assert program.render([user("  Hi "), assistant("x\ty")]) is not None


def test_a_message_that_says_more_has_no_shape():
    assert shape_of(Conversation([user("a", input="b"), assistant("c")])) == (
        "user+input",
        "assistant",
    )
    for more in ({"train": False}, {"weight": 0.5}, {"input": ""}, {"tool_calls": []}):
        assert shape_of(Conversation([user("a"), assistant("b", **more)])) is None
    assert shape_of(Conversation([user("a")], tools=[{"type": "function"}])) is None


ENCODERS = [
    (QWEN, name, options)
    for name in ("chatml", "qwen3", "alpaca")
    for options in ({}, {"train_on": "all"}, {"train_on": "last"}, {"max_length": 9})
] + [
    (DIGITS, "chatml", {}),
    (DIGITS, "alpaca", {}),
    (tokenizers.load(mistral_v1()), "llama2", {}),
    (tokenizers.load(mistral_v1()), "vicuna", {"truncate": "split", "max_length": 7}),
    (tokenizers.load(tiny("first", True), bos="<s>", eos="</s>"), "chatml", {}),
    (tokenizers.load(tiny("always"), bos="<s>", eos="</s>"), "firefly", {}),
]


@pytest.mark.parametrize(("backend", "name", "options"), ENCODERS)
@settings(max_examples=10, deadline=None)
@given(batch=st.lists(chats(), max_size=6))
def test_remembered_shapes_change_no_token(backend, name, options, batch):
    """A train flag that changes nothing keeps a conversation from having a shape."""
    marked = [[dict(message, train=True) for message in chat] for chat in batch]
    encoder = Encoder(backend, name, **options)
    other = Encoder(backend, name, **options)
    for _ in range(2):
        rejects, expected = [], []
        assert encoder(batch, rejects) == other(marked, expected)
        assert [r.reason for r in rejects] == [r.reason for r in expected]
    assert encoder.warnings == other.warnings
    assert not any(other._known.values())


@pytest.mark.parametrize(("backend", "name", "options"), ENCODERS)
@settings(max_examples=15, deadline=None)
@given(batch=st.lists(chats(), min_size=1, max_size=6))
def test_rows_in_columns_have_the_same_tokens(backend, name, options, batch):
    batch = [[{k: m[k] for k in ("role", "content")} for m in chat] for chat in batch]
    rows = plain_rows([orjson.dumps({"messages": chat}) for chat in batch])
    conversations = [Conversation(chat) for chat in batch]
    encoder, other = Encoder(backend, name, **options), Encoder(backend, name, **options)
    for _ in range(2):
        rejects, expected = [], []
        made = encoder.finish(encoder.begin_plain(rows, conversations), rejects)
        assert made == other(conversations, expected)
        assert [(r.reason, r.row) for r in rejects] == [(r.reason, r.row) for r in expected]
    assert encoder.warnings == other.warnings
    assert encoder.truncated == other.truncated


def test_rows_in_columns_are_written_straight_where_nothing_is_looked_into():
    chat = [user("Hi"), assistant("a < b")]
    answers = ["a < b", "<think>so</think>", "", "<tool_call>", "c"]
    batch = [[user("Hi"), assistant(answer)] for answer in answers]
    rows = plain_rows([orjson.dumps({"messages": chat}) for chat in batch])
    encoder, asked = Encoder(QWEN, "chatml"), []
    encoder([chat])

    class Asked(list):
        def __getitem__(self, place):
            asked.append(place)
            return super().__getitem__(place)

    conversations = Asked(map(Conversation, batch))
    for _ in range(2):
        encoder.begin_plain(rows, conversations)
    assert sorted({*asked}) == [0, 1, 2, 3]
    assert asked.count(0) == 1  # by the second time its shape is known
    assert asked.count(1) == asked.count(3) == 2


def test_columns_are_of_no_use_where_every_text_is_stripped():
    chat = [user("Hi"), assistant("Ho")]
    straight, stripping = Encoder(QWEN, "chatml"), Encoder(tokenizers.load(mistral_v1()), "llama2")
    assert straight.fills
    assert stripping.fills  # nothing is known yet
    straight([chat])
    stripping([chat])
    assert straight.fills
    assert not stripping.fills
    for options in ({"system": "Be brief."}, {"system": ""}, {"boundary": "whole"}):
        assert not Encoder(QWEN, "chatml", **options).fills


def test_a_text_of_too_many_characters_is_no_row_in_columns_either(monkeypatch):
    monkeypatch.setattr("turnpack.encode.MAX_TEXT", 20)
    batch = [[user("Hi"), assistant(answer)] for answer in ("Ho", "ä" * 15, "x" * 30, "Ho")]
    rows = plain_rows([orjson.dumps({"messages": chat}) for chat in batch])
    encoder, rejects = Encoder(QWEN, "chatml"), []
    for _ in range(2):
        encoder.finish(encoder.begin_plain(rows, list(map(Conversation, batch))), rejects)
    assert [reject.reason for reject in rejects] == ["too large"] * 2


def test_shapes_are_used_and_an_encoder_that_knows_some_can_be_pickled():
    encoder = Encoder(QWEN, "chatml")
    rows = [[user("Hi"), assistant("Hello <think>")], [user("Hi"), assistant("Hello")]] * 3
    tokens = encoder(rows)
    assert any(encoder._known.values())
    assert pickle.loads(pickle.dumps(encoder))(rows) == tokens == encoder(rows)


def test_no_more_shapes_are_remembered_than_fit(monkeypatch):
    monkeypatch.setattr("turnpack.encode.SHAPES", 2)
    encoder = Encoder(QWEN, "chatml")
    rows = [[user("Hi"), assistant("Hello")] * length for length in (1, 2, 3, 4, 3, 1)]
    assert encoder(rows) == Encoder(QWEN, "chatml")(rows)
    assert len(encoder._known) == 2


@pytest.mark.parametrize("name", ["chatml", "alpaca", "zephyr"])
def test_an_answer_is_not_split_in_the_midst_of_its_place(name):
    """The first conversation of the shape holds a token, so nothing of its program is compared."""
    encoder = Encoder(DIGITS, name)
    chats = [[user("Hi"), assistant(text)] for text in ("It is 1.", "Hello there")]
    encoder(chats[:1])
    assert encoder(chats[1:]) == Encoder(DIGITS, name)(chats[1:])


def test_a_conversation_of_very_many_messages_is_known_too():
    template = tp.Template(name="x", source="", summary="", user="U{user}", answer="A{answer}")
    chat = [user("a"), assistant("b")] * 1500
    encoder = Encoder(QWEN, template, train_on="all")
    assert encoder([chat] * 2).offsets.tolist() == [0, 6000, 12000]


def test_what_spells_a_place_may_be_in_a_template():
    for text in ("\ufdd1", "\ufdd0", "\ufdd0\ufdd1"):
        template = tp.Template(
            name="x", source="", summary="", user=f"{text}{{user}}", answer="{answer}", stop=""
        )
        encoder = Encoder(QWEN, template)
        chats = [[user("a"), assistant("b")], [user("c"), assistant("d")]]
        assert QWEN.decode(encoder(chats).input_ids.tolist()) == f"{text}ab{text}cd"
