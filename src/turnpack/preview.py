"""Preview: bins and conversations in the terminal, token by token, targets apart from the rest.

Owns which rows are shown, and how they look in a terminal, in a pipe and, with the page's help, as
HTML. How tokens become text is reading.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from . import bins
from .bins import Row
from .nouns import Conversation, Reject
from .reading import Document, Piece, Reader, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .encode import Encoder

# What shows a template: it has a system message, an empty line and more than one turn.
SAMPLE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 你好?"},
    {"role": "assistant", "content": "A greeting:\n\nHello! 👋"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You are welcome."},
)


def paint(pieces: Iterable[Piece], *, styled: bool) -> Text:
    """Lay pieces out as text for the terminal.

    Styled: targets green, the rest dim, control tokens reversed, every second token underlined.
    Otherwise in marks that survive a pipe, as `legend` explains them.
    """
    return _in_colour(pieces) if styled else _in_marks(pieces)


def legend(*, styled: bool) -> Text:
    """Say in one line how to read what `paint` gives."""
    shown = Text()
    if styled:
        shown.append("target", "green").append(" ").append("masked", "dim").append(" ")
        shown.append("control token", "reverse")
    else:
        shown.append("⟦target⟧ masked ‹control token› │ between tokens")
    return shown.append("  ⏎ newline  ⇥ tab")


def _in_colour(pieces: Iterable[Piece]) -> Text:
    painted = Text()
    for number, piece in enumerate(pieces):
        style = "green" if piece.target else "dim"
        if piece.control:
            style += " reverse bold"
        elif number % 2:
            style += " underline"
        painted.append(_spaced(piece.text), style)
    return painted


def _in_marks(pieces: Iterable[Piece]) -> Text:
    painted = Text()
    before: Piece | None = None
    for piece in pieces:
        target = before is not None and before.target
        if piece.target != target:
            painted.append("⟦" if piece.target else "⟧")
        elif before is not None and not (piece.control or before.control):
            painted.append("│")
        painted.append(f"‹{piece.text}›" if piece.control else _spaced(piece.text))
        before = piece
    if before is not None and before.target:
        painted.append("⟧")
    return painted


def _spaced(text: str) -> str:
    return text.replace("\n", "⏎\n").replace("\t", "⇥")


def show(console: Console, documents: Iterable[Document]) -> None:
    """Print documents one below the other, each under a line that names it."""
    for document in documents:
        share = f"{document.tokens:,} tokens, {document.targets:,} targets"
        _line(console, f"── {one_line(document.title)} · {share}", "bold")
        show_pieces(console, document.pieces)


def show_pieces(console: Console, pieces: Iterable[Piece]) -> None:
    """Print pieces as one text that ends with its last line."""
    painted = paint(pieces, styled=is_styled(console))
    if painted.plain.endswith("\n"):
        painted.right_crop(1)
    console.print(painted, soft_wrap=True)


def show_legend(console: Console) -> None:
    """Print how to read what follows."""
    console.print(legend(styled=is_styled(console)), soft_wrap=True)


def is_styled(console: Console) -> bool:
    """Tell whether the console shows colours, and nobody asked for none (NO_COLOR)."""
    return console.color_system is not None and not console.no_color


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows to show: at most `most` of those that agree with all that is not None.

    `row`: its number, from 0. `find`: its text holds this. `source`: a file, by its path or its
    name, or one conversation as `source` spells it.
    """

    most: int
    row: int | None = None
    find: str | None = None
    source: str | None = None

    @property
    def is_choice(self) -> bool:
        """Whether rows are chosen one by one."""
        return (self.row, self.find, self.source) != (None, None, None)

    def is_source(self, name: str) -> bool:
        """Tell whether a row of this source is wanted."""
        if self.source is None:
            return True
        file = re.sub(bins.PLACE, "", name)
        return any(self.source in (whole, whole.rpartition("/")[2]) for whole in (name, file))


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin to show, with its rows; `file` is the name of the Parquet file that holds it."""

    number: int
    file: str
    rows: Sequence[Row]


def packed_bins(files: Sequence[Path], count: int) -> Iterator[Bin]:
    """The first bins of Parquet files."""
    found = bins.read(files, most=max(1, min(count, 64)))
    for some in islice(found, count):
        for place, (start, end) in enumerate(pairwise(some.bins.tolist())):
            if some.first_bin + place < count:
                rows = [some.row(index) for index in range(start, end)]
                yield Bin(some.first_bin + place, some.file.name, rows)


def packed_rows(files: Sequence[Path], wanted: Wanted, reader: Reader) -> Iterator[Row]:
    """The rows of Parquet files that are wanted, in their order."""
    return islice(_matching(files, wanted, reader), wanted.most)


def _matching(files: Sequence[Path], wanted: Wanted, reader: Reader) -> Iterator[Row]:
    for some in bins.read(files):
        rows: Iterable[int] = range(len(some.rows) - 1)
        if wanted.row is not None:
            if wanted.row < some.first_row:
                return
            place = wanted.row - some.first_row
            rows = [place] if place < len(some.rows) - 1 else []
        if wanted.source is not None:
            names = some.source.to_pylist() if rows else []
            rows = [index for index in rows if wanted.is_source(names[index])]
        for index in rows:
            row = some.row(index)
            if wanted.find is None or wanted.find in reader.text(row.input_ids):
                yield row


def encoded_rows(
    conversations: Iterable[Conversation | Reject], encoder: Encoder, wanted: Wanted, reader: Reader
) -> Iterator[Row | Reject]:
    """Conversations as the encoder makes rows of them, and those it rejects, as far as wanted.

    `wanted.row` and `wanted.most` count conversations; a reject has no text to be found.
    """
    shown = 0
    for number, conversation in enumerate(conversations):
        if shown == wanted.most or (wanted.row is not None and number > wanted.row):
            return
        if wanted.row not in (None, number) or not wanted.is_source(str(conversation.source)):
            continue
        made = list(_encoded(number, conversation, encoder))
        if wanted.find is not None:
            made = [
                row
                for row in made
                if isinstance(row, Row) and wanted.find in reader.text(row.input_ids)
            ]
        shown += bool(made)
        yield from made


def _encoded(
    number: int, conversation: Conversation | Reject, encoder: Encoder
) -> Iterator[Row | Reject]:
    if isinstance(conversation, Reject):
        yield conversation
        return
    rejects: list[Reject] = []
    tokens = encoder([conversation], rejects)
    for start, end in pairwise(tokens.offsets.tolist()):
        targets = tokens.loss_mask[start:end] != 0
        targets[:1] = False  # as in a bin: nothing precedes a row's first token, so it is no label
        yield Row(number, None, str(conversation.source), tokens.input_ids[start:end], targets)
    yield from rejects


def save(rows: Sequence[Row], reader: Reader, file: str) -> None:
    """Write rows into a page, which is the browser of the report with nothing above it."""
    from .page import page
    from .survey import Picked

    text = page("Preview", [Picked(row) for row in rows], reader, None)
    Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")


def show_bins(console: Console, shown: Iterable[Bin], capacity: int | None, reader: Reader) -> None:
    """Print bins: a line and a bar for each, and its rows below.

    Without a capacity each bar is as long as its bin.
    """
    for item in shown:
        tokens = sum(len(row.input_ids) for row in item.rows)
        _line(
            console,
            f"━━ bin {item.number:,} of {one_line(item.file)} · "
            f"{tokens:,} tokens in {len(item.rows):,} documents",
            "bold cyan",
        )
        drawn = bar(item.rows, capacity or tokens, styled=is_styled(console))
        console.print(drawn, soft_wrap=True)
        for row in item.rows:
            show_row(console, row, reader)


def show_row(console: Console, row: Row | Reject, reader: Reader) -> None:
    """Print one row below a line that names it; of a reject, why it is one."""
    if isinstance(row, Reject):
        _line(console, f"── rejected · {one_line(str(row))}", "bold red")
    else:
        show(console, [reader.document(row.source, row.input_ids, row.targets)])


# Colours of documents in a bar, one after the other.
_COLOURS = ("bright_blue", "cyan", "yellow", "magenta", "red", "green")
_COLUMNS = 72


def bar(rows: Sequence[Row], capacity: int, *, styled: bool) -> Text:
    """Draw a bin as a line: targets dark, prompts light, padding dots.

    In a pipe, where there are no colours, a bar stands between two documents.
    """
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    targets = np.concatenate([row.targets for row in rows])
    at = ((np.arange(_COLUMNS) * 2 + 1) * capacity) // (2 * _COLUMNS)
    document = np.searchsorted(np.cumsum(lengths), at, side="right")
    drawn = Text()
    for column, (token, number) in enumerate(zip(at.tolist(), document.tolist(), strict=True)):
        if token >= len(targets):
            drawn.append("·", "dim" if styled else "")
        elif not styled and column and number != document[column - 1]:
            drawn.append("│")
        else:
            shade = "█" if targets[token] else "░"
            drawn.append(shade, _COLOURS[number % len(_COLOURS)] if styled else "")
    return drawn


def _line(console: Console, text: str, style: str) -> None:
    console.print(Text(text, style if is_styled(console) else ""), soft_wrap=True)
