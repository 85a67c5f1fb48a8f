"""Columns of plain rows: what is in them is what each line says by itself, or there are none."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from at_hand import qwen
from chats import assistant, system, user
from turnpack import records, tokenizers
from turnpack.nouns import ROLES, Conversation, Source
from turnpack.output import RUN
from turnpack.plain_rows import MOST, plain_rows
from turnpack.prepare import prepare
from turnpack.records import RawRow

GOOD = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Ho"}]}'


def in_columns(rows):
    """The messages of each row, as the columns have them."""
    texts = [
        bytes(rows.contents[start:end]).decode()
        for start, end in zip(rows.text_offsets, rows.text_offsets[1:], strict=False)
    ]
    assert len(texts) == len(rows.roles)
    messages = [
        {"role": ROLES[role], "content": text} for role, text in zip(rows.roles, texts, strict=True)
    ]
    return [messages[start:end] for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)]


def by_themselves(lines):
    """The messages of each line, None where one is not plain messages."""
    made = [records.parse(RawRow(Source("a", n), line)) for n, line in enumerate(lines)]
    return [list(row.messages) if isinstance(row, Conversation) else None for row in made]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MESSAGE = st.fixed_dictionaries(
    {
        "content": TEXT,
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
    }
)
ROW = st.fixed_dictionaries({"messages": st.lists(MESSAGE, min_size=1, max_size=4)})


@given(st.lists(ROW, min_size=1, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_plain_rows_are_read_as_each_by_itself(rows, ascii, indent):
    lines = [
        json.dumps(row, ensure_ascii=ascii, indent=indent).replace("\n", " ").encode()
        for row in rows
    ]
    made = plain_rows(lines)
    assert made is not None
    assert in_columns(made) == by_themselves(lines)


MESSAGES = b'"messages":[{"role":"user","content":"Hi"}]'
# Lines that are not plain messages, each alone and among such.
OTHERS = {
    "no-object": b"[1]",
    "empty": b"{}",
    "no-messages": b'{"messages":[]}',
    "null-messages": b'{"messages":null}',
    "messages-are-an-object": b'{"messages":{"role":"user","content":"Hi"}}',
    "null-message": b'{"messages":[null]}',
    "message-is-a-list": b'{"messages":[["role","content"]]}',
    "another-key": b'{"id":1,' + MESSAGES + b"}",
    "another-key-behind": b"{" + MESSAGES + b',"id":1}',
    "another-key-in-a-message": b'{"messages":[{"role":"user","content":"Hi","weight":0}]}',
    "nested": b'{"x":' + b"[" * 200 + b"]" * 200 + b"," + MESSAGES + b"}",
    "nested-messages": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "key-twice": b"{" + MESSAGES + b"," + MESSAGES + b"}",
    "role-twice": b'{"messages":[{"role":"user","role":"assistant","content":"Hi"}]}',
    "content-twice": b'{"messages":[{"role":"user","content":null,"content":"Hi"}]}',
    "no-content": b'{"messages":[{"role":"user"}]}',
    "no-role": b'{"messages":[{"content":"Hi"}]}',
    "null-content": b'{"messages":[{"role":"user","content":null}]}',
    "number": b'{"messages":[{"role":"user","content":1}]}',
    "boolean": b'{"messages":[{"role":"user","content":true}]}',
    "parts": b'{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}',
    "unknown-role": b'{"messages":[{"role":"bot","content":"Hi"}]}',
    "empty-role": b'{"messages":[{"role":"","content":"Hi"}]}',
    "no-utf-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "no-utf-8-in-the-role": b'{"messages":[{"role":"user\xff","content":"Hi"}]}',
    "surrogate-in-utf-8": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "lone-surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "lone-low-surrogate": b'{"messages":[{"role":"user","content":"\\udc00"}]}',
    "bad-escape": b'{"messages":[{"role":"user","content":"\\x41"}]}',
    "control-character": b'{"messages":[{"role":"user","content":"a\tb"}]}',
    "nul": b'{"messages":[{"role":"user","content":"a\0b"}]}',
    "nul-behind": GOOD + b"\0}",
    "trailing-comma": b'{"messages":[{"role":"user","content":"Hi"},]}',
    "comment": b'{"messages":/**/[{"role":"user","content":"Hi"}]}',
    "quotes": b"{'messages':[{'role':'user','content':'Hi'}]}",
    "blank-before": b" " + GOOD,
    "blank-behind": GOOD + b" ",
    "mark": b"\xef\xbb\xbf" + GOOD,
    "two": GOOD + GOOD,
    "two-with-a-comma": GOOD + b"," + GOOD,
    "cut": GOOD[:-1],
    "cut-in-a-message": b'{"messages":[{"role":"user","content":"Hi"}',
    "behind-it": GOOD + b"}",
    "nan": b'{"messages":[{"role":"user","content":NaN}]}',
}


@pytest.mark.parametrize("line", OTHERS.values(), ids=OTHERS.keys())
def test_other_lines_have_no_columns(line):
    assert plain_rows([GOOD] * 3) is not None
    for lines in ([line], [GOOD, line], [GOOD, line, GOOD], [line, GOOD]):
        assert plain_rows(lines) is None


def test_objects_that_go_over_lines_have_no_columns():
    """As many objects as lines, and none of the lines is one."""
    over = [b'{"messages":[{"role":"user",', b'"content":"Hi"}]}', GOOD + GOOD]
    assert by_themselves(over) == [None] * 3
    assert plain_rows(over) is None
    for behind in (b'{"role":"user","content":"Hi"}]}', b',{"role":"user","content":"Hi"}]}'):
        over = [b'{"messages":[{"role":"user","content":"Hi"}', behind, GOOD + GOOD]
        assert plain_rows([GOOD, *over]) is None


def test_there_are_none_of_nothing_and_of_too_much():
    assert plain_rows([]) is None
    large = orjson.dumps({"messages": [user("x" * (MOST // 2))]})
    assert plain_rows([large]) is not None
    assert plain_rows([large, large]) is None


@settings(max_examples=300)
@given(st.data())
def test_a_changed_line_is_read_as_by_itself_or_not_at_all(data):
    lines = [GOOD, b'{"messages": [{"content": "\\u00e9\\n", "role": "tool"}]}', GOOD]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        at = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(at, min(len(line), at + 3)))
        new = data.draw(st.sampled_from([*b'{}[]",:\\ u0e1\xc3\x00\t', None]))
        lines[place] = line[:at] + (b"" if new is None else bytes([new])) + line[end:]
    made = plain_rows(lines)
    if made is not None:
        assert in_columns(made) == by_themselves(lines)


TALKS = [
    [user("Hi"), assistant("Hello, you.")],
    [system("Be brief."), user("Hi"), assistant("Ho")],
    [user("Hi"), assistant("Ho"), user("And?"), assistant("So.")],
    [user("Hi"), assistant("")],
    [user("Hi")],
    [user("Hi"), assistant("<think>\n\n</think>\n\nHo <b>bold</b>")],
    [user("<|im_start|>"), assistant("<|im_end|>")],
    [user("你好"), assistant("🙂" * 300)],
]


@pytest.mark.parametrize("more", [[], [b"no JSON"], [OTHERS["another-key"], OTHERS["two"]]])
@pytest.mark.parametrize("template", ["chatml", "qwen3", "zephyr", "alpaca", "vicuna"])
def test_an_output_is_the_same_without_columns(template, more, tmp_path, monkeypatch):
    lines = [orjson.dumps({"messages": chat}) for chat in TALKS * 200]
    lines[1200:1200] = more  # the first chunk has columns all the same
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines))
    backend = tokenizers.load(qwen(), bos="<|endoftext|>", eos="<|im_end|>")

    def run(name):
        options = {"template": template, "max_length": 200, "page": False}
        report = prepare(file, tokenizer=backend, output=tmp_path / name, **options)
        return report, {
            path.relative_to(tmp_path / name).as_posix(): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file() and path.name != RUN
        }

    made = []
    monkeypatch.setattr(
        "turnpack.pipeline.plain_rows", lambda lines: made.append(plain_rows(lines)) or made[-1]
    )
    report, files = run("columns")
    # qwen3 strips every text, which is known when the first chunk is written.
    assert [rows is not None for rows in made] == [True, not more][: 1 + (template != "qwen3")]
    monkeypatch.setattr("turnpack.pipeline.plain_rows", lambda lines: None)
    other, expected = run("rows")
    assert files == expected
    assert (report.conversations, report.warnings) == (other.conversations, other.warnings)
    assert report.conversations["rejected"] > 0
