"""Files → conversations and rejects: file types, compression, places, damage."""

import errno
import gzip
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_hand import SHARED, needs_shared
from turnpack import records
from turnpack.nouns import Conversation, Reject, Source

REPO = Path(__file__).resolve().parent.parent
DATA = SHARED / "data"
SAMPLE = REPO / "examples" / "sample"


def row(text="hi"):
    return {"messages": [{"role": "user", "content": text}]}


ROWS = [row("one"), {"instruction": "二", "output": "👋"}, {"prompt": "three", "completion": "3"}]
LINES = [orjson.dumps(each) for each in ROWS]


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def file(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def read(path, **options):
    return list(records.read([path], **options))


def told(results):
    """What a test compares: texts of the conversations, and rejects without their row."""
    return [
        (each.source.line or each.source.index, each.reason, each.detail)
        if isinstance(each, Reject)
        else "|".join(message["content"] for message in each.messages)
        for each in results
    ]


TEXTS = ["one", "二|👋", "three|3"]


# File types


PLAIN = {
    "rows.json": orjson.dumps(ROWS),
    "pretty.json": orjson.dumps(ROWS, option=orjson.OPT_INDENT_2),
    "lines.json": b"\n".join(LINES),
    "rows.jsonl": b"\n".join(LINES) + b"\n",
    "ROWS.NDJSON": b"\n".join(LINES) + b"\n",
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_same_rows_in_every_file_type(file, name, packed):
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed](PLAIN[name])
    path = file(name + packed, data)
    made = read(path)
    assert told(made) == TEXTS
    assert [each.row for each in made] == ROWS
    by_index = name in ("rows.json", "pretty.json")
    assert [each.source for each in made] == [
        Source(path, index=n) if by_index else Source(path, line=n + 1) for n in range(3)
    ]


def test_a_path_may_be_of_a_class_of_its_own(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"messages":[{"role":"user","content":"Hi"}]}')
    (made,) = records.read(np.str_(file))
    assert made.source == (str(file), 1, None)


def test_one_object_is_one_row(file):
    path = file("a.json", orjson.dumps(ROWS[1], option=orjson.OPT_INDENT_2))
    assert told(read(path)) == TEXTS[1:2]
    assert read(path)[0].source == Source(path, index=0)


def test_concatenated_members(file):
    halves = [b"\n".join(LINES[:1]) + b"\n", b"\n".join(LINES[1:])]
    assert told(read(file("a.jsonl.gz", b"".join(map(gzip.compress, halves))))) == TEXTS
    assert told(read(file("a.jsonl.zst", b"".join(map(zstd, halves))))) == TEXTS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_no_rows(file, name):
    data = {"a.json": b" [ ] ", "a.jsonl": b"", "a.jsonl.gz": gzip.compress(b"")}
    assert read(file(name, data.get(name, zstd(b"")))) == []


def test_parquet(tmp_path):
    call = {"name": "f", "arguments": '{"x": 1}'}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q", "tool_calls": None, "weight": None},
                {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            ],
            "tools": '[{"name": "f"}]',
        },
        {"instruction": "i", "output": "o"},
        {"conversation": [{"human": "h", "assistant": "a"}]},
    ] * 200
    path = tmp_path / "rows.parquet"
    rows = [dict.fromkeys(key for each in ROWS + rows for key in each) | row for row in ROWS + rows]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    made = read(path)
    assert len(made) == 603
    assert told(made[3:6]) == ["q|", "i|o", "h|a"]
    assert made[3].messages[0] == {"role": "user", "content": "q"}
    assert made[3].messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert made[3].tools == [{"type": "function", "function": {"name": "f"}}]
    assert [each.source for each in made] == [Source(str(path), index=n) for n in range(603)]
    assert made[4].row["conversation"] is None


def test_files_of_several_formats_in_order(file):
    paths = [file(name, data) for name, data in PLAIN.items()]
    assert told(records.read(paths)) == TEXTS * len(paths)
    assert told(records.read(iter(paths))) == TEXTS * len(paths)
    assert told(records.read(Path(paths[0]))) == TEXTS


