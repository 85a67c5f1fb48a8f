"""The table of bad inputs: how each is made, and what `turnpack prepare` is to do with it.

test_bad_inputs.py runs every line; `python tests/bad_inputs.py` writes docs/bad-inputs.md from it.
In a pattern `…` stands for any text.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

import at_hand
from mischief import (
    CHATML,
    GOOD,
    Around,
    Make,
    after_the_first_row,
    append,
    bomb,
    corrupted_page,
    exactly,
    few_steps,
    file,
    full_disk,
    lines,
    longest,
    many,
    nested,
    read_only,
    renumbered,
    replace,
    row,
    same_control_tokens,
    saved,
    short_texts,
    small_lines,
    sparse,
    special_file,
    spelled,
    table,
    template,
    texts,
    tokenizer,
    turns,
    with_column,
)

DOCS = Path(__file__).parents[1] / "docs" / "bad-inputs.md"
# Where it stood (line from 1, index from 0, None for the file), why, and what exactly.
Rejected = tuple[int | None, str, str]


@dataclass(frozen=True)
class Bad:
    """One bad input.

    `what`: in words. `make`: writes it into a folder and returns the file, or several. `rejects`
    in order and `packed` conversations beside them; `error`: the one line on stderr, with exit code
    `code`; `warning`: the same where the run goes on. `options`: what is given besides; a value may
    be made in the folder. `around`: what happens meanwhile. `check`: what else must be true of the
    output. `memory`: MiB that a process of its own may take, within `seconds`. `soak`: too slow
    for every day. `also`: what the documentation says besides.
    """

    section: str
    name: str
    what: str
    make: Make
    rejects: Sequence[Rejected] = ()
    packed: int = 0
    code: int = 0
    error: str | None = None
    warning: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    around: Around | None = None
    check: Callable[[Path], None] | None = None
    memory: int | None = None
    seconds: int = 30
    soak: bool = False
    also: str = ""


# -- the table -------------------------------------------------------------------------------------

NO_JSON, NO_UTF8, WRONG, MISSING = "invalid JSON", "invalid UTF-8", "wrong type", "missing field"
UNREADABLE, UNLEARNT = "unreadable file", "nothing to train on"
REST = "the rest of the file cannot be read: …"
TOO_MUCH, REFUSES = (
    "the chat template asks for too much",
    "the chat template refuses the conversation",
)
CALLS = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def calling(calls: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    return {"messages": [{"role": "user", "content": "Go"}, answer]}


def section(title: str, *cases: Bad) -> list[Bad]:
    return [dataclasses.replace(case, section=title) for case in cases]


def bad(name: str, what: str, make: Make, *rejects: Rejected, **more: Any) -> Bad:
    return Bad("", name, what, make, rejects, **more)


def line(name: str, what: str, content: Any, reason: str, detail: str, **more: Any) -> Bad:
    """One bad line between two good ones."""
    return bad(name, what, lines(content), (2, reason, detail), packed=2, **more)


def fine(name: str, what: str, *contents: Any, **more: Any) -> Bad:
    """Lines that look bad and are good."""
    return bad(name, what, lines(*contents), packed=2 + len(contents), **more)


BYTES = section(
    "Bytes and lines",
    line("no-utf8", "a byte that is no UTF-8", b'{"a": "\xff"}', NO_UTF8, "byte 7 is 0xff: …"),
    line("utf8-cut", "half a character", b'{"a": "\xe4\xba', NO_UTF8, "byte 7 is 0xe4: …"),
    line(
        "surrogates-in-utf8",
        "a surrogate in UTF-8 (CESU)",
        b'"\xed\xa0\x80"',
        NO_UTF8,
        "byte 1 is 0xed: …",
    ),
    line("overlong-utf8", "an overlong encoding", b'"\xc0\x80"', NO_UTF8, "byte 1 is 0xc0: …"),
    bad(
        "truncated-last-line",
        "the last line is cut off",
        file("a.jsonl", GOOD + b"\n" + GOOD[:40]),
        (2, NO_JSON, "unexpected end of data at character …"),
        packed=1,
    ),
    bad(
        "no-newline-at-the-end",
        "no newline at the end",
        file("a.jsonl", GOOD + b"\n" + GOOD),
        packed=2,
    ),
    bad(
        "byte-order-mark",
        "a byte order mark at the start",
        file("a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n"),
        packed=1,
    ),
    line(
        "byte-order-mark-within",
        "a byte order mark on a later line",
        b"\xef\xbb\xbf" + GOOD,
        NO_JSON,
        "UTF-8 byte order mark (BOM) is not supported at character 0",
    ),
    bad(
        "utf-16",
        "a file in UTF-16",
        file("a.jsonl", (GOOD * 2).decode().encode("utf-16")),
        (1, NO_UTF8, "byte 0 is 0xff: …"),
        code=1,
    ),
    bad("crlf", "lines that end with CR LF", lines(GOOD, end=b"\r\n"), packed=3),
    bad(
        "cr-alone",
        "lines that end with CR alone",
        file("a.jsonl", GOOD + b"\r" + GOOD),
        (1, NO_JSON, "unexpected content after document at character …"),
        code=1,
    ),
    bad(
        "blank-lines", "blank lines", lines(b"", b" \t ", b"\r"), packed=2, also="they are no rows"
    ),
    bad(
        "line-separators",
        "U+2028, U+2029, U+0085 and VT within a line",
        lines(
            *(
                json.dumps(row(f"a{c}b", "c"), ensure_ascii=False).encode()
                for c in "\u2028\u2029\x85"
            )
        ),
        packed=5,
        check=texts("a\u2028b", "a\u2029b", "a\x85b"),
        also="only a newline ends a line",
    ),
    line(
        "nul-bytes",
        "a line of NUL bytes, as after a crash",
        bytes(100),
        NO_JSON,
        "unexpected character, …",
    ),
    bad(
        "long-line",
        "a line longer than the limit (here 1 MiB of 16)",
        sparse(16 << 20),
        (2, "too large", "the line has more than 1,048,576 bytes"),
        packed=2,
        around=small_lines,
    ),
    bad(
        "gigabyte-line",
        "a line of 1 GiB",
        sparse(1 << 30),
        (2, "too large", "the line has more than 268,435,456 bytes"),
        packed=2,
        memory=1100,
        soak=True,
        seconds=120,
    ),
    bad(
        "empty-file",
        "an empty file",
        file("a.jsonl", b""),
        code=1,
        error="nothing to pack: the input has no rows",
    ),
    bad(
        "blank-file",
        "a file of blank lines",
        file("a.jsonl", b"\n \n\n"),
        code=1,
        error="nothing to pack: the input has no rows",
    ),
)

JSON = section(
    "JSON",
    line("nan", "NaN", b'{"a": NaN}', NO_JSON, "unexpected character, …"),
    line("infinity", "1e999", b'{"a": 1e999}', NO_JSON, "number is infinity …"),
    line(
        "huge-integer",
        "an integer of 5,000 digits",
        b'{"a": 1' + b"0" * 5000 + b"}",
        NO_JSON,
        "number is infinity …",
    ),
    fine(
        "long-integer",
        "an integer of 200 digits beside the messages",
        GOOD[:-1] + b', "n": 1' + b"0" * 200 + b"}",
    ),
    line(
        "lone-surrogate",
        "a lone surrogate",
        b'{"instruction": "\\ud800", "output": "x"}',
        NO_JSON,
        "…surrogate…",
    ),
    line(
        "deep",
        "100,000 lists in each other",
        nested(100_000),
        "nested too deeply",
        "…limit exceeded at character …",
    ),
    line(
        "hundred-levels",
        "200 lists in each other",
        nested(200),
        "nested too deeply",
        "more than 100 levels",
    ),
    line(
        "raw-control-character",
        "a raw control character in a string",
        b'{"a": "\x00"}',
        NO_JSON,
        "unexpected control character …",
    ),
    line(
        "two-on-a-line",
        "two objects on a line",
        GOOD + GOOD,
        NO_JSON,
        "unexpected content after document at character …",
    ),
    line("python-repr", "Python's spelling", b"{'a': None}", NO_JSON, "unexpected character, …"),
    line("comment", "a comment", b"// rows", NO_JSON, "unexpected character, …"),
    fine(
        "duplicate-keys",
        "a key that comes twice",
        b'{"instruction": "first", "instruction": "second", "output": "x"}',
        check=texts("second"),
        also="the last counts, as with other readers of JSON",
    ),
    bad("one-object", "a `.json` of one object", file("a.json", GOOD), packed=1),
    bad(
        "garbage-behind-an-object",
        "a `.json` of one object with garbage behind it",
        file("a.json", GOOD + b" x"),
        (1, NO_JSON, "unexpected content after document …"),
        code=1,
    ),
    bad(
        "garbage-behind-a-list",
        "a `.json` list with garbage behind it",
        file("a.json", b"[" + GOOD + b"] x"),
        (1, NO_JSON, "unexpected content after the list at character …; the rest is not read"),
        packed=1,
    ),
    bad(
        "cut-list",
        "a `.json` list that is cut off",
        file("a.json", b"[" + GOOD + b"," + GOOD[:30]),
        (1, NO_JSON, "…; the rest is not read"),
        packed=1,
    ),
    bad(
        "bad-elements",
        "a `.json` list with bad elements",
        file("a.json", b"[" + b",".join([GOOD, b'{"a": NaN}', b'"\xff"', b"3", GOOD]) + b"]"),
        (1, NO_JSON, "unexpected character, …"),
        (2, NO_UTF8, "byte 1 is 0xff: …"),
        (3, WRONG, "the row is a number, not an object"),
        packed=2,
    ),
    bad(
        "nested-list",
        "a list in a list",
        file("a.json", b"[[" + GOOD + b"]]"),
        (0, WRONG, "the row is a list, not an object"),
        code=1,
    ),
    bad(
        "rows-under-a-key",
        "the rows under a key",
        file("a.json", b'{"data": [' + GOOD + b"]}"),
        (0, "unknown format", "the row's keys are 'data'"),
        code=1,
    ),
    bad(
        "scalar",
        "a `.json` of one number",
        file("a.json", b"3"),
        (0, WRONG, "the row is a number, not an object"),
        code=1,
    ),
    bad(
        "empty-json",
        "an empty `.json`",
        file("a.json", b""),
        (None, NO_JSON, "Input is a zero-length, empty document at character 0"),
        code=1,
    ),
)

ROWS = section(
    "Rows",
    bad(
        "no-objects",
        "a number, a list, null and a string as rows",
        lines(b"3", b"[]", b"null", b'""'),
        (2, WRONG, "the row is a number, not an object"),
        (3, WRONG, "the row is a list, not an object"),
        (4, WRONG, "the row is null, not an object"),
        (5, WRONG, "the row is a string, not an object"),
        packed=2,
    ),
    bad(
        "unknown-keys",
        "an object of no known format, and an empty one",
        lines({"text": "x"}, {}),
        (2, "unknown format", "the row's keys are 'text'"),
        (3, "unknown format", "the row has no keys"),
        packed=2,
    ),
    bad(
        "keys-of-megabytes",
        "a key of 1 MB, and 10^5 keys",
        lines({"k" * 10**6: 1}, {f"k{n}": n for n in range(10**5)}),
        (2, "unknown format", "the row's keys are 'kkk…kkk'"),
        (3, "unknown format", "the row's keys are 'k0', …"),
        packed=2,
    ),
    fine(
        "mixed-formats",
        "several formats in one file",
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ),
    line(
        "two-formats-in-a-row",
        "instructions that differ in one row",
        {"instruction": "a", "output": "b", "response": "c"},
        "ambiguous fields",
        "the row's output and response differ",
    ),
    bad(
        "messages-of-no-kind",
        "messages that are null, a number, a string, an object",
        lines(*({"messages": value} for value in (None, 5, "x", {}))),
        (2, "unknown format", "the row's keys are 'messages' (null)"),
        (3, WRONG, "messages is a number, not a list"),
        (4, WRONG, "messages is a string, not a list"),
        (5, WRONG, "messages is an object, not a list"),
        packed=2,
    ),
    line(
        "empty-conversation",
        "no messages",
        {"messages": []},
        "empty conversation",
        "messages is an empty list",
    ),
    bad(
        "no-message",
        "messages of null, a list, a string",
        lines(*({"messages": [value]} for value in (None, [], "x"))),
        (2, WRONG, "message 0 is null, not an object"),
        (3, WRONG, "message 0 is a list, not an object"),
        (4, WRONG, "message 0 is a string, not an object"),
        packed=2,
    ),
    bad(
        "bad-tools",
        "tools that are none",
        lines(*(row("Hi", "Ho", tools=tools) for tools in ("[", 5, [1], [{}], [{"function": 5}]))),
        (2, NO_JSON, "tools: unexpected end of data at character 1"),
        (3, WRONG, "tools is a number, not a list"),
        (4, WRONG, "tool 0 is a number, not an object"),
        (5, MISSING, "tool 0 has no 'function' and no 'name'"),
        (6, WRONG, "tool 0: function is a number, not an object"),
        packed=2,
    ),
)

MESSAGES = section(
    "Messages",
    bad(
        "content-of-no-kind",
        "content that is null, a number, true, an object",
        lines(*(row("Hi", value) for value in (None, 5, True, {}))),
        (2, WRONG, "message 1 (assistant): content is null, not a string"),
        (3, WRONG, "message 1 (assistant): content is a number, not a string"),
        (4, WRONG, "message 1 (assistant): content is a boolean, not a string"),
        (5, WRONG, "message 1 (assistant): content is an object, not a string"),
        packed=2,
    ),
    bad(
        "content-parts",
        "content as a list: of text, of a picture, of no object",
        lines(
            row([{"type": "text", "text": "Hi"}], "Ho"),
            row([{"type": "image_url"}], "Ho"),
            row(["Hi"], "Ho"),
            row([{"type": "text", "text": None}], "Ho"),
        ),
        (3, "unsupported content", "message 0: content part 0 has type 'image_url'"),
        (4, WRONG, "message 0: content part 0 is a string, not an object"),
        (5, WRONG, "message 0: content part 0: text is null, not a string"),
        packed=3,
    ),
    line(
        "no-content",
        "a message without content",
        {"messages": [{"role": "user"}]},
        MISSING,
        "message 0 (user) has no 'content'",
    ),
    line(
        "no-role",
        "a message without a role",
        {"messages": [{"content": "x"}]},
        MISSING,
        "message 0 has no 'role'",
    ),
    bad(
        "unknown-role",
        "roles that do not exist",
        lines(*(turns((role, "x")) for role in ("bot", "User", "assistant ", "b" * 10**6))),
        (2, "unknown role", "message 0 has role 'bot'"),
        (3, "unknown role", "message 0 has role 'User'"),
        (4, "unknown role", "message 0 has role 'assistant '"),
        (5, "unknown role", "message 0 has role 'bbb…bbb'"),
        packed=2,
    ),
    bad(
        "role-of-no-kind",
        "roles that are null, a number, a list",
        lines(*(turns((role, "x")) for role in (None, 5, []))),
        (2, WRONG, "message 0: role is null, not a string"),
        (3, WRONG, "message 0: role is a number, not a string"),
        (4, WRONG, "message 0: role is a list, not a string"),
        packed=2,
    ),
    line(
        "assistant-first",
        "the assistant first, where the template wants user and assistant in turn",
        turns(("assistant", "x")),
        "template llama2 needs user and assistant in turn",
        "message 0 is of the assistant, not of the user",
        options={"template": "llama2"},
    ),
    line(
        "two-users",
        "two users in a row, there",
        turns(("user", "x"), ("user", "y"), ("assistant", "z")),
        "template llama2 needs user and assistant in turn",
        "message 1 is of the user, not of the assistant",
        options={"template": "llama2"},
    ),
    fine(
        "any-order",
        "the same, where the template does not care",
        turns(("assistant", "x")),
        turns(("user", "x"), ("user", "y"), ("assistant", "z")),
    ),
    line(
        "late-system",
        "a system message in the middle",
        turns(("user", "x"), ("assistant", "y"), ("system", "s"), ("assistant", "z")),
        "template llama2 takes a system message at the start only",
        "message 2 is a system message",
        options={"template": "llama2"},
    ),
    bad(
        "nobody-answers",
        "conversations without an answer",
        lines(turns(("user", "x")), turns(("system", "x"))),
        (2, UNLEARNT, ""),
        (3, UNLEARNT, ""),
        packed=2,
    ),
    fine(
        "empty-answer",
        "an empty question and an empty answer",
        row("", ""),
        also="the model learns to stop at once",
    ),
    bad(
        "bad-weights",
        "weights that are negative, beyond float32, no number",
        lines(
            *(
                turns(("user", "x"))
                | {
                    "messages": [
                        {"role": "user", "content": "x"},
                        {"role": "assistant", "content": "y", "weight": weight},
                    ]
                }
                for weight in (-1, 1e300, "x", True)
            )
        ),
        (2, WRONG, "message 1: weight is -1, not in float32's range"),
        (3, WRONG, "message 1: weight is 1e+300, not in float32's range"),
        (4, WRONG, "message 1: weight is a string, not a number"),
        (5, WRONG, "message 1: weight is a boolean, not a number"),
        packed=2,
    ),
    bad(
        "bad-calls",
        "tool calls that are no objects",
        lines(
            *map(
                calling,
                (
                    "x",
                    5,
                    [1],
                    [None],
                    [{}],
                    [{"function": 5}],
                    [{"function": {"name": 5, "arguments": "{}"}}],
                ),
            )
        ),
        (2, WRONG, "message 1: tool_calls is a string, not a list"),
        (3, WRONG, "message 1: tool_calls is a number, not a list"),
        (4, WRONG, "message 1: tool call 0 is a number, not an object"),
        (5, WRONG, "message 1: tool call 0 is null, not an object"),
        (6, MISSING, "message 1: tool call 0 has no 'name'"),
        (7, WRONG, "message 1: tool call 0 is a number, not an object"),
        (8, WRONG, "message 1: tool call 0: name is a number, not a string"),
        packed=2,
    ),
    bad(
        "bad-arguments",
        "arguments of a call that are no object, or no JSON",
        lines(
            *(
                calling([{"function": {"name": "f", "arguments": arguments}}])
                for arguments in ("[1]", "[", '{"x": NaN}', '{"x": 1' + "0" * 6000 + "}")
            )
        ),
        (2, WRONG, "message 1: tool call 0: arguments is a list, not an object"),
        (3, NO_JSON, "message 1: tool call 0: arguments: unexpected end of data at character 1"),
        (4, NO_JSON, "message 1: tool call 0: arguments: unexpected character, …"),
        (5, NO_JSON, "message 1: tool call 0: arguments: number is infinity …"),
        packed=2,
    ),
    line(
        "no-tools-in-the-template",
        "a call where the template has no tools",
        calling([CALLS]),
        "template chatml has no tools",
        "message 1 calls a tool",
    ),
    bad(
        "many-messages",
        "10^4 messages in one conversation",
        lines(row(*["x"] * 10**4)),
        packed=3,
        check=longest(200),
    ),
    bad(
        "very-many-messages",
        "10^5 messages in one conversation",
        lines(row(*["x"] * 10**5)),
        packed=3,
        check=longest(200),
        seconds=120,
        soak=True,
    ),
)


def injection(name: str, what: str, made: Callable[[], Any], template: str, **config: str) -> Bad:
    return bad(
        f"spelled-tokens-{name}",
        f"user texts with every added token of {what}",
        spelled(made),
        packed=-1,
        check=same_control_tokens,
        options={
            **saved(made, **config),
            "template": template,
            "max_length": "100000",
            "tokenizer_backend": "hf" if name in ("qwen", "llama3", "deepseek") else "auto",
        },
        seconds=120,
        also="none becomes a control token, also where it is split over two messages",
    )


TEXT = section(
    "Text",
    injection("tiny", "a small tokenizer", at_hand.tiny, "chatml"),
    injection("qwen", "Qwen's tokenizer", at_hand.qwen, "qwen2.5"),
    injection(
        "llama3",
        "Llama 3's tokenizer",
        at_hand.llama3,
        "llama3",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    ),
    injection("deepseek", "DeepSeek's tokenizer", at_hand.deepseek, "alpaca"),
    injection("mistral-v1", "Mistral's SentencePiece model", at_hand.mistral_v1, "mistral-v1"),
    injection(
        "mistral-v3", "Mistral's v3 model", functools.partial(at_hand.mistral, "v3"), "mistral-v3"
    ),
    fine("nul", "NUL in a text", row("a\0b", "\0"), check=texts("a\0b")),
    fine(
        "right-to-left",
        "Arabic, Hebrew and marks that turn the direction",
        row("مرحبا \u202eabc\u202c", "שלום"),
        check=texts("مرحبا \u202eabc\u202c"),
    ),
    fine(
        "not-normalized",
        "characters that Unicode can spell in two ways",
        row("e\u0301 \u1100\u1161", "x"),
        check=texts("e\u0301 \u1100\u1161"),
    ),
    fine(
        "escapes",
        "what a terminal would obey",
        row("\x1b[2J\x9b31m", "\x07\x08"),
        check=texts("\x1b[2J\x9b31m"),
    ),
    fine(
        "noncharacters",
        "noncharacters and private use",
        row("\ufffe\uffff\U0010ffff\ue000", "x"),
        check=texts("\ufffe\uffff\U0010ffff\ue000"),
    ),
    fine("replacement-character", "U+FFFD itself", row("\ufffd", "\ufffd"), check=texts("\ufffd")),
    fine(
        "one-character-a-million-times",
        "one character 10^6 times",
        row("a" * 10**6, "b"),
        options={"max_length": "2000000"},
        seconds=60,
    ),
    line(
        "long-content",
        "content of more characters than the limit (here 1,000)",
        row("Hi", "ab " * 1000),
        "too large",
        "a text of 3,000 characters, and no more than 1,000 go",
        around=short_texts,
    ),
    line(
        "huge-content",
        "content of 10^8 characters",
        row("Hi", "ab " * 33_333_334),
        "too large",
        "a text of 100,000,002 characters, and no more than 16,777,216 go",
        memory=2000,
        seconds=300,
        soak=True,
    ),
)

LENGTH = section(
    "Length",
    bad(
        "emoji-cut",
        "an emoji that truncation cuts",
        lines(row("Hi", "x" + "👩‍👩‍👧" * 99)),
        packed=3,
        check=longest(200),
        also="as far as `max_length` reaches",
    ),
    line(
        "no-target-left",
        "no target left behind truncation",
        row("Hi " * 300, "Hello!"),
        UNLEARNT,
        "no target in the first 200 of … tokens",
    ),
    bad(
        "exactly-capacity",
        "exactly as many tokens as fit",
        file("a.jsonl", GOOD),
        packed=1,
        options={"max_length": "16", "truncate": "reject"},
        check=exactly(16),
    ),
    bad(
        "one-more",
        "one token more",
        file("a.jsonl", GOOD),
        (1, "over-long", "16 tokens, more than max_length 15"),
        code=1,
        options={"max_length": "15", "truncate": "reject"},
    ),
    line(
        "last-exchange-too-long",
        "a last exchange that does not fit, with `--truncate turns`",
        row("a", "b", "Hi " * 300, "Hello!"),
        "over-long",
        "the last exchange alone does not fit into max_length 200",
        options={"truncate": "turns"},
    ),
)


def unusable(name: str, what: str, make: Make, error: str, **more: Any) -> Bad:
    """What makes the run impossible: nothing is written, exit code 2."""
    return bad(name, what, make, code=2, error=error, **more)


def one(folder: Path) -> Path:
    return file("a.jsonl", GOOD)(folder)


FILES = section(
    "Files",
    unusable(
        "missing-file",
        "a file that is not there",
        lambda folder: folder / "a.jsonl",
        "…a.jsonl: No such file or directory",
    ),
    unusable(
        "directory",
        "a directory in the place of a file",
        special_file(os.mkdir),
        "…a.jsonl: Is a directory",
    ),
    unusable(
        "fifo",
        "a pipe in the place of a file",
        special_file(os.mkfifo),
        "…a.jsonl: Not a regular file",
    ),
    unusable(
        "device",
        "a device in the place of a file",
        special_file(lambda path: path.symlink_to("/dev/zero")),
        "…a.jsonl: Not a regular file",
    ),
    unusable(
        "symlink-loop",
        "a symbolic link to itself",
        special_file(lambda path: path.symlink_to(path)),
        "…a.jsonl: Too many levels of symbolic links",
    ),
    unusable(
        "dangling-symlink",
        "a symbolic link to nowhere",
        special_file(lambda path: path.symlink_to("nowhere")),
        "…a.jsonl: No such file or directory",
    ),
    unusable(
        "unknown-type",
        "a file of a type that is not known",
        file("a.docx", GOOD),
        "…a.docx: unknown file type; supported are .json, …",
    ),
    unusable(
        "nul-in-a-name",
        "NUL in a file's name",
        lambda folder: f"{folder}/a\0.jsonl",
        "…a⟨U+0000⟩.jsonl: No such file or directory",
    ),
    unusable(
        "long-name",
        "a name of 5,000 characters",
        lambda folder: folder / ("a" * 5000 + ".jsonl"),
        "…: File name too long",
    ),
    bad(
        "unreadable-file",
        "a file that opens and cannot be read (/proc/self/mem)",
        special_file(lambda path: path.symlink_to("/proc/self/mem")),
        (1, UNREADABLE, REST),
        code=1,
    ),
    bad(
        "evil-name",
        "newlines, escapes and quotes in a name",
        lines(b"3", name="a\n\x1b[2J\"'<b>.jsonl"),
        (2, WRONG, "the row is a number, not an object"),
        packed=2,
    ),
    bad(
        "name-without-unicode",
        "a name that is no UTF-8",
        lines(b"3", name=os.fsdecode(b"\xff\xfe.jsonl")),
        (2, WRONG, "the row is a number, not an object"),
        packed=2,
    ),
    bad(
        "name-like-a-place",
        "a name that looks like a place",
        lines(b"3", name="a.jsonl:7[3].jsonl"),
        (2, WRONG, "the row is a number, not an object"),
        packed=2,
    ),
    bad(
        "truncated-while-read",
        "a file that is cut off while it is read",
        many,
        (None, "file changed while it was read", "it had … bytes when it was opened and has … now"),
        packed=2000,
        around=after_the_first_row(lambda path: os.truncate(path, 2000 * (len(GOOD) + 1))),
    ),
    bad(
        "written-while-read",
        "a file that grows while it is read",
        many,
        (None, "file changed while it was read", "it had … bytes when it was opened and has … now"),
        packed=3001,
        around=after_the_first_row(append),
    ),
    bad(
        "replaced-while-read",
        "a file in whose place another is put while it is read",
        many,
        packed=3000,
        around=after_the_first_row(replace),
        also="the one that was opened is read",
    ),
    bad(
        "removed-while-read",
        "a file that is removed while it is read",
        many,
        packed=3000,
        around=after_the_first_row(os.remove),
        also="it is read to its end",
    ),
    bad(
        "removed-before-its-turn",
        "a file that is removed before its turn comes",
        lambda folder: [many(folder), file("b.jsonl", GOOD)(folder), file("c.jsonl", GOOD)(folder)],
        (None, UNREADABLE, REST),
        packed=3001,
        around=after_the_first_row(lambda path: path.with_name("b.jsonl").unlink(missing_ok=True)),
    ),
)

COMPRESSED = section(
    "Compressed files",
    bad(
        "empty-gz", "a `.gz` of no bytes", file("a.jsonl.gz", b""), (None, UNREADABLE, REST), code=1
    ),
    bad(
        "empty-zst",
        "a `.zst` of no bytes",
        file("a.json.zst", b""),
        (None, UNREADABLE, REST),
        code=1,
    ),
    bad(
        "gz-is-plain",
        "a `.gz` that is not compressed",
        file("a.jsonl.gz", GOOD),
        (1, UNREADABLE, REST),
        code=1,
    ),
    bad(
        "plain-is-gz",
        "a `.jsonl` that is compressed",
        file("a.jsonl", gzip.compress(GOOD, 0, mtime=0)),
        (1, NO_UTF8, "byte 1 is 0x8b: …"),
        code=1,
    ),
    bad(
        "cut-gz",
        "a `.gz` that is cut off",
        file("a.jsonl.gz", gzip.compress((GOOD + b"\n") * 2, mtime=0)[:-4]),
        (3, UNREADABLE, REST),
        packed=2,
    ),
    bad(
        "garbage-behind-gz",
        "garbage behind a `.gz`",
        file("a.jsonl.gz", gzip.compress(GOOD + b"\n", mtime=0) + b"garbage"),
        (2, UNREADABLE, REST),
        packed=1,
    ),
    bad(
        "gz-in-gz",
        "a `.gz` in a `.gz`",
        file("a.jsonl.gz", gzip.compress(gzip.compress(GOOD, 0, mtime=0), mtime=0)),
        (1, NO_UTF8, "byte 1 is 0x8b: …"),
        code=1,
    ),
    *(
        bad(
            f"bomb-{kind}",
            f"a line of 64 MiB in a small `.{kind}` (here with a limit of 1 MiB)",
            bomb(f"a.jsonl.{kind}", GOOD + b"\n", b"x\n" + GOOD + b"\n", 64),
            (2, "too large", "the line has more than 1,048,576 bytes"),
            packed=2,
            around=small_lines,
        )
        for kind in ("gz", "zst")
    ),
    bad(
        "bomb-in-a-list",
        "64 MiB of blanks between the rows of a small `.json.gz`",
        bomb("a.json.gz", b"[" + GOOD, b"," + GOOD + b"]", 64),
        packed=2,
        also="a list is read row by row",
    ),
    bad(
        "bomb-in-an-object",
        "an object of 64 MiB in a small `.json.zst` (here with a limit of 1 MiB)",
        bomb("a.json.zst", b'{\n"x":', b"1}", 64),
        (None, "too large", "the file is one row of more than 1,048,576 bytes"),
        code=1,
        around=small_lines,
    ),
    bad(
        "list-of-gigabytes",
        "2 GiB of blanks between the rows of a `.json.gz` of 2 MB",
        bomb("a.json.gz", b"[" + GOOD, b"," + GOOD + b"]", 2048),
        packed=2,
        memory=600,
        soak=True,
        seconds=300,
    ),
    bad(
        "bomb-of-gigabytes",
        "a line of 2 GiB in a `.gz` of 2 MB",
        bomb("a.jsonl.gz", GOOD + b"\n", b"x\n" + GOOD + b"\n", 2048),
        (2, "too large", "the line has more than 268,435,456 bytes"),
        packed=2,
        memory=1100,
        soak=True,
        seconds=120,
    ),
)


def shifted(kind: pa.DataType) -> Make:
    """A table with a number that Python has no time for in its second row."""
    return with_column(lambda: pa.array([0, 2**62, 1], pa.int64()).view(kind))


PARQUET = section(
    "Parquet",
    bad(
        "wrong-columns",
        "no known column",
        table(lambda: {"text": ["x"]}),
        (0, "unknown format", "the row's keys are 'text'"),
        code=1,
    ),
    bad(
        "no-columns",
        "no column at all",
        table(dict),
        code=1,
        error="nothing to pack: the input has no rows",
    ),
    bad(
        "no-rows",
        "no rows",
        table(lambda: {"prompt": pa.array([], pa.string())}),
        code=1,
        error="nothing to pack: the input has no rows",
    ),
    bad(
        "columns-of-no-kind",
        "columns of numbers and of bytes",
        table(lambda: {"prompt": [1], "completion": [b"\xff"]}),
        (0, WRONG, "prompt is a number and completion is bytes, …"),
        code=1,
    ),
    bad(
        "column-twice",
        "two columns of one name",
        table(
            lambda: pa.Table.from_arrays(
                [pa.array(["a"])] * 3, ["prompt", "completion", "completion"]
            )
        ),
        (0, "unsupported content", "two columns are called 'completion'"),
        code=1,
    ),
    bad(
        "field-twice",
        "two fields of one name in an object",
        with_column(lambda: pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, ["a", "a"])),
        *((n, "unsupported content", "…duplicate field names are present") for n in range(3)),
        code=1,
    ),
    bad(
        "text-is-no-utf8",
        "text that is no UTF-8",
        table(
            lambda: {
                "prompt": pa.array([b"a", b"\xff", b"c"]).view(pa.string()),
                "completion": ["1", "2", "3"],
            }
        ),
        (1, NO_UTF8, "…"),
        packed=2,
    ),
    *(
        bad(
            f"{name}-beyond-python",
            f"{what} that Python has no value for",
            shifted(kind),
            (1, "unsupported content", "…"),
            packed=2,
        )
        for name, what, kind in (
            ("timestamp", "a time stamp", pa.timestamp("us")),
            ("date", "a date", pa.date64()),
            ("time", "a time of day", pa.time64("us")),
            ("duration", "a duration", pa.duration("ms")),
        )
    ),
    bad(
        "keys-that-are-no-strings",
        "an object whose keys are numbers",
        table(
            lambda: {"messages": pa.array([[[(1, 2)]]], pa.list_(pa.map_(pa.int32(), pa.int32())))}
        ),
        (0, WRONG, "message 0 is a list, not an object"),
        code=1,
    ),
    bad(
        "nan-in-arguments",
        "NaN, bytes or a time in a call's arguments",
        lambda folder: [
            table(
                lambda value=value: {
                    "messages": [
                        calling([{"function": {"name": "f", "arguments": {"x": value}}}])[
                            "messages"
                        ][1:]
                    ]
                }
            )(_made(folder / str(number)))
            for number, value in enumerate((float("nan"), b"\xff"))
        ],
        (0, WRONG, "message 0: tool call 0: arguments: Out of range float values are not JSON …"),
        (0, WRONG, "message 0: tool call 0: arguments: Object of type bytes is not JSON …"),
        code=1,
        options={"template": "qwen2.5"},
    ),
    bad(
        "nulls-everywhere",
        "nulls in the place of messages, and of all messages",
        table(
            lambda: {
                "messages": [
                    [None, {"role": "user", "content": "x"}],
                    None,
                    [{"role": "assistant", "content": None}],
                ]
            }
        ),
        (0, WRONG, "message 0 is null, not an object"),
        (1, "unknown format", "the row's keys are 'messages' (null)"),
        (2, WRONG, "message 0 (assistant): content is null, not a string"),
        code=1,
    ),
    bad(
        "corrupted-page", "a page that is damaged", corrupted_page, (3, UNREADABLE, REST), packed=3
    ),
    *(
        bad(name, what, file("a.parquet", content), (0, UNREADABLE, REST), code=1)
        for name, what, content in (
            ("empty-parquet", "a file of no bytes", b""),
            ("parquet-is-jsonl", "a file that is none", GOOD),
            ("enormous-footer", "a footer longer than the file", b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
            ("damaged-footer", "a footer of garbage", b"PAR1" + b"\xff" * 64 + b"\x40\0\0\0PAR1"),
        )
    ),
)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


DISK = section(
    "The output",
    unusable("full-disk", "a full disk", one, "…", around=full_disk),
    unusable(
        "read-only-disk",
        "a disk that cannot be written",
        one,
        "…: Read-only file system",
        around=read_only,
    ),
    unusable(
        "output-in-proc",
        "a place where nobody can make a directory",
        one,
        "/proc/nobody: …",
        options={"output": "/proc/nobody"},
    ),
    unusable(
        "output-is-a-file",
        "a file in the place of the output",
        one,
        "…own.txt: File exists",
        options={"output": lambda folder: file("own.txt", b"mine")(folder)},
    ),
    unusable(
        "output-of-others",
        "an output directory with files of others",
        one,
        "…theirs holds data, but no manifest.json of turnpack: …",
        options={
            "output": lambda folder: (
                (folder / "theirs/data").mkdir(parents=True) or folder / "theirs"
            )
        },
    ),
)


def refused(name: str, what: str, source: str, reason: str, detail: str, **more: Any) -> Bad:
    return bad(
        name, what, one, (1, reason, detail), code=1, options=template(CHATML + source), **more
    )


ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
TEMPLATES = section(
    "Chat templates",
    refused(
        "endless-loop",
        "a loop of 10^15 turns (here with 10^4 steps of the 4 * 10^6)",
        ENDLESS,
        TOO_MUCH,
        "it takes too long",
        around=few_steps,
    ),
    refused(
        "doubling-lists",
        "a list that holds itself twice, 60 times over",
        "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
        "{% endfor %}{{ n.a == [n.a] }}",
        TOO_MUCH,
        "it makes a list of more than 1048576 items",
    ),
    refused(
        "sum-of-lists",
        "lists that are summed up",
        "{{ range(9) | batch(1) | sum(start=[]) }}",
        TOO_MUCH,
        "it sums up lists",
    ),
    refused(
        "written-namespace",
        "a namespace that holds itself, written",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
        TOO_MUCH,
        "it writes a namespace",
    ),
    refused(
        "long-lists",
        "one that goes through a list of 10^5 items 10^5 times (here with 10^4 steps)",
        "{% for a in range(99999) %}{% set b = range(99999) | max %}{% endfor %}",
        TOO_MUCH,
        "it takes too long",
        around=few_steps,
    ),
    refused(
        "long-range",
        "a range of 10^9 numbers",
        "{% for a in range(10**9) %}{% endfor %}",
        REFUSES,
        "Range too big. …",
    ),
    refused(
        "endless-recursion",
        "a macro that calls itself",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        TOO_MUCH,
        "it calls itself without end",
    ),
    refused(
        "recursive-loop",
        "a loop that calls itself",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        TOO_MUCH,
        "it calls itself without end",
    ),
    refused(
        "endless-text",
        "a text that is doubled 60 times",
        "{% set n = namespace(s='aa') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}"
        "{% endfor %}{{ n.s }}",
        TOO_MUCH,
        "it writes more than 16777216 characters",
    ),
    refused(
        "repeated-text",
        "a text that is repeated 10^10 times",
        "{{ 'a' * 10**10 }}",
        TOO_MUCH,
        "it repeats something 10000000000 times",
    ),
    refused(
        "wide-format",
        "a number 10^10 characters wide",
        "{{ '%10000000000d' % 1 }}",
        TOO_MUCH,
        "it formats to an enormous width",
    ),
    refused(
        "huge-number",
        "a number of 10^5 bits",
        "{{ 2 ** 4000 ** 2 }}",
        TOO_MUCH,
        "it computes a number of 8001 bits",
    ),
    *(
        refused(name, what, source, REFUSES, "no loader for this environment specified")
        for name, what, source in (
            ("reads-a-file", "one that includes a file", "{% include '/etc/passwd' %}"),
            ("imports", "one that imports", "{% import 'os' as os %}"),
            ("extends", "one that extends a file", "{% extends '/etc/passwd' %}"),
        )
    ),
    refused(
        "opens-a-file",
        "one that opens a file",
        "{{ open('/etc/passwd').read() }}",
        REFUSES,
        "'open' is undefined",
    ),
    refused(
        "leaves-the-sandbox",
        "one that asks for a class",
        "{{ ''.__class__.__mro__ }}",
        REFUSES,
        "access to attribute '__class__' of 'str' …",
    ),
    refused(
        "runs-a-command",
        "one that wants to run a command",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        REFUSES,
        "access to attribute '__init__' of 'type' …",
    ),
    refused(
        "changes-messages",
        "one that changes the messages",
        "{{ messages.append(1) }}",
        REFUSES,
        "access to attribute 'append' of 'list' …",
    ),
    refused(
        "divides-by-zero", "one that divides by zero", "{{ 1 / 0 }}", REFUSES, "division by zero"
    ),
    refused(
        "writes-a-surrogate",
        "one that writes a lone surrogate",
        "{{ '\\ud800' }}",
        "invalid Unicode",
        "the template writes a lone surrogate",
    ),
    refused(
        "raises",
        "one that refuses every conversation",
        "{{ raise_exception('no') }}",
        REFUSES,
        "no",
    ),
    bad("empty-template", "an empty one", one, (1, UNLEARNT, ""), code=1, options=template("")),
    *(
        unusable(name, what, one, f"…own.jinja: {error}", options=template(source))
        for name, what, source, error in (
            ("template-syntax", "one that is no Jinja", "{% for", "not a Jinja chat template: …"),
            ("template-no-utf8", "one that is no UTF-8", b"\xff", "'utf-8' codec can't decode …"),
            (
                "deep-template",
                "5,000 lists in each other",
                "{{ " + "[" * 5000 + "]" * 5000 + " }}",
                "not a Jinja chat template: it is nested too deeply",
            ),
            (
                "long-number",
                "a number of 5,000 digits",
                "{{ 1" + "0" * 5000 + " }}",
                "Exceeds the limit …",
            ),
        )
    ),
    unusable(
        "template-is-a-pipe",
        "a pipe",
        one,
        "…own.jinja: not a file",
        options={
            "template": lambda folder: os.mkfifo(folder / "own.jinja") or folder / "own.jinja"
        },
    ),
    unusable(
        "no-chat-template",
        "`auto` for a tokenizer whose template is a number",
        one,
        "… comes with no chat template: …",
        options={
            **tokenizer(lambda spec: None, tokenizer_config__json=b'{"chat_template": 5}'),
            "template": "auto",
        },
    ),
)


def broken(name: str, what: str, error: str, *changes: Any, **files: bytes) -> Bad:
    return unusable(
        f"tokenizer-{name}",
        what,
        one,
        error,
        options=tokenizer(*(changes or (lambda spec: None,)), **files),
    )


TOKENIZERS = section(
    "Tokenizers",
    bad(
        "ids-beyond-the-vocabulary",
        "an added token with an id behind the vocabulary",
        one,
        packed=1,
        warning="…'<|im_end|>' has the id 5000 in the file, but the tokenizer's library numbers "
        "added tokens itself and gives it 387",
        options=tokenizer(renumbered("<|im_end|>", 5000)),
    ),
    bad(
        "id-of-a-word",
        "an added token with the id of a word",
        one,
        packed=1,
        warning="…'<|im_end|>' has the id 5 in the file, but …",
        options=tokenizer(renumbered("<|im_end|>", 5)),
    ),
    bad(
        "hole-in-the-vocabulary",
        "a vocabulary with fewer words than its largest id",
        one,
        packed=1,
        options=tokenizer(lambda spec: spec["model"]["vocab"].update(H=100_000)),
    ),
    broken(
        "id-past-int32",
        "an id past 2^31",
        "… is not a tokenizer.json: it has the id 2147483648, …",
        renumbered("<|im_end|>", 2**31),
    ),
    broken(
        "enormous-id",
        "a word with an id for which nobody has the memory",
        "… is not a tokenizer.json: it has the id 2000000000, …",
        lambda spec: spec["model"]["vocab"].update(H=2_000_000_000),
    ),
    broken(
        "negative-id",
        "a negative id",
        "… is not a tokenizer.json: invalid value: integer `-1`, …",
        renumbered("<|im_end|>", -1),
    ),
    broken(
        "id-twice",
        "two words of one id",
        "tokenizer … does not work: Token …",
        lambda spec: spec["model"]["vocab"].update(h=spec["model"]["vocab"]["o"]),
    ),
    broken(
        "no-vocabulary",
        "an empty vocabulary",
        "tokenizer … does not work: Unk token `<unk>` not found in the vocabulary",
        lambda spec: spec["model"].update(vocab={}, merges=[]),
    ),
    broken(
        "no-added-tokens",
        "no added tokens",
        "template chatml stops with '<|im_end|>', which is no added token of the tokenizer",
        lambda spec: spec.update(added_tokens=[]),
    ),
    broken(
        "no-json",
        "a tokenizer.json that is cut off",
        "… is not a tokenizer.json: EOF while …",
        b'{"model": {',
    ),
    broken(
        "empty",
        "a tokenizer.json of no bytes",
        "… is neither a tokenizer.json nor a SentencePiece model: it has no pieces",
        b"",
    ),
    broken(
        "no-utf8",
        "a tokenizer.json that is no UTF-8",
        "… is not a tokenizer.json: 'utf-8' codec can't decode …",
        b'{"\xff"}',
    ),
    broken(
        "bad-config",
        "a tokenizer_config.json that is no JSON",
        "…tokenizer_config.json is not JSON: …",
        tokenizer_config__json=b"{",
    ),
    broken(
        "deep-config",
        "100,000 lists in each other there",
        "…tokenizer_config.json is not JSON: maximum recursion depth exceeded …",
        tokenizer_config__json=b"[" * 100_000,
    ),
    broken(
        "config-list",
        "a list in the place of added_tokens_decoder",
        "…tokenizer_config.json: added_tokens_decoder is no object",
        tokenizer_config__json=b'{"added_tokens_decoder": [1]}',
    ),
    broken(
        "config-id",
        "an id there that is none",
        "…tokenizer_config.json: 'x' is no token's id",
        tokenizer_config__json=b'{"added_tokens_decoder": {"x": "y"}}',
    ),
    broken(
        "added-id",
        "an id in added_tokens.json that is none",
        "…added_tokens.json: 5000000000 is no token's id",
        added_tokens__json=b'{"<x>": 5000000000}',
    ),
    broken(
        "template-no-utf8",
        "a chat_template.jinja that is no UTF-8",
        "…chat_template.jinja: 'utf-8' codec can't decode …",
        chat_template__jinja=b"\xff",
    ),
)

CASES = [*BYTES, *JSON, *ROWS, *MESSAGES, *TEXT, *LENGTH, *FILES, *COMPRESSED, *PARQUET, *DISK]
CASES += [*TEMPLATES, *TOKENIZERS]


# -- the documentation -----------------------------------------------------------------------------

HEAD = """# Bad inputs

