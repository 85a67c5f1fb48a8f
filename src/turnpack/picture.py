"""The picture: bins as bars, a colour for each document, as SVG for the page and for notebooks.

Owns the drawing. Sees lengths and targets, no text; its size is bounded however long a bin is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = 6  # that follow one another; page.css and picture.css name them
WIDTH = 1000  # columns a bar is made of, whatever its tokens
MOST = 40  # bars
PITCH, HEIGHT = 12, 9  # from bar to bar, and of a bar


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: tokens of each document, and where known True for every token that is a target."""

    number: int
    lengths: npt.NDArray[np.int64]
    targets: npt.NDArray[np.bool_] | None = None

    @property
    def title(self) -> str:
        """Say in words what the bar shows, but not of what."""
        tokens, documents = int(self.lengths.sum()), len(self.lengths)
        said = f"{documents:,} document{'s' * (documents != 1)}, {tokens:,} tokens"
        if self.targets is None:
            return said
        return f"{said}, {np.count_nonzero(self.targets) / max(1, tokens):.0%} targets"


def svg(bars: Sequence[Bar], capacity: int, *, noun: str = "bin", padded: bool = True) -> str:
    """Draw bars one below the other, `capacity` tokens wide; `padded`: hatch what is left free."""
    paths: dict[tuple[int, bool], list[str]] = {}
    hatched, titles = [], []
    for place, bar in enumerate(bars):
        top = place * PITCH
        middle = top + HEIGHT / 2
        for colour, target, start, end in _stretches(bar, capacity):
            path = f"M{start} {middle:g}h{end - start}"
            paths.setdefault((colour, target), []).append(path)
        filled = min(WIDTH, round(int(bar.lengths.sum()) * WIDTH / capacity))
        if padded and filled < WIDTH:
            hatched.append(f'<rect x="{filled}" y="{top}" width="{WIDTH - filled}" height="9"/>')
        titles.append(
            f'<rect y="{top}" width="{WIDTH}" height="{PITCH}">'
            f"<title>{escape(noun)} {bar.number:,}: {bar.title}</title></rect>"
        )
    said = f"{len(bars)} {noun}s as bars, {capacity:,} tokens wide"
    return "".join(
        [
            f'<svg class="tp-bars" role="img" aria-label="{escape(said)}" '
            f'viewBox="0 0 {WIDTH} {max(1, len(bars) * PITCH)}" preserveAspectRatio="none" '
            f'height="{len(bars) * PITCH}">',
            '<defs><pattern id="tp-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><path d="M0 0v6"/></pattern></defs>',
            f'<g class="tp-padding">{"".join(hatched)}</g>' if hatched else "",
            *(
                f'<path class="tp-{"target" if target else "prompt"} tp-c{colour}" '
                f'd="{"".join(path)}"/>'
                for (colour, target), path in sorted(paths.items())
            ),
            f'<g class="tp-titles">{"".join(titles)}</g></svg>',
        ]
    )


def _stretches(bar: Bar, capacity: int) -> Iterable[tuple[int, bool, int, int]]:
    """Columns of one look: (colour, target, first column, end). Each is like its middle token."""
    tokens = int(bar.lengths.sum())
    columns = ((np.arange(WIDTH) * 2 + 1) * capacity) // (2 * WIDTH)
    columns = columns[columns < tokens]
    if not len(columns):
        return
    document = np.searchsorted(np.cumsum(bar.lengths), columns, side="right")
    target = np.ones(len(columns), bool) if bar.targets is None else bar.targets[columns]
    look = document * 2 + target
    edges = [0, *(np.flatnonzero(look[1:] != look[:-1]) + 1).tolist(), len(columns)]
    for start, end in pairwise(edges):
        yield (bar.number + int(document[start])) % COLOURS, bool(target[start]), start, end


def in_notebook(said: str, bars: Sequence[Bar], capacity: int, noun: str, padded: bool) -> str:
    """Put a short repr and its picture together as HTML that brings its own colours."""
    style = files(__package__).joinpath("page", "picture.css").read_text("utf-8")
    drawn = svg(bars, capacity, noun=noun, padded=padded) if bars else ""
    return f'<div class="tp-noun"><style>{style}</style><code>{escape(said)}</code>{drawn}</div>'


def of_tokens(tokens: Any) -> str:
    """HTML of Tokens: its first rows as bars, as wide as the longest of them."""
    offsets = tokens.offsets[: MOST + 1].tolist()
    bars = [
        Bar(row, np.array([end - start]), tokens.loss_mask[start:end] != 0)
        for row, (start, end) in enumerate(pairwise(offsets))
    ]
    longest = max(chain((int(bar.lengths[0]) for bar in bars), [1]))
    return in_notebook(repr(tokens), bars, longest, "row", padded=False)


def of_plan(plan: Any) -> str:
    """HTML of a Plan: its first bins as bars.

    A plan knows how full a bin is and not how long its rows are: they are drawn equally long.
    """
    bars = []
    for number in range(min(MOST, plan.num_bins)):
        rows = int(plan.offsets[number + 1] - plan.offsets[number])
        edges = np.arange(rows + 1) * int(plan.fill[number]) // max(1, rows)
        bars.append(Bar(number, np.diff(edges)))
    return in_notebook(repr(plan), bars, plan.capacity, "bin", padded=True)


def of_packed(packed: Any) -> str:
    """HTML of Packed: its first bins as bars."""
    bars = []
    for number in range(min(MOST, packed.num_bins)):
        count = int(packed.bin_offsets[number + 1] - packed.bin_offsets[number])
        cells = slice(number, number + 1)
        if packed.layout == "flat":
            # Segments are the documents of bins, in order; flat bins have no padding.
            first = int(packed.bin_offsets[number])
            cells = slice(int(packed.cu_seqlens[first]), int(packed.cu_seqlens[first + count]))
        segments = np.asarray(packed.segment_ids[cells]).reshape(-1)
        labels = np.asarray(packed.labels[cells]).reshape(-1)
        lengths = np.bincount(segments, minlength=count + 1)[1:].astype(np.int64)
        bars.append(Bar(number, lengths, labels[: int(lengths.sum())] != -100))
    return in_notebook(repr(packed), bars, packed.capacity, "bin", padded=True)
