"""Files → rows → conversations, in order, with a Reject in the place of what cannot be read.

Owns file types, compression and the places (line, index) of rows. What a row's keys mean is
formats.py's; a row is never changed here, and nothing but a blank line of JSONL is ever skipped.
"""

from __future__ import annotations

import codecs
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
from reprlib import repr as short
from typing import Any, NamedTuple, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ._ingest import is_nested, line_row
from ._json import MAX_DEPTH, check_depth, decode, excerpt
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

MAX_LINE = 256 << 20  # bytes of one JSONL line, or of one row of a .json file
WHOLE = 16 << 20  # bytes of a .json file that is parsed as a whole; a larger one row by row
UNREADABLE = "unreadable file"  # the reason of a reject that ends a file
_CHUNK = 1 << 20
_BUFFER = 1 << 16  # bytes of a file that are read at once
_BATCH = 256  # Parquet rows that are Python objects at the same time
_BATCH_BYTES = 16 << 20  # and bytes, about
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
    return (row for path, rows in readers for row in _unchanged(path, rows))


def _rows_of(
    file: str | os.PathLike[str] | Slice,
) -> tuple[str, Callable[[], Iterator[RawRow]]]:
    """The path, and what reads the rows of a file or of a slice of it."""
    if not isinstance(file, Slice):
        path = os.fspath(file)
        return path, partial(_reader(path), path)
    path, start, stop, first = file
    if _reader(path) is _parquet_rows:
        return path, partial(_parquet_rows, path, range(start, stop), first)
    return path, partial(_range_rows, file)


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
    if "\0" in path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
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


def _unchanged(path: str, rows: Callable[[], Iterator[RawRow]]) -> Iterator[RawRow]:
    """The rows of a file, and a Reject behind them if it was written meanwhile.

    Rows may then be lost or halved, and nobody would know. Another file in its place is no harm:
    the one that was opened is read to its end.
    """
    before = _state(path)
    yield from rows()
    after = _state(path)
    if before and after and before != after and before[0] == after[0]:
        source = Source(path)
        detail = f"it had {before[1]:,} bytes when it was opened and has {after[1]:,} now"
        yield RawRow(source, Reject(source, "file changed while it was read", detail, None))