What `turnpack prepare` does with input that is wrong or hostile. This page is made by
`python tests/bad_inputs.py` from the table that `tests/test_bad_inputs.py` runs: every line is the
test `test_bad_input[name]`, through the command line. `…` stands for any text.

Of every line is true besides: the other rows are packed; what is left out is in `rejects.jsonl`
with file, line or index, reason and the row itself; rows read are rows packed and rejected; with
`--strict` the run stops at the first; `turnpack verify` finds the output in order, or there is
none, and nothing half-written. Exit codes: 0 done, 1 nothing to pack, 2 it cannot be done.
Lines marked † take long: `make soak` runs them.
"""


def happens(case: Bad) -> str:
    """The last but one column of the table."""
    said = [
        f"`{reason}`: `{detail}`" if detail else f"`{reason}`" for _, reason, detail in case.rejects
    ]
    if len(said) > 3:
        said = [*said[:2], f"and {len(said) - 2} more"]
    if case.warning:
        said.append(f"warning `{case.warning}`")
    if case.error:
        said.append(f"error `{case.error}`")
    if not said:
        said.append("packed")
    if case.also:
        said.append(case.also)
    if case.memory:
        said.append(f"within {case.memory:,} MiB")
    return "; ".join(said) + (f"; exit code {case.code}" if case.code else "")


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    for title in dict.fromkeys(case.section for case in CASES):
        parts.append(f"\n## {title}\n\n| input | what happens | test |\n| --- | --- | --- |\n")
        for case in CASES:
            if case.section == title:
                cells = case.what, happens(case), f"`{case.name}`{' †' * case.soak}"
                parts.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    DOCS.write_text(document(), encoding="utf-8")