def test_forced_format(file):
    path = file("a.jsonl", LINES[1])
    assert told(read(path, format="alpaca")) == TEXTS[1:2]
    assert told(read(path, format="messages")) == [
        (1, "missing field", "the row has no 'messages'")
    ]


# The caller's mistakes, before anything is read


def test_missing_file(file, tmp_path):
    with pytest.raises(FileNotFoundError):
        records.read([file("a.jsonl", LINES[0]), tmp_path / "b.jsonl"])


def test_directory(tmp_path):
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        records.read([tmp_path / "rows.json"])
    assert caught.value.filename == str(tmp_path / "rows.json")


def test_fifo_and_symlink_loop(tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    with pytest.raises(OSError) as caught:
        records.read([tmp_path / "fifo.jsonl"])
    assert caught.value.errno == errno.EINVAL
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(OSError) as caught:
        records.read([tmp_path / "loop.jsonl"])
    assert caught.value.errno == errno.ELOOP


def test_unreadable_file(file, monkeypatch):
    path = file("a.jsonl", LINES[0])

    def refuse(name, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    monkeypatch.setattr("builtins.open", refuse)  # as root, who may run this, reads all
    with pytest.raises(PermissionError):
        records.read([path])


@pytest.mark.parametrize("name", ["a.csv", "a", "a.gz", "a.parquet.gz", "a.jsonl.zst.gz"])
def test_unknown_extension(file, name):
    path = file(name, b"")
    with pytest.raises(ValueError) as caught:
        records.read([path])
    assert str(caught.value) == (
        f"{path}: unknown file type; supported are .json, .jsonl, .ndjson (each also .gz or .zst) "
        "and .parquet"
    )


def test_unknown_format(file):
    with pytest.raises(ValueError, match="unknown format 'openai'; there are messages, "):
        records.read([file("a.jsonl", b"")], format="openai")


# Lines


def said(text):
    """The JSON parser's own words, which change with its version."""
    with pytest.raises(orjson.JSONDecodeError) as caught:
        orjson.loads(text)
    return f"{caught.value.msg} at character {caught.value.pos}"


CUT = LINES[0][:20]

BAD_LINES = {
    "cut off": (CUT, "invalid JSON", said(CUT)),
    "NaN": (b'{"a": NaN}', "invalid JSON", said('{"a": NaN}')),
    "1e999": (b'{"a": 1e999}', "invalid JSON", said('{"a": 1e999}')),
    "lone surrogate": (b'{"a": "\\ud800"}', "invalid JSON", said('{"a": "\\ud800"}')),
    "control character": (b'{"a": "\x00"}', "invalid JSON", said('{"a": "\x00"}')),
    "two rows": (b"{} {}", "invalid JSON", said("{} {}")),
    "byte order mark": (b"\xef\xbb\xbf{}", "invalid JSON", said(b"\xef\xbb\xbf{}")),
    "no UTF-8": (b'{"a": "\xff"}', "invalid UTF-8", "byte 7 is 0xff: invalid start byte"),
    "UTF-8 cut": (b'{"a": "\xe4\xba', "invalid UTF-8", "byte 7 is 0xe4: unexpected end of data"),
    "number": (b"3", "wrong type", "the row is a number, not an object"),
    "list": (b"[{}]", "wrong type", "the row is a list, not an object"),
    "null": (b"null", "wrong type", "the row is null, not an object"),
    "string": (b'"x"', "wrong type", "the row is a string, not an object"),
    "deep": (
        b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
        "nested too deeply",
        "more than 100 levels",
    ),
    "bottomless": (b"[" * 100_000, "nested too deeply", said("[" * 100_000)),
    "unknown role": (
        b'{"messages": [{"role": "bot", "content": "x"}]}',
        "unknown role",
        "message 0 has role 'bot'",
    ),
}


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_among_good_ones(file, line, reason, detail):
    path = file("a.jsonl", b"\n".join([LINES[0], line, LINES[1]]))
    made = read(path)
    assert told(made) == [TEXTS[0], (2, reason, detail), TEXTS[1]]
    assert made[1].source == Source(path, line=2)
    try:
        kept = json.loads(line) if reason in ("wrong type", "unknown role") else line.decode()
    except UnicodeDecodeError:
        kept = line.decode(errors="backslashreplace")
    if len(line) > records.MAX_LINE or len(line) > 10_000:
        kept = kept[:10_000] + " [cut here, 100,000 bytes in all]"
    assert made[1].row == kept


def test_lines_are_split_at_newlines_only(file):
    texts = ["a\u2028b", "c\x85d", "e\x0bf", "\u2029"]
    data = b"\xef\xbb\xbf" + b"\r\n \t\r\n\n".join(
        json.dumps(row(text), ensure_ascii=False).encode().replace(b"\\u000b", b"\\u000b")
        for text in texts
    )
    made = read(file("a.jsonl", data))
    assert told(made) == texts
    assert [each.source.line for each in made] == [1, 4, 7, 10]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_line_over_the_limit_is_one_reject(file, monkeypatch, packed):
    monkeypatch.setattr(records, "MAX_LINE", 100)
    monkeypatch.setattr(records, "_CHUNK", 7)
    exact = orjson.dumps(row("x" * (100 - len(orjson.dumps(row(""))))))
    assert len(exact) == 100
    lines = [exact, b" " + exact, LINES[1], exact + b" " * 50, exact]
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed](b"\n".join(lines))
    made = read(file("a.jsonl" + packed, data))
    much = "too large", "the line has more than 100 bytes"
    assert [each[:3] for each in told(made)] == [
        "xxx",
        (2, *much),
        TEXTS[1],
        (4, *much),
        "xxx",
    ]


def test_a_single_row_over_the_limit_is_one_reject(file, monkeypatch):
    monkeypatch.setattr(records, "WHOLE", 20)
    monkeypatch.setattr(records, "MAX_LINE", 50)
    assert [each.detail for each in read(file("a.json.gz", gzip.compress(b" " * 10**6)))] == [
        "the file is one row of more than 50 bytes"
    ]
    made = read(file("a.json", b"[" + LINES[0] + b', "' + b"x" * 500 + b'", 3]'), format="messages")
    assert told(made) == [
        TEXTS[0],
        (1, "too large", "the element has more than 50 bytes"),
        (2, "wrong type", "the row is a number, not an object"),
    ]
    made = read(file("a.json", b"[" + LINES[0] + b', "' + b"x" * 500), format="messages")
    assert told(made) == [
        TEXTS[0],
        (1, "too large", "the element has more than 50 characters; the rest is not read"),
    ]


def chunked(file, monkeypatch, name, data, size, whole):
    """What is read of a file of which no more is held than that."""
    path = file(name, data)
    expected = read(path)
    with monkeypatch.context() as patched:
        patched.setattr(records, "WHOLE", whole)
        chunks = records._chunks
        patched.setattr(
            records,
            "_chunks",
            lambda path: (
                chunk[at : at + size] for chunk in chunks(path) for at in range(0, len(chunk), size)
            ),
        )
        return read(path), expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_long_list_is_read_row_by_row(file, monkeypatch, size):
    elements = [
        *(LINES[0], b'{"a": NaN}', b'"\\ud800"', b'"\xff"', b"3", b"-12.5e3", b"true", b'"a\nb"'),
        *("{'a': 'é👋\u2028'}".replace("'", '"').encode(), b'"\\ud83d\\ude00"', b"null", b"[]"),
        *(orjson.dumps(row("long " * 50)), b"-Infinity", LINES[1], b"7"),
    ]
    for around in (b"%b", b"\xef\xbb\xbf \n%b\r\n ", b"%b x", b"%b,"):
        for text in (b"[%b]", b"[%b", b"[ %b , ]", b"[%b,,]", b"[%b {}]", b'[%b, "', b"[%b,tru"):
            data = around.replace(b"%b", text).replace(b"%b", b" ,\n".join(elements))
            made, expected = chunked(file, monkeypatch, "a.json", data, size, 10)
            assert made == expected


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
def test_lines_and_lists_longer_than_what_is_held(file, monkeypatch, name):
    pack = {"json": bytes, "gz": gzip.compress, "zst": zstd}[name.rpartition(".")[2]]
    for data in (b"\n".join(LINES), b"[" + b",".join(LINES) + b"]"):
        made, expected = chunked(file, monkeypatch, name, pack(data), 16, 20)
        assert made == expected
        assert told(made) == TEXTS
        damaged = pack(data)[:-5] if pack is not bytes else data[:-5]
        made, expected = chunked(file, monkeypatch, name, damaged, 16, 20)
        assert [each for each in told(made) if isinstance(each, str)] == [
            each for each in told(expected) if isinstance(each, str)
        ]
        assert isinstance(made[-1], Reject)


# Documents


def test_list_with_bad_elements(file):
    """Only the bad ones are lost, where their end can be found."""
    elements = [LINES[0], b'{"a": NaN}', b'"\\ud800"', b'"\xff"', b"3", b'"a\nb"', LINES[1]]
    made = read(file("a.json", b" [" + b" ,\n".join(elements) + b"]\n"))
    assert told(made) == [
        TEXTS[0],
        (1, "invalid JSON", said('{"a": NaN}')),
        (2, "invalid JSON", said('"\\ud800"')),
        (3, "invalid UTF-8", "byte 1 is 0xff: invalid start byte"),
        (4, "wrong type", "the row is a number, not an object"),
        (5, "invalid JSON", said('"a\nb"')),
        TEXTS[1],
    ]
    assert made[3].row == '"\\xff"'


ONE = LINES[0].decode()
AT = len(ONE) + 1
LISTS = {
    "cut off in an element": (f'[{ONE},{{"a": ', f"Expecting value at character {AT + 7}"),
    "cut off after a comma": (f"[{ONE},", f"Expecting value at character {AT + 1}"),
    "cut off after an element": (f"[{ONE}", f"expected ',' or ']' at character {AT}"),
    "no comma": (f"[{ONE} {ONE}]", f"expected ',' or ']' at character {AT + 1}"),
    "two commas": (f"[{ONE},,{ONE}]", f"Expecting value at character {AT + 1}"),
    "single quotes": (f"[{ONE},'é']", f"Expecting value at character {AT + 1}"),
    "something behind": (
        f"[{ONE}] {ONE}",
        f"unexpected content after the list at character {AT + 2}",
    ),
}


@pytest.mark.parametrize(("text", "detail"), LISTS.values(), ids=LISTS.keys())
def test_list_with_a_syntax_error_keeps_what_stands_before(file, text, detail):
    made = read(file("a.json", text.encode()))
    assert told(made) == [TEXTS[0], (1, "invalid JSON", f"{detail}; the rest is not read")]
    assert text.endswith(made[1].row)


def test_list_with_a_comma_too_many(file):
    assert told(read(file("a.json", b"[" + b",".join(LINES) + b",]"))) == TEXTS


def test_deep_element_of_a_list(file):
    deep = b"[" * 200 + b"]" * 200
    made = read(file("a.json", b"[" + LINES[0] + b"," + deep + b"," + LINES[1] + b"]"))
    assert told(made) == [
        TEXTS[0],
        (1, "nested too deeply", "more than 100 levels"),
        TEXTS[1],
    ]
    made = read(file("b.json", b"[" + LINES[0] + b"," + b"[" * 100_000))
    assert told(made) == [
        TEXTS[0],
        (1, "nested too deeply", f"at character {AT + 1}; the rest is not read"),
    ]


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "invalid JSON", said("")),
        (b"3", "wrong type", "the row is a number, not an object"),
        (b"null", "wrong type", "the row is null, not an object"),
        (b'"x"', "wrong type", "the row is a string, not an object"),
        (b"instruction,output\n", "invalid JSON", said("instruction,output\n")),
        (b'{\n  "messages": [', "invalid JSON", said('{\n  "messages": [')),
        (LINES[0][:-1], "invalid JSON", said(LINES[0][:-1])),
        (b"\xff\xfe[\x00]\x00", "invalid UTF-8", "byte 0 is 0xff: invalid start byte"),
    ],
)
def test_document_that_is_no_list(file, data, reason, detail):
    assert [each[1:] for each in told(read(file("a.json", data)))] == [(reason, detail)]


