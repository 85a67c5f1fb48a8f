"""How bad inputs are made, what happens meanwhile, and what else is checked: for bad_inputs.py.

A function that ends in a `Make` writes its file only when a test gives it a folder.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

import at_hand
from turnpack import encode, provenance, records

Make = Callable[[Path], Any]
Around = Callable[[Path], contextlib.AbstractContextManager[Any]]


# -- how they are made -----------------------------------------------------------------------------


def row(*texts: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": messages, **more}


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def dumped(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


GOOD = dumped(row("Hi", "Hello!"))


def file(name: str, content: bytes | Callable[[], bytes]) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        return path

    return make


def lines(*bad: Any, end: bytes = b"\n", name: str = "a.jsonl") -> Make:
    """JSONL with bad lines between two good ones."""
    return file(name, lambda: end.join([GOOD, *map(dumped, bad), GOOD]) + end)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def table(columns: Callable[[], Any], **options: Any) -> Make:
    def make(folder: Path) -> Path:
        made = columns()
        found = made if isinstance(made, pa.Table) else pa.table(made)
        pq.write_table(found, folder / "a.parquet", **options)
        return folder / "a.parquet"

    return make


PAIRS = {"prompt": ["a", "b", "c"], "completion": ["1", "2", "3"]}


def with_column(column: Callable[[], pa.Array]) -> Make:
    return table(lambda: {**PAIRS, "more": column()})


def corrupted_page(folder: Path) -> Path:
    rows = {"prompt": ["a"] * 9, "completion": list("123456789")}
    options = {"row_group_size": 3, "write_page_checksum": True, "use_dictionary": False}
    path = table(lambda: rows, **options)(folder)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 0xFF
    path.write_bytes(data)
    return path


def nested(levels: int) -> bytes:
    return b'{"messages": ' + b"[" * levels + b"]" * levels + b"}"


def sparse(size: int) -> Make:
    """A good line, one of `size` zeros that take no room on the disk, and another good one."""

    def make(folder: Path) -> Path:
        with (folder / "a.jsonl").open("wb") as path:
            path.write(GOOD + b"\n")
            path.seek(size, os.SEEK_CUR)
            path.write(b"\n" + GOOD + b"\n")
        return folder / "a.jsonl"

    return make


def bomb(name: str, before: bytes, behind: bytes, mebibytes: int) -> Make:
    """A small compressed file of many blanks; its parts are compressed by themselves."""
    pack = gzip.compress if name.endswith(".gz") else zstd
    blanks = 16 << 20

    def content() -> bytes:
        return b"".join(
            [pack(before), pack(b" " * blanks) * (mebibytes * (1 << 20) // blanks), pack(behind)]
        )

    return file(name, content)


def special_file(make: Callable[[Path], object]) -> Make:
    def made(folder: Path) -> Path:
        make(folder / "a.jsonl")
        return folder / "a.jsonl"

    return made


def many(folder: Path) -> Path:
    return file("a.jsonl", (GOOD + b"\n") * 3000)(folder)


def after_the_first_row(act: Callable[[Path], object]) -> Around:
    """Do something to the file when its first row was read."""

    def around(folder: Path) -> contextlib.AbstractContextManager[Any]:
        real = records._line_rows

        def rows(path: str, stream: Any) -> Iterator[records.RawRow]:
            for number, found in enumerate(real(path, stream)):
                yield found
                if number == 0:
                    act(Path(path))

        return mock.patch.object(records, "_line_rows", rows)

    return around


def append(path: Path) -> None:
    with path.open("ab") as more:
        more.write(GOOD + b"\n")


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"no such thing")
    path.with_suffix(".new").rename(path)


def small_lines(folder: Path) -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(records, "MAX_LINE", 1 << 20)


def short_texts(folder: Path) -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(encode, "MAX_TEXT", 1000)


@contextlib.contextmanager
def few_steps(folder: Path) -> Iterator[None]:
    with mock.patch.object(provenance, "MAX_STEPS", 10_000):
        yield


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file may have more than 4 KiB, as if no more were left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_only(folder: Path) -> contextlib.AbstractContextManager[Any]:
    real = Path.mkdir

    def mkdir(path: Path, *rest: Any, **options: Any) -> None:
        if path.name == ".turnpack":
            raise OSError(30, "Read-only file system", os.fspath(path))
        real(path, *rest, **options)

    return mock.patch("pathlib.Path.mkdir", mkdir)


# -- templates and tokenizers ----------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(source: str | bytes) -> dict[str, Any]:
    """The option of a template of one's own."""

    def make(folder: Path) -> Path:
        path = folder / "own.jinja"
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        return path

    return {"template": make}


