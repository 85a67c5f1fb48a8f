"""One row → Conversation: every format, every reject of it with its exact words."""

import json
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chats import assistant, system, user
from turnpack.formats import FORMATS, conversation
from turnpack.nouns import RowError, Source


def call(name, arguments, **more):
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


def messages(*items):
    return {"messages": list(items)}


def pair(question, answer):
    return {"from": "human", "value": question}, {"from": "gpt", "value": answer}


HI = [user("hi"), assistant("hello")]

CONVERSIONS = {
    "messages": (messages(*HI), HI),
    "messages, roles of other times": (
        messages({"role": "developer", "content": "s"}, *HI, {"role": "function", "content": "4"}),
        [system("s"), *HI, {"role": "tool", "content": "4"}],
    ),
    "messages, text parts join without a separator": (
        messages(user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}])),
        [user("a b")],
    ),
    "messages, no parts": (messages(user([])), [user("")]),
    "messages, known keys stay, null and unknown ones go": (
        messages(
            user("q", name="Ann", weight=None, id=7),
            assistant("a", train=False, weight=0.5, reasoning_content="so", refusal=None),
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
        ),
        [
            user("q", name="Ann"),
            assistant("a", train=False, weight=0.5, reasoning_content="so"),
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
        ],
    ),
    "messages, thinking is reasoning_content": (
        messages(user("q"), assistant(None, thinking="hm")),
        [user("q"), assistant("", reasoning_content="hm")],
    ),
    "messages, the same reasoning twice": (
        messages(assistant("a", thinking="hm", reasoning_content="hm")),
        [assistant("a", reasoning_content="hm")],
    ),
    "messages, loss is train": (
        messages(user("q"), assistant("a", loss=False)),
        [user("q"), assistant("a", train=False)],
    ),
    "messages, tool calls": (
        messages(
            assistant(None, tool_calls=[call("f", '{"x": 1.0}', id="c1"), call("g", {"y": []})]),
        ),
        [assistant("", tool_calls=[call("f", {"x": 1.0}, id="c1"), call("g", {"y": []})])],
    ),
    "messages, a tool call without its wrapper, content absent": (
        messages({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}),
        [assistant("", tool_calls=[call("f", {})])],
    ),
    "messages, function_call of old": (
        messages(assistant(None, function_call={"name": "f", "arguments": '{"x": "é"}'})),
        [assistant("", tool_calls=[call("f", {"x": "é"})])],
    ),
    "messages, no tool call is none": (
        messages(assistant("a", tool_calls=[], function_call=None)),
        [assistant("a")],
    ),
    "messages, long integers in arguments stay exact": (
        messages(assistant("", tool_calls=[call("f", '{"n": 12345678901234567890123}')])),
        [assistant("", tool_calls=[call("f", {"n": 12345678901234567890123})])],
    ),
    "messages, the row's system leads": (messages(*HI) | {"system": "s"}, [system("s"), *HI]),
    "messages, nothing is stripped": (
        messages(user(" \n q\u2028"), assistant("\ta ")),
        [user(" \n q\u2028"), assistant("\ta ")],
    ),
    "alpaca": (
        {"instruction": "i", "input": "", "output": "o"},
        [user("i"), assistant("o")],
    ),
    "alpaca, input": (
        {"instruction": "i", "input": "x", "output": "o"},
        [user("i", input="x"), assistant("o")],
    ),
    "alpaca, blank is not empty": (
        {"instruction": "i", "input": " ", "output": "o"},
        [user("i", input=" "), assistant("o")],
    ),
    "alpaca, no input, response": (
        {"instruction": "i", "response": "o"},
        [user("i"), assistant("o")],
    ),
    "alpaca, system and history": (
        {
            "instruction": "i",
            "output": "o",
            "system": "s",
            "history": [["q1", "a1"], ["q2", "a2"]],
        },
        [
            system("s"),
            user("q1"),
            assistant("a1"),
            user("q2"),
            assistant("a2"),
            user("i"),
            assistant("o"),
        ],
    ),
    "alpaca, everything optional null or empty": (
        {
            "instruction": "i",
            "input": None,
            "output": "o",
            "response": None,
            "system": "",
            "history": [],
            "tools": "",
        },
        [user("i"), assistant("o")],
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                *pair("q1", "a1"),
                {"from": "user", "value": "q2"},
                {"from": "assistant", "value": "a2", "weight": 2},
            ]
        },
        [system("s"), user("q1"), assistant("a1"), user("q2"), assistant("a2", weight=2)],
    ),
    "sharegpt, system of the row": (
        {"conversations": [*pair("q", "a")], "system": "s"},
        [system("s"), user("q"), assistant("a")],
    ),
    "sharegpt, system of the row beside its own": (
        {"conversations": [{"from": "system", "value": "s"}, *pair("q", "a")], "system": "s"},
        [system("s"), user("q"), assistant("a")],
    ),
    "messages, input": (
        messages(user("q", input="i"), assistant("a")),
        [user("q", input="i"), assistant("a")],
    ),
    "sharegpt, loss": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a", "loss": False},
            ]
        },
        [user("q"), assistant("a", train=False)],
    ),
    "sharegpt, a call and what was observed": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "r1"},
                {
                    "from": "function_call",
                    "value": '[{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": {}}]',
                    "train": False,
                },
                {"from": "tool", "value": "r2"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [
            user("q"),
            assistant("", tool_calls=[call("f", {"x": 1})]),
            {"role": "tool", "content": "r1"},
            assistant("", tool_calls=[call("f", {}), call("g", {})], train=False),
            {"role": "tool", "content": "r2"},
            assistant("a"),
        ],
    ),
    "sharegpt, items in OpenAI's form": ({"conversations": HI}, HI),
    "firefly": (
        {"conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]},
        [user("q1"), assistant("a1"), user("q2"), assistant("a2")],
    ),
    "firefly, one side only, system, train": (
        {
            "conversation": [
                {"human": "q1"},
                {"assistant": "a1", "human": None, "train": False},
                {"human": "q2", "assistant": "a2"},
            ],
            "system": "s",
        },
        [system("s"), user("q1"), assistant("a1", train=False), user("q2"), assistant("a2")],
    ),
    "firefly, items in OpenAI's form": ({"conversation": HI}, HI),
    "linksoul": (
        {"instruction": "s", "conversations": [*pair("q", "a")]},
        [system("s"), user("q"), assistant("a")],
    ),
    "linksoul, empty instruction": (
        {"instruction": "", "conversations": [*pair("q", "a")]},
        [user("q"), assistant("a")],
    ),
    "prompt and completion": (
        {"prompt": "q", "completion": " a"},
        [user("q"), assistant(" a")],
    ),
    "prompt and completion as messages": (
        {
            "prompt": [*HI, assistant("kept", train=True), user("q")],
            "completion": [assistant("a")],
        },
        [
            user("hi"),
            assistant("hello", train=False),
            assistant("kept", train=True),
            user("q"),
            assistant("a"),
        ],
    ),
    # which format wins where keys of several are there
    "messages before prompt": (messages(*HI) | {"prompt": "p", "completion": "c"}, HI),
    "linksoul before alpaca": (
        {"instruction": "", "output": "o", "conversations": [*pair("q", "a")]},
        [user("q"), assistant("a")],
    ),
    "null is absent": (
        {"messages": None, "conversations": None, "instruction": "i", "output": "o"},
        [user("i"), assistant("o")],
    ),
}