def _state(path: str) -> tuple[int, int, int] | None:
    """Which file it is, its size and when it was written; None if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


_UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)
# What Python has no value for: a time behind the year 9999, text that is no UTF-8.
_NO_VALUE = (ArithmeticError, NotImplementedError, ValueError)


def _open(path: str) -> io.BufferedIOBase:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".gz", ".zst") and os.path.getsize(path) == 0:
        raise EOFError("the compressed file is empty")
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".zst":
        # A small buffer: what Arrow had decoded of a failing read is lost.
        return io.BufferedReader(pa.input_stream(path, "zstd"), 4096)
    return io.BufferedReader(io.FileIO(path), _BUFFER)


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
            yield line_row(RawRow, Source, path, number, line)


def _json_rows(path: str) -> Iterator[RawRow]:
    data, failure = _start(path, WHOLE)
    whole = len(data) <= WHOLE
    if not whole and not _is_list(data) and not _is_jsonl(data):  # then it is a single row
        data, failure = _start(path, MAX_LINE)
        whole = len(data) <= MAX_LINE
    data = data.removeprefix(_BOM)
    source = Source(path)
    if whole and failure is None:
        yield from _document_rows(path, data)
    elif _is_list(data):
        yield from _element_rows(path, _Elements([data], failure) if whole else _elements(path))
    elif whole:
        if _is_jsonl(data):
            yield from _line_rows(path, io.BytesIO(data[: data.rfind(b"\n") + 1]))
        yield _unreadable(source, cast(Exception, failure))
    elif _is_jsonl(data):
        yield from _jsonl_rows(path)
    else:
        detail = f"the file is one row of more than {MAX_LINE:,} bytes"
        yield RawRow(source, Reject(source, "too large", detail, excerpt(data)))


def _start(path: str, size: int) -> tuple[bytes, Exception | None]:
    """The first bytes of a file, at least one more than `size` if it has so many.

    And what stopped it, if something did.
    """
    buffer = io.BytesIO()
    try:
        for chunk in _chunks(path):
            buffer.write(chunk)
            if buffer.tell() > size:
                break
    except _UNREADABLE as error:
        return buffer.getvalue(), error
    return buffer.getvalue(), None


def _chunks(path: str) -> Iterator[bytes]:
    with _open(path) as stream:
        # read1, because read would lose what it had decoded before an error.
        while chunk := stream.read1():
            yield chunk


def _elements(path: str) -> _Elements:
    return _Elements(_chunks(path))


def _document_rows(path: str, data: bytes) -> Iterator[RawRow]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if _is_list(data):
            yield from _element_rows(path, _Elements([data]))
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
_LONGEST_TOKEN = 16  # characters: a number's exponent, "-Infinity", a pair of escapes
# Finds where an element ends and no more: what it lets pass (NaN, say) is for parse to refuse.
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)


def _element_rows(path: str, elements: _Elements) -> Iterator[RawRow]:
    """Rows of a list that is no JSON as a whole, up to the place where no element can be found."""
    elements.character()
    elements.skip(1)  # the bracket
    for index in itertools.count():
        source = Source(path, index=index)
        try:
            found = elements.character()
            if index > 0 and found != "]":
                if found != ",":
                    raise elements.error("expected ',' or ']'")
                elements.skip(1)
                found = elements.character()
            if found == "]":
                elements.skip(1)
                if not elements.character() and elements.failure is None:
                    return
                raise elements.error("unexpected content after the list")
            row = elements.take()
        except (json.JSONDecodeError, RecursionError, OverflowError) as error:
            if elements.failure is not None:
                yield _unreadable(source, elements.failure)
                return
            if isinstance(error, RecursionError):
                reason, detail = "nested too deeply", f"at character {elements.place}"
            elif isinstance(error, OverflowError):
                reason, detail = "too large", str(error)
            else:
                reason, detail = "invalid JSON", f"{error.msg} at character {error.pos}"
            rest = excerpt(elements.rest())
            yield RawRow(source, Reject(source, reason, f"{detail}; the rest is not read", rest))
            return
        if len(row) > MAX_LINE:
            detail = f"the element has more than {MAX_LINE:,} bytes"
            yield RawRow(source, Reject(source, "too large", detail, excerpt(row)))
        else:
            yield RawRow(source, row)


class _Elements:
    """The elements of a list, in a text that comes in chunks and is not held as a whole.

    `place`: where it stands, in characters of all the text. `failure`: why there is no more.
    """

    def __init__(self, chunks: Iterable[bytes], failure: Exception | None = None) -> None:
        self.failure = failure
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = self._passed = 0
        self._is_all = False
        self._begun = False

    @property
    def place(self) -> int:
        return self._passed + self._at

    def rest(self) -> bytes:
        """What there is of the text from here."""
        return _bytes(self._text[self._at :])

    def error(self, message: str) -> json.JSONDecodeError:
        """Say that something is wrong here."""
        error = json.JSONDecodeError(message, "", 0)
        error.pos = self.place
        return error

    def skip(self, characters: int) -> None:
        self._at += characters

    def character(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while True:
            self._at = cast(re.Match[str], _BLANK.match(self._text, self._at)).end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self) -> bytes:
        """Return the element that begins here, and go behind it.

        Raises JSONDecodeError where none does, OverflowError where it does not end.
        """
        while True:
            try:
                end = _SCANNER.raw_decode(self._text, self._at)[1]
                if len(self._text) - end > _LONGEST_TOKEN or not self._more():
                    break  # nearer to the end, a number might go on
            except json.JSONDecodeError as error:
                # Only what is wrong at the end of what we have can be right with more of it.
                behind = self._text[error.pos :]
                cut = error.msg.startswith("Unterminated") or len(behind) < _LONGEST_TOKEN
                if len(self._text) - self._at > MAX_LINE:
                    raise OverflowError(
                        f"the element has more than {MAX_LINE:,} characters"
                    ) from None
                if not cut or not self._more():
                    error.pos += self._passed
                    raise
        row = _bytes(self._text[self._at : end])
        self._at = end
        return row

    def _more(self) -> bool:
        """Read on, as much again as there is; what is behind us is dropped."""
        rest = self._text[self._at :]
        parts, size = [rest], 0
        while not self._is_all and size <= len(rest):
            try:
                chunk = next(self._chunks, None)
            except _UNREADABLE as error:
                self.failure, chunk = error, None
            self._is_all = chunk is None
            if chunk is not None and not self._begun:
                chunk, self._begun = chunk.removeprefix(_BOM), True
            parts.append(self._decoder.decode(chunk or b"", self._is_all))
            size += len(parts[-1])
        if size:
            self._passed, self._at, self._text = self.place, 0, "".join(parts)
        return size > 0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _parquet_rows(
    path: str, groups: Iterable[int] | None = None, index: int = 0
) -> Iterator[RawRow]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in _batches(file, range(file.num_row_groups) if groups is None else groups):
                for row in _batch_rows(path, index, batch):
                    yield row
                    index += 1
    except (*_UNREADABLE, ValueError) as error:
        yield _unreadable(Source(path, index=index), error)


def _batches(file: pq.ParquetFile, groups: Iterable[int]) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups, few and small enough at a time to become Python objects."""
    # One row group at a time: a batch over two would be lost with the second.
    for group in groups:
        for batch in file.iter_batches(_BATCH, row_groups=[group]):
            size = batch.nbytes // max(1, batch.num_rows)
            step = min(_BATCH, _BATCH_BYTES // max(1, size) + 1)
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)


def _batch_rows(path: str, first: int, batch: pa.RecordBatch) -> Iterator[RawRow]:
    rows: Iterable[Any]
    names = batch.schema.names
    twice = [name for name in names if names.count(name) > 1]
    try:
        if twice:
            rows = [ValueError(f"two columns are called {short(twice[0])}")] * batch.num_rows
        else:
            rows = batch.to_pylist()
    except _NO_VALUE:  # one bad value; the other rows are good
        rows = (_row_or_error(batch.slice(place, 1)) for place in range(batch.num_rows))
    for index, row in enumerate(rows, first):
        source = Source(path, index=index)
        if isinstance(row, Exception):
            utf8 = isinstance(row, UnicodeDecodeError)
            reason = "invalid UTF-8" if utf8 else "unsupported content"
            row = Reject(source, reason, str(row), None)
        yield RawRow(source, row)


def _row_or_error(batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except _NO_VALUE as error:
        return error
