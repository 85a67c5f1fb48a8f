"""JSON lines that are nothing but plain messages → columns, many at a time.

Owns which lines those are, as nearly all are in a file of messages: what Arrow reads of them is
just what records.py would, without a Python object for every value. It says nothing of any other
line, of a wrong one above all: then all of them are for records.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import json

from ._ingest import plain_messages
from ._json import decode
from .formats import ROLES_OF_MESSAGES
from .nouns import ROLES, RowError

_STRING = pa.string()
_SCHEMA = pa.schema([("messages", pa.list_(pa.struct([("role", _STRING), ("content", _STRING)])))])
# No other key may be in a row or a message, and Arrow refuses one that is there twice.
_PARSE = json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error")
MOST = 1 << 24  # bytes of all lines


class PlainRows(NamedTuple):
    """The messages of all rows, one after the other.

    `roles` uint8 `[messages]`: places in nouns.ROLES. `offsets` int32 `[rows + 1]`: where the
    messages of each row begin. `contents`: the UTF-8 of all texts, which begin at `text_offsets`
    int32 `[messages + 1]`.
    """

    roles: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]
    contents: npt.NDArray[np.uint8]
    text_offsets: npt.NDArray[np.int32]


def plain_rows(lines: Sequence[bytes]) -> PlainRows | None:
    """The rows of lines without line ends, None where one is no object of plain messages."""
    if not lines or not _is_plain(lines[0]):  # most files are all of one form
        return None
    # Where every line begins and ends so, no object goes over two of them; and there are as many
    # objects as lines only if there is one on each.
    if not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        return None
    text = b"\n".join(lines)
    if len(text) > MOST:
        return None
    options = json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    try:
        table = json.read_json(pa.BufferReader(text), options, _PARSE)
        table.validate(full=True)  # that the texts are UTF-8
    except pa.ArrowException:
        return None
    column = table.column("messages")
    if len(column) != len(lines) or column.num_chunks != 1:
        return None
    (rows,) = column.chunks
    messages = rows.values
    roles, contents = messages.field("role"), messages.field("content")
    if rows.null_count or messages.null_count or roles.null_count or contents.null_count:
        return None
    named = roles.dictionary_encode()
    known = [ROLES_OF_MESSAGES.get(role) for role in named.dictionary.to_pylist()]
    if None in known or not np.diff(rows.offsets.to_numpy()).all():
        return None
    numbers = np.array([ROLES.index(role) for role in known if role], np.uint8)
    return PlainRows(
        numbers[named.indices.to_numpy()],
        rows.offsets.to_numpy(),
        *_text(contents),
    )


def _is_plain(line: bytes) -> bool:
    try:
        row = decode(line)
    except RowError:
        return False
    if type(row) is not dict or len(row) != 1:
        return False
    return plain_messages(row.get("messages"), "role", "content", ROLES_OF_MESSAGES) is not None


def _text(strings: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The bytes of strings, and the offsets of each."""
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return np.frombuffer(data or b"", np.uint8), ends