@pytest.mark.parametrize(("row", "expected"), CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_conversion(row, expected):
    before = json.dumps(row)
    made = conversation(row, source=Source("f", line=1))
    assert made.messages == expected
    assert made.tools is None
    assert made.source == Source("f", line=1)
    assert made.row is row
    assert json.dumps(row) == before


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tools": [TOOL]}, [TOOL]),
        ({"tools": [FUNCTION]}, [TOOL]),
        ({"tools": [{"type": "function", **FUNCTION}]}, [TOOL]),
        ({"tools": json.dumps([TOOL, FUNCTION])}, [TOOL, TOOL]),
        ({"functions": [FUNCTION]}, [TOOL]),
        ({"tools": None, "functions": [FUNCTION]}, [TOOL]),
        ({"tools": []}, None),
        ({"tools": "[]"}, None),
        ({"tools": " "}, None),
        ({"tools": "null"}, None),
    ],
)
def test_tools(more, expected):
    assert conversation({"messages": HI, **more}).tools == expected
    assert conversation({"conversations": [*pair("q", "a")], **more}).tools == expected


def said(text):
    """The JSON parser's own words, which change with its version."""
    with pytest.raises(orjson.JSONDecodeError) as caught:
        orjson.loads(text)
    return f"{caught.value.msg} at character {caught.value.pos}"


NO_CALL = {"name": "f", "arguments": "{}"}
DEEP = "[" * 101 + "]" * 101

