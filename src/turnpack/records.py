"""Files → rows → conversations, in order, with a Reject in the place of what cannot be read.

Owns file types, compression and the places (line, index) of rows. What a row's keys mean is
formats.py's; a row is never changed here, and nothing but a blank line of JSONL is ever skipped.
"""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ._json import MAX_DEPTH, check_depth, decode, excerpt, is_nested
from .formats import FORMATS, check_format, conversation
from .nouns import Conversation, Reject, RowError, Source

__all__ = [
    "FORMATS",
    "RawRow",
    "Slice",
    "check_format",
    "conversation",
    "parse",
    "raw_rows",
    "read",
]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

MAX_LINE = 256 << 20  # bytes of one JSONL line
MAX_DOCUMENT = 4 << 30  # bytes of one .json file, which is held in memory as a whole
UNREADABLE = "unreadable file"  # the reason of a reject that ends a file
_CHUNK = 1 << 20
_BATCH = 256  # Parquet rows that are Python objects at the same time
_BOM = b"\xef\xbb\xbf"


class RawRow(NamedTuple):
    """A row as found: bytes of JSON, a decoded value, or the Reject of what cannot be read."""

    source: Source
    content: Any


class Slice(NamedTuple):
    """Of a file the bytes, of Parquet the row groups, from `start` to before `stop`.

    Bytes are of a JSONL file that is not compressed, and start and stop where lines do. `first` is
    the number of the first line or row.
    """

    path: str
    start: int
    stop: int
    first: int


def read(paths: Paths, *, format: str | None = None) -> Iterator[Conversation | Reject]:
    """Read files in order, row by row; a bad row comes as a Reject in its place.

    A path that is no readable file raises OSError at once, an unknown extension or format
    ValueError, before anything is read.
    """
    check_format(format)
    return (parse(raw, format) for raw in raw_rows(paths))