def test_lines_in_a_json_file(file):
    lines = [LINES[0][:-1], LINES[1], b"", LINES[2]]
    made = read(file("a.json", b"\n".join(lines)))
    assert told(made) == [(1, "invalid JSON", said(LINES[0][:-1])), TEXTS[1], TEXTS[2]]
    assert made[2].source.line == 4


# Damaged files


MANY = [row(f"{n} {random.Random(n).random()}") for n in range(20_000)]
MANY_LINES = b"\n".join(map(orjson.dumps, MANY))
DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "cut by one": lambda data: data[:-1],
    "overwritten": lambda data: data[: len(data) // 2] + b"\xff" * (len(data) // 2),
    "garbage behind": lambda data: data + b"garbage",
    "no such thing": lambda data: b"no such thing" * 9,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "lines.json"])
def test_damaged_stream_keeps_what_was_read(file, name, pack, damage):
    data = orjson.dumps(MANY) if name == "list.json" else MANY_LINES
    name += ".zst" if pack is zstd else ".gz"
    *good, last = read(file(name, DAMAGE[damage](pack(data))))
    assert isinstance(last, Reject)
    assert last.reason == "unreadable file"
    assert last.detail.startswith("the rest of the file cannot be read: ")
    # Damage that a decoder only sees later (gzip's checksum at the end) can spoil a row before.
    good = [each for each in good if isinstance(each, Conversation)]
    assert [each.row for each in good[:5000]] == MANY[: min(5000, len(good))]
    if damage in ("cut", "overwritten"):
        assert 5000 < len(good) < 20_000
    elif damage in ("cut by one", "garbage behind"):
        assert 17_000 < len(good) <= 20_000
    else:
        assert not good