REJECTS = {
    "no object": ([1], "wrong type", "the row is a list, not an object"),
    "no row": (None, "wrong type", "the row is null, not an object"),
    "no format": ({"text": "x", "id": 1}, "unknown format", "the row's keys are 'text', 'id'"),
    "no format, null": (
        {"messages": None, "id": 1},
        "unknown format",
        "the row's keys are 'messages' (null), 'id'",
    ),
    "no format, many keys": (
        {str(n): n for n in range(21)},
        "unknown format",
        f"the row's keys are {', '.join(repr(str(n)) for n in range(20))}, ...",
    ),
    "nothing": ({}, "unknown format", "the row has no keys"),
    "messages, no list": (
        {"messages": "hi"},
        "wrong type",
        "messages is a string, not a list",
    ),
    "messages, none": (messages(), "empty conversation", "messages is an empty list"),
    "sharegpt, none": (
        {"conversations": [], "system": "s"},
        "empty conversation",
        "conversations is an empty list",
    ),
    "firefly, none": (
        {"conversation": []},
        "empty conversation",
        "conversation is an empty list",
    ),
    "message, no object": (
        messages(user("q"), "a"),
        "wrong type",
        "message 1 is a string, not an object",
    ),
    "role, unknown": (
        messages(user("q"), {"role": "bot", "content": "a"}),
        "unknown role",
        "message 1 has role 'bot'",
    ),
    "role, unknown and long": (
        messages({"role": "b" * 1000, "content": "a"}),
        "unknown role",
        "message 0 has role 'bbbbbbbbbbbb...bbbbbbbbbbbbb'",
    ),
    "role, absent": (messages({"content": "a"}), "missing field", "message 0 has no 'role'"),
    "role, null": (
        messages({"role": None, "content": "a"}),
        "wrong type",
        "message 0: role is null, not a string",
    ),
    "role, list": (
        messages({"role": ["user"], "content": "a"}),
        "wrong type",
        "message 0: role is a list, not a string",
    ),
    "sharegpt, role": (
        {"conversations": [{"from": "narrator", "value": "x"}]},
        "unknown role",
        "message 0 has role 'narrator'",
    ),
    "sharegpt, no from": (
        {"conversations": [{"value": "x"}]},
        "missing field",
        "message 0 has no 'from'",
    ),
    "sharegpt, no value": (
        {"conversations": [{"from": "gpt"}]},
        "missing field",
        "message 0 (assistant) has no 'value'",
    ),
    "sharegpt, null value": (
        {"conversations": [*pair("q", None)]},
        "wrong type",
        "message 1 (assistant): content is null, not a string",
    ),
    "content, absent": (
        messages({"role": "user"}),
        "missing field",
        "message 0 (user) has no 'content'",
    ),
    "content, null of a user": (
        messages(user(None)),
        "wrong type",
        "message 0 (user): content is null, not a string",
    ),
    "content, null and no call": (
        messages(user("q"), assistant(None, tool_calls=[])),
        "wrong type",
        "message 1 (assistant): content is null, not a string",
    ),
    "content, number": (
        messages(user(3)),
        "wrong type",
        "message 0 (user): content is a number, not a string",
    ),
    "content, object": (
        messages(user({"text": "x"})),
        "wrong type",
        "message 0 (user): content is an object, not a string",
    ),
    "content, list of strings": (
        messages(user(["x"])),
        "wrong type",
        "message 0: content part 0 is a string, not an object",
    ),
    "content, picture": (
        messages(user([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])),
        "unsupported content",
        "message 0: content part 1 has type 'image_url'",
    ),
    "content, part of no type": (
        messages(user([{"text": "x"}])),
        "unsupported content",
        "message 0: content part 0 has type None",
    ),
    "content, part without text": (
        messages(user([{"type": "text", "text": None}])),
        "wrong type",
        "message 0: content part 0: text is null, not a string",
    ),
    "train, number": (
        messages(user("q"), assistant("a", train=1)),
        "wrong type",
        "message 1: train is a number, not a boolean",
    ),
    "loss, string": (
        {"conversations": [{"from": "gpt", "value": "a", "loss": "no"}]},
        "wrong type",
        "message 0: loss is a string, not a boolean",
    ),
    "train and loss": (
        messages(assistant("a", train=True, loss=False)),
        "ambiguous fields",
        "message 0: train and loss differ",
    ),
    "weight, string": (
        messages(assistant("a", weight="1")),
        "wrong type",
        "message 0: weight is a string, not a number",
    ),
    "weight, negative": (
        messages(assistant("a", weight=-1)),
        "wrong type",
        "message 0: weight is -1, not in float32's range",
    ),
    "weight, infinite as float32": (
        messages(assistant("a", weight=1e300)),
        "wrong type",
        "message 0: weight is 1e+300, not in float32's range",
    ),
    "weight, 0 as float32": (
        messages(assistant("a", weight=1e-50)),
        "wrong type",
        "message 0: weight is 1e-50, not in float32's range",
    ),
    "two system messages that differ": (
        {"conversations": [{"from": "system", "value": "t"}, *pair("q", "a")], "system": "s"},
        "ambiguous fields",
        "the row's system and its first message differ",
    ),
    "reasoning, list": (
        messages(assistant("a", reasoning_content=["x"])),
        "wrong type",
        "message 0: reasoning_content is a list, not a string",
    ),
    "reasoning, two": (
        messages(assistant("a", reasoning_content="x", thinking="y")),
        "ambiguous fields",
        "message 0: reasoning_content and thinking differ",
    ),
    "calls, two spellings": (
        messages(assistant(None, tool_calls=[NO_CALL], function_call=NO_CALL)),
        "ambiguous fields",
        "message 0: tool_calls and function_call differ",
    ),
    "calls, no list": (
        messages(assistant("", tool_calls="f()")),
        "wrong type",
        "message 0: tool_calls is a string, not a list",
    ),
    "call, no object": (
        messages(assistant("", tool_calls=[NO_CALL, "f()"])),
        "wrong type",
        "message 0: tool call 1 is a string, not an object",
    ),
    "call, function no object": (
        messages(assistant("", tool_calls=[{"function": "f"}])),
        "wrong type",
        "message 0: tool call 0 is a string, not an object",
    ),
    "call, other type": (
        messages(assistant("", tool_calls=[{"type": "custom", "custom": {}}])),
        "unsupported content",
        "message 0: tool call 0 has type 'custom'",
    ),
    "call, no name": (
        messages(assistant("", tool_calls=[{"arguments": "{}"}])),
        "missing field",
        "message 0: tool call 0 has no 'name'",
    ),
    "call, no arguments": (
        messages(assistant("", tool_calls=[{"function": {"name": "f"}}])),
        "missing field",
        "message 0: tool call 0 has no 'arguments'",
    ),
    "call, name": (
        messages(assistant("", tool_calls=[{"name": 3, "arguments": {}}])),
        "wrong type",
        "message 0: tool call 0: name is a number, not a string",
    ),
    "call, arguments that are no object": (
        messages(assistant("", tool_calls=[{"name": "f", "arguments": "[1]"}])),
        "wrong type",
        "message 0: tool call 0: arguments is a list, not an object",
    ),
    "call, arguments that are no JSON": (
        messages(assistant("", tool_calls=[{"name": "f", "arguments": '{"x": '}])),
        "invalid JSON",
        "message 0: tool call 0: arguments: " + said('{"x": '),
    ),
    "call, arguments nested deeply": (
        messages(assistant("", tool_calls=[{"name": "f", "arguments": DEEP}])),
        "nested too deeply",
        "message 0: tool call 0: arguments: more than 100 levels",
    ),
    "sharegpt, call that is no JSON": (
        {"conversations": [{"from": "function_call", "value": "f(x)"}]},
        "invalid JSON",
        "message 0: function_call: " + said("f(x)"),
    ),
    "sharegpt, call that is none": (
        {"conversations": [{"from": "function_call", "value": "[]"}]},
        "missing field",
        "message 0 has no tool call",
    ),
    "sharegpt, call without value": (
        {"conversations": [{"from": "function_call"}]},
        "wrong type",
        "message 0: tool call 0 is null, not an object",
    ),
    "tools, no list": (
        messages(*HI) | {"tools": {"name": "f"}},
        "wrong type",
        "tools is an object, not a list",
    ),
    "tools, no JSON": (
        messages(*HI) | {"tools": '[{"name"]'},
        "invalid JSON",
        "tools: " + said('[{"name"]'),
    ),
    "tools, no object": (
        messages(*HI) | {"tools": ["f"]},
        "wrong type",
        "tool 0 is a string, not an object",
    ),
    "tools, no function": (
        messages(*HI) | {"tools": [TOOL, {"type": "web_search"}]},
        "missing field",
        "tool 1 has no 'function' and no 'name'",
    ),
    "tools, two spellings": (
        messages(*HI) | {"tools": [TOOL], "functions": [FUNCTION]},
        "ambiguous fields",
        "the row's tools and functions differ",
    ),
    "system, no string": (
        messages(*HI) | {"system": 3},
        "wrong type",
        "message 0 (system): content is a number, not a string",
    ),
    "alpaca, no output": (
        {"instruction": "i", "answer": "a"},
        "missing field",
        "the row has no 'output' and no 'response'",
    ),
    "alpaca, two outputs": (
        {"instruction": "i", "output": "a", "response": "b"},
        "ambiguous fields",
        "the row's output and response differ",
    ),
    "alpaca, output": (
        {"instruction": "i", "output": ["a"]},
        "wrong type",
        "message 1 (assistant): content is a list, not a string",
    ),
    "alpaca, input": (
        {"instruction": "i", "input": 0, "output": "a"},
        "wrong type",
        "message 0: input is a number, not a string",
    ),
    "alpaca, history": (
        {"instruction": "i", "output": "a", "history": "x"},
        "wrong type",
        "history is a string, not a list",
    ),
    "alpaca, history of no pair": (
        {"instruction": "i", "output": "a", "history": [["q", "a"], ["q"]]},
        "wrong type",
        "history 1 is ['q'], not a pair",
    ),
    "firefly, neither": (
        {"conversation": [{"human": "q", "assistant": "a"}, {"bot": "x"}]},
        "missing field",
        "message 1 has no 'human' and no 'assistant'",
    ),
    "firefly, number": (
        {"conversation": [{"human": 3}]},
        "wrong type",
        "message 0 (user): content is a number, not a string",
    ),
    "linksoul, instruction": (
        {"instruction": 3, "conversations": [*pair("q", "a")]},
        "wrong type",
        "message 0 (system): content is a number, not a string",
    ),
    "prompt, mixed": (
        {"prompt": [user("q")], "completion": "a"},
        "wrong type",
        "prompt is a list and completion is a string, not two strings or two lists",
    ),
    "completion, position counts on": (
        {"prompt": [user("q")], "completion": [{"role": "gpt", "content": "a"}]},
        "unknown role",
        "message 1 has role 'gpt'",
    ),
}