def raw_rows(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Slice],
) -> Iterator[RawRow]:
    """Find the rows of files, or of slices of them, without parsing where the type allows it.

    The first half of `read`, and cheap; the other half, `parse`, can run in other processes.
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    readers = [_rows_of(file) for file in files]
    return (row for rows in readers for row in rows())


def _rows_of(file: str | os.PathLike[str] | Slice) -> Callable[[], Iterator[RawRow]]:
    if not isinstance(file, Slice):
        path = os.fspath(file)
        return partial(_reader(path), path)
    path, start, stop, first = file
    if _reader(path) is _parquet_rows:
        return partial(_parquet_rows, path, range(start, stop), first)
    return partial(_range_rows, file)


class _Range(io.RawIOBase):
    """The bytes of a file from `start` to before `stop`."""

    def __init__(self, path: str, start: int, stop: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- closed with this
        self._file.seek(start)
        self._left = stop - start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= size
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def parse(raw: RawRow, format: str | None = None) -> Conversation | Reject:
    """Turn a RawRow into the Conversation it holds, or into the Reject that says why not."""
    source, row = raw
    if isinstance(row, Reject):
        return row
    try:
        if isinstance(row, bytes):
            row = decode(row)
        return conversation(row, format=format, source=source)
    except RowError as error:
        if isinstance(row, bytes):
            row = excerpt(row)
        return Reject(source, error.reason, error.detail, row)


def _reader(path: str) -> Callable[[str], Iterator[RawRow]]:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    with open(path, "rb"):  # a file we may not read is an error now, not in an hour
        pass
    name, suffix = os.path.splitext(path.lower())
    if suffix == ".parquet":
        return _parquet_rows
    if suffix in (".gz", ".zst"):
        suffix = os.path.splitext(name)[1]
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows
    if suffix == ".json":
        return _json_rows
    raise ValueError(
        f"{path}: unknown file type; supported are .json, .jsonl, .ndjson (each also .gz or .zst) "
        "and .parquet"
    )


_UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)


def _open(path: str) -> io.BufferedIOBase:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".gz", ".zst") and os.path.getsize(path) == 0:
        raise EOFError("the compressed file is empty")
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".zst":
        # A small buffer: what Arrow had decoded of a failing read is lost.
        return io.BufferedReader(pa.input_stream(path, "zstd"), 4096)
    return open(path, "rb")


def _unreadable(source: Source, error: BaseException) -> RawRow:
    detail = f"the rest of the file cannot be read: {error}"
    return RawRow(source, Reject(source, UNREADABLE, detail, None))


def _jsonl_rows(path: str) -> Iterator[RawRow]:
    try:
        stream = _open(path)
    except _UNREADABLE as error:
        yield _unreadable(Source(path), error)
        return
    with stream:
        yield from _line_rows(path, stream)


def _range_rows(lines: Slice) -> Iterator[RawRow]:
    path, start, stop, first = lines
    with io.BufferedReader(_Range(path, start, stop), _CHUNK) as stream:
        yield from _line_rows(path, stream, first)


def _line_rows(path: str, stream: io.BufferedIOBase, first: int = 1) -> Iterator[RawRow]:
    limit = MAX_LINE
    for number in itertools.count(first):
        try:
            line = stream.readline(limit + 1)
            if len(line) > limit and not line.endswith(b"\n"):
                while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    pass
        except _UNREADABLE as error:
            yield _unreadable(Source(path, number), error)
            return
        if not line:
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        line = line.rstrip(b"\r\n")
        if len(line) > limit:
            source = Source(path, number)
            detail = f"the line has more than {limit:,} bytes"
            yield RawRow(source, Reject(source, "too large", detail, excerpt(line)))
        elif line and not line.isspace():
            yield RawRow(Source(path, number), line)


def _json_rows(path: str) -> Iterator[RawRow]:
    buffer, failure = io.BytesIO(), None
    try:
        with _open(path) as stream:
            # read1, because read would lose what it had decoded before an error.
            while buffer.tell() <= MAX_DOCUMENT and (chunk := stream.read1()):
                buffer.write(chunk)
    except _UNREADABLE as error:
        failure = error
    data = buffer.getvalue().removeprefix(_BOM)
    del buffer
    whole = Source(path)
    if len(data) > MAX_DOCUMENT:
        detail = f"the file has more than {MAX_DOCUMENT:,} bytes; .jsonl has no such limit"
        yield RawRow(whole, Reject(whole, "too large", detail, excerpt(data)))
    elif failure is None:
        yield from _document_rows(path, data)
    elif _is_list(data):
        yield from _element_rows(path, data, failure)
    else:
        if _is_jsonl(data):
            yield from _line_rows(path, io.BytesIO(data[: data.rfind(b"\n") + 1]))
        yield _unreadable(whole, failure)


def _document_rows(path: str, data: bytes) -> Iterator[RawRow]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if _is_list(data):
            yield from _element_rows(path, data)
        elif _is_jsonl(data):
            yield from _line_rows(path, io.BytesIO(data))
        else:
            yield RawRow(Source(path), data)  # parse says what is wrong with it
        return
    rows = value if isinstance(value, list) else [value]
    # Here, because pickle could not carry it to parse; row by row only where that can find one.
    nested = is_nested(rows, MAX_DEPTH + 1)
    for index, row in enumerate(rows):
        source = Source(path, None, index)
        if nested:
            try:
                check_depth(row)
            except RowError as error:
                row = Reject(source, error.reason, error.detail, None)
        yield RawRow(source, row)


def _is_list(data: bytes) -> bool:
    return data.lstrip().startswith(b"[")


def _is_jsonl(data: bytes) -> bool:
    """Whether an object starts on the first line and, if there is a second, on that too."""
    first, _, rest = data.lstrip().partition(b"\n")
    return first.startswith(b"{") and rest.lstrip()[:1] in (b"{", b"")


_BLANK = re.compile(r"[ \t\r\n]*")
# Finds where an element ends and no more: what it lets pass (NaN, say) is for parse to refuse.
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)


def _element_rows(path: str, data: bytes, failure: Exception | None = None) -> Iterator[RawRow]:
    """Rows of a list that is no JSON as a whole, up to the place where no element can be found."""
    text = data.decode("utf-8", "surrogateescape")
    at = text.index("[") + 1
    for index in itertools.count():
        source = Source(path, index=index)
        try:
            at = _skip_blank(text, at)
            if index > 0 and not text.startswith("]", at):
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("expected ',' or ']'", text, at)
                at = _skip_blank(text, at + 1)
            if text.startswith("]", at):
                at = _skip_blank(text, at + 1)
                if at == len(text) and failure is None:
                    return
                raise json.JSONDecodeError("unexpected content after the list", text, at)
            end = _SCANNER.raw_decode(text, at)[1]
        except (json.JSONDecodeError, RecursionError) as error:
            if failure is not None:
                yield _unreadable(source, failure)
                return
            if isinstance(error, RecursionError):
                reason, detail = "nested too deeply", f"at character {at}"
            else:
                reason, detail = "invalid JSON", f"{error.msg} at character {error.pos}"
            rest = excerpt(text[at:].encode("utf-8", "surrogateescape"))
            yield RawRow(source, Reject(source, reason, f"{detail}; the rest is not read", rest))
            return
        yield RawRow(source, text[at:end].encode("utf-8", "surrogateescape"))
        at = end


def _skip_blank(text: str, at: int) -> int:
    return cast(re.Match[str], _BLANK.match(text, at)).end()


def _parquet_rows(
    path: str, groups: Iterable[int] | None = None, index: int = 0
) -> Iterator[RawRow]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            # One row group at a time: a batch over two would be lost with the second.
            for group in range(file.num_row_groups) if groups is None else groups:
                for batch in file.iter_batches(_BATCH, row_groups=[group]):
                    for row in _batch_rows(path, index, batch):
                        yield row
                        index += 1
    except (*_UNREADABLE, ValueError) as error:
        yield _unreadable(Source(path, index=index), error)


def _batch_rows(path: str, first: int, batch: pa.RecordBatch) -> Iterator[RawRow]:
    rows: Iterable[Any]
    try:
        rows = batch.to_pylist()
    except ValueError:  # one bad value; the other rows are good
        rows = (_row_or_error(batch.slice(place, 1)) for place in range(batch.num_rows))
    for index, row in enumerate(rows, first):
        source = Source(path, index=index)
        if isinstance(row, ValueError):
            utf8 = isinstance(row, UnicodeDecodeError)
            reason = "invalid UTF-8" if utf8 else "unsupported content"
            row = Reject(source, reason, str(row), None)
        yield RawRow(source, row)


def _row_or_error(batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except ValueError as error:
        return error
