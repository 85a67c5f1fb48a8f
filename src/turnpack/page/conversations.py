"""The browser of conversations: rows as text and JSON, as page.js reads them.

Owns which rows there is room for. What page.js makes of them is set as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..reading import Piece, Reader, visible
from ..survey import KINDS, Picked
from . import markup

# Bytes of the conversations, as JSON; with the rest the page stays below a megabyte.
CONVERSATIONS = 700_000
# Tokens of one conversation that are shown from its start, and from its end.
HEAD, TAIL = 3000, 1000


def browser(picked: Sequence[Picked], reader: Reader, total: int, shell: str) -> str:
    """Put rows, of `total` in the set, into the shell of the browser."""
    rows = _fitting(picked, reader)
    lead = f"All {total:,} rows" if len(rows) == total else f"{len(rows):,} of {total:,} rows"
    if len(rows) < total:
        lead += ": some at random, and those worth a look"
    lead += ". What is marked is what the model learns to write."
    noscript = (
        "<noscript><p>These need JavaScript; <code>turnpack preview</code> shows them in a "
        "terminal.</p></noscript>"
    )
    data = _json({"kinds": list(KINDS), "rows": rows})
    return (
        markup.card("Conversations", lead, shell, noscript, name="conversations")
        + f'<script type="application/json" id="data">{data}</script>'
    )


def _json(value: Any) -> str:
    """JSON that can stand in HTML: nothing in it ends the element or opens another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _fitting(picked: Sequence[Picked], reader: Reader) -> list[dict[str, Any]]:
    """As many rows as there is room for: the kinds take turns, each row goes to its first kind."""
    queues: dict[str, list[Picked]] = {}
    for item in picked:
        queues.setdefault(item.kinds[0] if item.kinds else "", []).append(item)
    taken: set[int] = set()
    made, left = {}, CONVERSATIONS
    while any(queues.values()):
        for queue in queues.values():
            if not queue:
                continue
            item = queue.pop(0)
            if item.row.number in taken:
                continue
            row = _row(item, reader)
            size = len(_json(row).encode())
            if size <= left:
                left -= size
                made[id(item)] = row
                taken.add(item.row.number)
    return [made[id(item)] for item in picked if id(item) in made]


def _row(item: Picked, reader: Reader) -> dict[str, Any]:
    """One row as page.js reads it.

    `p`: pieces of text; `m`: how many tokens a piece has, of those that have not one; `c`: places
    of control tokens; `ids`; `r`: lengths of runs of masked and trained tokens in turn; `gap`:
    before which piece so many tokens are left out.
    """
    row = item.row
    total = len(row.input_ids)
    parts = [slice(0, total)]
    if total > HEAD + TAIL:
        parts = [slice(0, HEAD), slice(total - TAIL, total)]
    pieces: list[Piece] = []
    gap = None
    for part in parts:
        if pieces:
            gap = [len(pieces), total - HEAD - TAIL]
        pieces += reader.document("", row.input_ids[part], row.targets[part]).pieces
    ids = np.concatenate([row.input_ids[part] for part in parts])
    targets = np.concatenate([row.targets[part] for part in parts])
    edges = np.flatnonzero(targets[1:] != targets[:-1]) + 1
    runs = np.diff([0, *edges.tolist(), len(targets)]).tolist()
    return {
        "n": row.number,
        "b": row.bin,
        "s": visible(row.source),
        "k": [kind for kind in KINDS if kind in item.kinds],
        "w": [visible(note) for note in item.notes],
        "t": total,
        "y": int(np.count_nonzero(row.targets)),
        "p": [piece.text for piece in pieces],
        "m": {place: p.tokens for place, p in enumerate(pieces) if p.tokens != 1},
        "c": [place for place, piece in enumerate(pieces) if piece.control],
        "ids": ids.tolist(),
        "r": runs if not len(targets) or not targets[0] else [0, *runs],
        "gap": gap,
    }
