"""Preview: bins and conversations in the terminal, token by token, targets apart from the rest.

Owns how tokens become readable text. Asks a tokenizer only to decode ids and to name its control
tokens; encodes nothing and reads no chat file.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from .nouns import Conversation, Reject, Rendered

if TYPE_CHECKING:
    from .encode import Encoder
    from .tokenizers import Backend

COLUMNS = ("input_ids", "labels", "seq_lengths", "source")

# What shows a template: it has a system message, an empty line and more than one turn.
SAMPLE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 你好?"},
    {"role": "assistant", "content": "A greeting:\n\nHello! 👋"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You are welcome."},
)

# What a terminal would obey or hide: C0 and C1 controls, bidi and other invisible format
# characters, lone surrogates, and U+FFFD, which must not be taken for a broken character.
# The joiners U+200C and U+200D stay: emoji and Persian are spelled with them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffd\ud800-\udfff\U000e0000-\U000e007f]"
)
_BROKEN = "\ufffd"
_CONTEXT = 4  # groups before one that its decoding is given
_LONGEST = 64  # tokens in a group; a character has at most four bytes, but U+FFFD may be meant


def visible(text: str) -> str:
    r"""Spell out every character that a terminal would obey or hide; tabs and newlines stay.

    >>> visible("a\x1b[31mb")
    'a⟨U+001B⟩[31mb'
    """
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def one_line(text: str) -> str:
    """Return visible text without tabs and newlines, for messages and headers."""
    return visible(re.sub(r"[\t\n]+", " ", text))


@dataclass(frozen=True, slots=True)
class Piece:
    """What is shown as one: a token, or the tokens that a character is split over."""

    text: str
    target: bool
    control: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """One row's tokens as pieces, with what its header says."""

    title: str
    tokens: int
    targets: int
    pieces: Sequence[Piece]


def rendered_pieces(rendered: Rendered) -> list[Piece]:
    """Turn a rendered conversation's segments into pieces: no tokenizer, so no boundaries."""
    return [Piece(visible(part.text), part.target, part.control) for part in rendered.segments]


class Reader:
    """Turns ids into pieces with one tokenizer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[int, bool] = {}

    def document(self, title: str, ids: Sequence[int], targets: Sequence[bool]) -> Document:
        """Turn a row into pieces; `targets` says of each token whether it is trained on."""
        ids = [int(token) for token in ids]
        pieces = [
            Piece(
                _shown(text, ids[start:end], first=start == 0, last=end == len(ids)),
                any(targets[start:end]),
                end - start == 1 and self._is_control(ids[start]),
            )
            for start, end, text in self._groups(ids)
        ]
        return Document(title, len(ids), sum(map(bool, targets)), pieces)

    def _groups(self, ids: list[int]) -> Iterator[tuple[int, int, str]]:
        """Split at every token that ends with a whole character: (start, end, text)."""
        starts: deque[int] = deque([0], maxlen=_CONTEXT + 1)
        for end in range(1, len(ids) + 1):
            start = starts[-1]
            text = self._text(ids[starts[0] : start], ids[start:end])
            whole = not text.endswith(_BROKEN) or end - start == _LONGEST
            if end == len(ids) or whole or self._is_control(ids[end]):
                yield start, end, text
                starts.append(end)

    def _text(self, context: list[int], group: list[int]) -> str:
        """Return what decoding up to the group's end adds to decoding up to its start.

        A few groups before it are context enough, and they must be there: a SentencePiece decoder
        drops the space at the front of whatever it is given.
        """
        before = self._backend.decode(context) if context else ""
        text = self._backend.decode(context + group)
        return text[len(before) :] if text.startswith(before) else self._backend.decode(group)

    def _is_control(self, token: int) -> bool:
        known = self._known.get(token)
        if known is None:
            known = self._backend.control_id(self._backend.decode([token])) == token
            self._known[token] = known
        return known


def _shown(text: str, ids: list[int], *, first: bool, last: bool) -> str:
    """Return a group's text; half a character at an end of a row has none, so its ids."""
    half = f"⟨ids {' '.join(map(str, ids))}⟩"
    head = tail = ""
    if first and text.startswith(_BROKEN):
        text, head = text.lstrip(_BROKEN), half
    if last and text.endswith(_BROKEN):
        text, tail = text.rstrip(_BROKEN), half
    return head + visible(text) + tail


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


def is_bins(path: Path) -> bool:
    """Tell whether a file holds packed bins rather than chat data."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        return set(COLUMNS) <= set(pq.read_schema(path).names)
    except pa.ArrowInvalid:
        return False


def show_bins(console: Console, files: Sequence[Path], backend: Backend, count: int) -> None:
    """Print the first `count` bins of these files."""
    reader = Reader(backend)
    for number, (file, row) in enumerate(islice(_bins(files, count), count)):
        ids, labels, lengths = row["input_ids"], row["labels"], row["seq_lengths"]
        _line(
            console,
            f"━━ bin {number} of {one_line(file.name)} · "
            f"{len(ids):,} tokens in {len(lengths):,} documents",
            "bold cyan",
        )
        documents = []
        end = 0
        for title, length in zip(row["source"], lengths, strict=True):
            start, end = end, end + length
            targets = [label != -100 for label in labels[start:end]]
            documents.append(reader.document(title, ids[start:end], targets))
        show(console, documents)


def _bins(files: Sequence[Path], count: int) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=max(1, count), columns=list(COLUMNS)):
                for row in batch.to_pylist():
                    yield file, row


def show_conversations(
    console: Console,
    conversations: Iterable[Conversation | Reject],
    encoder: Encoder,
    backend: Backend,
) -> None:
    """Print conversations as the encoder makes rows of them; a row it rejects, with the reason."""
    reader = Reader(backend)
    for conversation in conversations:
        rejects: list[Reject] = []
        if isinstance(conversation, Reject):
            rejects.append(conversation)
        else:
            tokens = encoder([conversation], rejects)
            for start, end in pairwise(tokens.offsets.tolist()):
                # As in a bin: nothing precedes a row's first token, so it is no label.
                targets = [False, *tokens.loss_mask[start + 1 : end].tolist()]
                ids = tokens.input_ids[start:end].tolist()
                show(console, [reader.document(str(conversation.source), ids, targets)])
        for reject in rejects:
            _line(console, f"── rejected · {one_line(str(reject))}", "bold red")


def _line(console: Console, text: str, style: str) -> None:
    console.print(Text(text, style if is_styled(console) else ""), soft_wrap=True)