def test_damaged_parquet_keeps_what_was_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(MANY[:5000]), path, row_group_size=1000)
    offset = pq.ParquetFile(path).metadata.row_group(3).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset + 40 : offset + 140] = bytes(100)
    path.write_bytes(data)
    *good, last = read(path)
    assert [each.row for each in good] == MANY[:3000]
    assert (last.source, last.reason) == (Source(str(path), index=3000), "unreadable file")
    for damage in (data[:-10], b"", b"PAR1" * 10):
        path.write_bytes(damage)
        (only,) = read(path)
        assert only.reason == "unreadable file"


def test_parquet_rows_that_are_large_are_taken_a_few_at_a_time(tmp_path, monkeypatch):
    rows = [row("x" * 100 + str(n)) for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = read(tmp_path / "a.parquet")
    taken = []
    real = records._batch_rows

    def batch_rows(path, first, batch):
        taken.append(batch.num_rows)
        return real(path, first, batch)

    monkeypatch.setattr(records, "_batch_rows", batch_rows)
    monkeypatch.setattr(records, "_BATCH_BYTES", 500)
    assert read(tmp_path / "a.parquet") == expected
    assert sum(taken) == 20
    assert max(taken) < 6


def test_parquet_text_that_is_no_utf8(tmp_path):
    prompts = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    table = pa.table({"prompt": prompts, "completion": ["1", "2", "3"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [
        each if isinstance(each, str) else each[:2] for each in told(read(tmp_path / "a.parquet"))
    ] == [
        "one|1",
        (1, "invalid UTF-8"),
        "three|3",
    ]


def test_parquet_value_that_python_lacks(tmp_path):
    """A nanosecond spoils its own row only."""
    times = pa.array([1000, 1, 2000], pa.timestamp("ns"))
    table = pa.table({"prompt": ["a", "b", "c"], "completion": ["1", "2", "3"], "time": times})
    pq.write_table(table, tmp_path / "a.parquet")
    made = told(read(tmp_path / "a.parquet"))
    assert made[::2] == ["a|1", "c|3"]
    assert made[1] == "b|2" or made[1][:2] == (1, "unsupported content")  # pandas can


def test_parquet_without_a_known_column(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    assert told(read(tmp_path / "a.parquet")) == [
        (0, "unknown format", "the row's keys are 'text'")
    ]


def test_file_that_vanishes(file):
    paths = [file("a.jsonl", LINES[0]), file("b.jsonl", LINES[1]), file("c.jsonl", LINES[2])]
    reader = records.read(paths)
    os.remove(paths[1])
    first, second, third = reader
    assert told([first, third]) == [TEXTS[0], TEXTS[2]]
    assert (second.source, second.reason) == (Source(paths[1]), "unreadable file")


# Two stages, laziness, nothing lost


def test_stages_can_run_in_two_processes(file, tmp_path):
    paths = [file(name, data) for name, data in PLAIN.items()]
    paths.append(file("damaged.jsonl.gz", gzip.compress(MANY_LINES)[:-1]))
    paths.append(file("bad.jsonl", b"\n".join(line for line, _, _ in BAD_LINES.values())))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    paths.append(tmp_path / "rows.parquet")
    there = [pickle.loads(pickle.dumps(raw)) for raw in records.raw_rows(paths)]
    made = [records.parse(raw) for raw in there]
    back = pickle.loads(pickle.dumps(made))
    assert back == made == list(records.read(paths))
    assert isinstance(there[0].content, dict)
    assert isinstance(there[-4].content, bytes)


def test_jsonl_is_read_lazily(file):
    path = file("a.jsonl", LINES[0] + b"\n")
    with open(path, "ab") as more:
        reader = records.read([path])
        assert told([next(reader)]) == TEXTS[:1]
        more.write(LINES[1] + b"\n")
        more.flush()
        text, reject = told(reader)
        assert (text, reject[1]) == (TEXTS[1], "file changed while it was read")


KEYS = """
    messages conversations conversation instruction output prompt completion history system tools
    role content from value human assistant tool_calls function name arguments train weight
"""
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.lists(JUNK, max_size=8))
def test_every_row_is_a_conversation_or_a_reject(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    lines = [json.dumps(each) for each in rows]
    (folder / "junk.jsonl").write_text("\n".join(lines))
    (folder / "junk.json").write_text("[" + ", ".join(lines) + "]")
    from_lines = read(folder / "junk.jsonl")
    from_list = read(folder / "junk.json")
    assert len(from_lines) == len(from_list) == len(rows)
    for one, other in zip(from_lines, from_list, strict=True):
        assert isinstance(one, (Conversation, Reject))
        if isinstance(one, Conversation):
            assert (one.messages, one.tools) == (other.messages, other.tools)
        else:
            assert (one.reason, one.detail) == (other.reason, other.detail)


@given(st.binary(max_size=200) | st.text('[]{},:"\\ \n\r1a\u2028', max_size=60).map(str.encode))
def test_no_bytes_raise(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "bytes.jsonl").write_bytes(data)
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    made = read(folder / "bytes.jsonl")
    assert [each.source.line for each in made] == [
        number for number, line in enumerate(lines, 1) if line and not line.isspace()
    ]
    for name in ("bytes.json", "bytes.json.gz", "bytes.jsonl.zst", "bytes.parquet"):
        (folder / name).write_bytes(data)
        for each in read(folder / name):
            assert isinstance(each, (Conversation, Reject))


# Real data and the sample


REAL = {
    "alpaca_en.json": (999, "alpaca"),
    "alpaca_zh.json": (1000, "alpaca"),
    "alpaca_gpteacher_toolformer.json": (7673, "alpaca"),
    "sharegpt_fastchat_dummy.json": (500, "sharegpt"),
    "sharegpt_tools_en.json": (300, "sharegpt"),
    "sharegpt_tools_zh.json": (300, "sharegpt"),
    "firefly_dummy.jsonl": (33, "firefly"),
    "messages_kdconv_zh.jsonl": (900, "messages"),
    "messages_gsm8k.jsonl": (7473, "messages"),
}


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_file(name):
    count, format = REAL[name]
    made = read(DATA / name)
    assert len(made) == count
    assert [each for each in made if isinstance(each, Reject)] == []
    assert made == read(DATA / name, format=format)


@needs_shared
def test_real_rows():
    first = {name: next(records.read(DATA / name)) for name in REAL}

    english = first["alpaca_en.json"]
    assert english.messages[0] == {
        "role": "user",
        "content": "Describe a process of making crepes.",
    }
    assert english.messages[1]["content"].startswith("Making crepes is an easy and")
    assert english.messages[1]["content"] == english.row["output"]

    teacher = first["alpaca_gpteacher_toolformer.json"]
    assert teacher.messages[0]["input"] == "French Revolution"
    assert teacher.messages[1]["content"] == (
        "Summary of the French Revolution: wikipedia('French Revolution')"
    )

    vicuna = first["sharegpt_fastchat_dummy.json"]
    assert [each["role"] for each in vicuna.messages] == ["user", "assistant"] * 2
    assert vicuna.messages[2]["content"] == "Have a nice day!"

    tools = first["sharegpt_tools_en.json"]
    assert [tool["function"]["name"] for tool in tools.tools] == [
        tool["name"] for tool in json.loads(tools.row["tools"])
    ]
    assert tools.messages[3] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {
                    "name": "search_recipes",
                    "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]},
                },
            }
        ],
    }
    assert tools.messages[4]["role"] == "tool"

    firefly = first["firefly_dummy.jsonl"]
    assert [each["role"] for each in firefly.messages[:2]] == ["user", "assistant"]
    assert firefly.messages[0]["content"] == "如何保障工作中遵循正确的安全准则？"
    assert len(firefly.messages) == 2 * len(firefly.row["conversation"])

    assert (
        first["messages_kdconv_zh.jsonl"].messages
        == first["messages_kdconv_zh.jsonl"].row["messages"]
    )
    longest = max(len(each.messages) for each in records.read(DATA / "messages_kdconv_zh.jsonl"))
    assert longest == 32


def test_sample():
    counts = {
        "messages.jsonl": 25,
        "alpaca.json": 19,
        "sharegpt.jsonl": 12,
        "firefly.jsonl": 12,
        "prompt_completion.jsonl": 6,
    }
    made = {name: read(SAMPLE / name) for name in counts}
    assert {name: len(rows) for name, rows in made.items()} == counts
    (reject,) = [each for rows in made.values() for each in rows if isinstance(each, Reject)]
    assert reject.source == Source(str(SAMPLE / "messages.jsonl"), line=13)
    assert reject.reason == "invalid JSON"

    good = [each for rows in made.values() for each in rows if isinstance(each, Conversation)]
    assert len(good) == 73
    assert all(each.messages[-1]["role"] == "assistant" for each in good)
    questions = {each.messages[-2]["content"] for each in good}
    assert len(questions) == len(good)
    text = "".join(message["content"] for each in good for message in each.messages)
    for what in ("```python", "| ---", "🎉", "תודה", "一"):
        assert what in text
    assert sum(each.messages[0]["role"] == "system" for each in good) >= 5
    assert sum(len(each.messages) >= 10 for each in good) >= 3
    assert sum("input" in each.messages[0] for each in good) >= 5
    words = [
        len(message["content"].split())
        for each in good
        for message in each.messages
        if message["role"] == "assistant"
    ]
    assert min(words) == 1
    assert max(words) > 300