@pytest.mark.parametrize(("row", "reason", "detail"), REJECTS.values(), ids=REJECTS.keys())
def test_reject(row, reason, detail):
    with pytest.raises(RowError) as caught:
        conversation(row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_forced_format():
    both = {"messages": HI, "instruction": "i", "output": "o"}
    assert conversation(both, format="messages").messages == HI
    assert conversation(both, format="alpaca").messages == [user("i"), assistant("o")]
    for name, key in {
        "messages": "messages",
        "alpaca": "instruction",
        "sharegpt": "conversations",
        "firefly": "conversation",
        "linksoul": "instruction",
        "prompt_completion": "prompt",
    }.items():
        with pytest.raises(RowError) as caught:
            conversation({"text": "x"}, format=name)
        assert str(caught.value) == f"missing field: the row has no '{key}'"


def test_names_of_formats():
    assert set(FORMATS) == {
        "messages",
        "alpaca",
        "sharegpt",
        "firefly",
        "linksoul",
        "prompt_completion",
    }
    with pytest.raises(ValueError) as caught:
        conversation({"messages": HI}, format="openai")
    assert str(caught.value) == f"unknown format 'openai'; there are {', '.join(FORMATS)}"


def test_a_row_that_is_rejected_is_unchanged():
    for row, _, _ in REJECTS.values():
        before = json.dumps(row)
        with pytest.raises(RowError):
            conversation(row)
        assert json.dumps(row) == before


def test_dollys_context_is_the_input():
    row = {"instruction": "Sum up", "context": "long text", "response": "short"}
    assert conversation(row).messages[0] == {
        "role": "user",
        "content": "Sum up",
        "input": "long text",
    }
    assert conversation({**row, "input": "i"}).messages[0]["input"] == "i"


KEYS = ("system", "tools", "functions", "instruction")
VALUES = st.sampled_from([None, "", "s", [], [{"name": "f"}], 0])
ITEMS = st.sampled_from(
    [
        user("q"),
        assistant("a"),
        {"role": "user"},
        {"role": "developer", "content": "d"},
        {"role": "x", "content": "d"},
        {"role": "user", "content": "\ud800"},
        {"role": "assistant", "content": "a", "train": False},
        5,
    ]
)


@settings(max_examples=500)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
    st.one_of(st.just([user("q"), assistant("a")]), st.none(), st.lists(ITEMS, max_size=3)),
    st.sampled_from([None, "messages", "alpaca"]),
)
def test_a_plain_row_is_read_as_any_other(besides, listed, format):
    def read(row):
        try:
            return conversation(row, format=format)
        except RowError as error:
            return repr(error)

    row = {"messages": listed, **besides}
    assert read(row) == read(MappingProxyType(row))  # which is no dict, and takes the long way


def test_a_row_is_left_as_it_was():
    row = {"prompt": [user("q"), assistant("a")], "completion": [assistant("b")]}
    before = json.dumps(row)
    made = conversation(row)
    assert [message.get("train") for message in made.messages] == [None, False, None]
    assert json.dumps(row) == before