@functools.cache
def tiny_spec() -> str:
    return at_hand.tiny().to_str()


def tokenizer(
    change: Callable[[dict[str, Any]], object] | bytes = bytes, **files: bytes
) -> dict[str, Any]:
    """The option of a changed tokenizer: its tokenizer.json, and what else is in its folder."""

    def make(folder: Path) -> Path:
        home = folder / "tokenizer"
        home.mkdir()
        spec = json.loads(tiny_spec())
        if callable(change):
            change(spec)
        content = change if isinstance(change, bytes) else json.dumps(spec).encode()
        (home / "tokenizer.json").write_bytes(content)
        for name, data in files.items():
            (home / name.replace("__", ".")).write_bytes(data)
        return home

    return {"tokenizer": make}


def renumbered(token: str, number: int) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        for added in spec["added_tokens"]:
            if added["content"] == token:
                added["id"] = number

    return change


def saved(made: Callable[[], Any], **config: str) -> dict[str, Any]:
    """The option of one of the tokenizers at hand."""

    def make(folder: Path) -> Path:
        found = made()
        return found if isinstance(found, Path) else at_hand.folder_of(found, **config)

    return {"tokenizer": make}


# -- what else must be true ------------------------------------------------------------------------


def documents(output: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of every conversation, in the order of the input."""
    found = []
    for path in sorted((output / "data").iterdir()):
        for bin in pq.read_table(path).to_pylist():
            start = 0
            for length, source in zip(bin["seq_lengths"], bin["source"], strict=True):
                end = start + length
                place = int("".join(filter(str.isdigit, source.rpartition(".")[2])) or 0)
                found.append((place, bin["input_ids"][start:end], bin["labels"][start:end]))
                start = end
    return [(ids, labels) for _, ids, labels in sorted(found)]


def decoder(output: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(output / "tokenizer" / "tokenizer.json"))


def texts(*expected: str) -> Callable[[Path], None]:
    """Each of these is in the text of the conversation of its number, behind the first good one."""

    def check(output: Path) -> None:
        decode = decoder(output).decode
        for text, (ids, _) in zip(expected, documents(output)[1:], strict=False):
            assert text in decode(ids, skip_special_tokens=False)

    return check


def same_control_tokens(output: Path) -> None:
    """Every conversation has as many control tokens as the good one in front of it."""
    home = output / "tokenizer"
    if (home / "tokenizer.json").exists():
        control = {*decoder(output).get_added_tokens_decoder()}
    else:
        from sentencepiece import SentencePieceProcessor

        (model,) = home.glob("*.model*")
        pieces = SentencePieceProcessor(model_file=str(model))
        control = {n for n in range(len(pieces)) if pieces.is_control(n) or pieces.is_unknown(n)}
    good, *others = [[i for i in ids if i in control] for ids, _ in documents(output)]
    assert good
    assert others
    assert all(other == good for other in others)


def longest(length: int) -> Callable[[Path], None]:
    """The longest conversation has so many tokens, or some less: it ends with a target."""

    def check(output: Path) -> None:
        assert length - 10 < max(len(ids) for ids, _ in documents(output)) <= length

    return check


def exactly(length: int) -> Callable[[Path], None]:
    def check(output: Path) -> None:
        assert [len(ids) for ids, _ in documents(output)] == [length]

    return check


def spelled(made: Callable[[], Any]) -> Make:
    """User texts with every added token of a tokenizer: together, one by one, and split in two."""

    def make(folder: Path) -> Path:
        found = made()
        if isinstance(found, Path):
            file_name = found / "tokenizer.json" if found.is_dir() else found
            if file_name.suffix == ".json":
                from tokenizers import Tokenizer

                found = Tokenizer.from_file(str(file_name))
        if hasattr(found, "get_added_tokens_decoder"):
            added = [token.content for token in found.get_added_tokens_decoder().values()]
        else:
            from sentencepiece import SentencePieceProcessor

            pieces = SentencePieceProcessor(model_file=str(found))
            added = [
                pieces.id_to_piece(n)
                for n in range(len(pieces))
                if pieces.is_control(n) or pieces.is_unknown(n)
            ]
        added = [token for token in added if not token.isspace()][:200]
        halves = [(token[: len(token) // 2], token[len(token) // 2 :]) for token in added]
        users = ["".join(added), " ".join(added), *added[:20]]
        evil = [row(f"{user}x", "Hello!") for user in users]
        evil += [row("a" + first, second + "b") for first, second in halves[:20]]
        return lines(*evil)(folder)

    return make
