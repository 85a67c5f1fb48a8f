"""The page: what was counted and what was picked → one HTML file that loads nothing.

Owns the layout, and that nothing of the data can run: text is escaped here or is JSON that page.js
sets as text, and the page's policy allows no script but page.js. Counts nothing, reads no data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from .. import picture
from ..reading import Piece, Reader, visible
from ..survey import KINDS, OTHERS, Count, Needs, Picked, Survey

# Bytes of the conversations, as JSON; with the rest the page stays below a megabyte.
CONVERSATIONS = 700_000
# Tokens of one conversation that are shown from its start, and from its end.
HEAD, TAIL = 3000, 1000
EXAMPLES = 3  # rejects of a reason
MOST = 40  # rows of a table
EXCERPT = 400  # characters


@dataclass(frozen=True, slots=True)
class Overview:
    """What stands above the conversations: the report's numbers, the survey and what it says."""

    report: Mapping[str, Any]
    survey: Survey
    needs: Sequence[Needs]
    remarks: Sequence[tuple[str, str]]
    rejects: Mapping[str, Sequence[str]]


def page(title: str, picked: Sequence[Picked], reader: Reader, overview: Overview | None) -> str:
    """Write the page; without an overview it is the conversations alone."""
    script = _data_file("page.js")
    style = _data_file("picture.css") + _data_file("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_text(title)} · turnpack</title>",
            f"<style>{style}</style></head><body>",
            _header(title, overview),
            "<main>",
            *([] if overview is None else _before(overview)),
            _browser(picked, reader, overview),
            *([] if overview is None else _behind(overview)),
            "</main>",
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _data_file(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: object) -> str:
    return escape(visible(str(value)))


def _name(value: object) -> str:
    """Return a name from outside, kept from turning the direction of what is around it."""
    return f"<bdi>{_text(value)}</bdi>"


def shortened(text: str, most: int = EXCERPT) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]} …"


# -- the overview --------------------------------------------------------------------------------


def _header(title: str, overview: Overview | None) -> str:
    heading = f'<p class="mark">turnpack</p><h1>{_text(title)}</h1>'
    if overview is None:
        return f"<header><div>{heading}</div></header>"
    links = {
        "overview": "Overview",
        "conversations": "Conversations",
        **({"lengths": "Lengths and sources"} if overview.survey.bins else {}),
        "rejects": "Rejects",
        "made": "Made with",
    }
    report = overview.report
    made = (
        f"Tokenizer {_name(_of(report, 'tokenizer', 'name'))}, "
        f"template {_name(_of(report, 'template', 'name'))}"
    )
    listed = "".join(f'<a href="#{place}">{name}</a>' for place, name in links.items())
    return (
        f"<header><div>{heading}<p>{made}</p></div>"
        f'<nav aria-label="Parts of the page">{listed}</nav></header>'
    )


def _of(report: Mapping[str, Any], *keys: str) -> Any:
    found: Any = report
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _before(overview: Overview) -> Iterable[str]:
    """What stands before the conversations."""
    yield _tiles(overview.report, overview.survey)
    yield _remarks(overview.remarks)
    if overview.survey.bins:
        yield _packing(overview.survey)


def _behind(overview: Overview) -> Iterable[str]:
    """What stands behind them."""
    report, survey = overview.report, overview.survey
    if survey.bins:
        charts = _lengths(report, survey) + _strategies(overview.needs)
        yield f'<div class="pair" id="lengths">{charts}</div>'
        yield f'<div class="pair">{_sources(survey)}{_turns(survey)}</div>'
    yield _rejects(overview)
    yield _made(report)


def _tiles(report: Mapping[str, Any], survey: Survey) -> str:
    counts = _of(report, "conversations") or {}
    rejected = counts.get("rejected", 0)
    total = survey.total
    share = total.targets / total.tokens if total.tokens else 0.0
    cells = survey.bins * survey.capacity
    full = total.tokens / cells if cells else 0.0
    tiles = [
        _tile(
            "packed",
            "conversations",
            counts.get("packed", 0),
            f"of {_number('read', counts.get('read', 0))} read, "
            f"{_number('rejected', rejected)} rejected",
        ),
        _tile("tokens", "tokens", total.tokens, f"in {_number('rows', total.rows)} rows"),
        _tile(
            "trained",
            "targets",
            total.targets,
            f"{_percent(share)} of the tokens",
            share,
        ),
        _tile(
            "bins",
            "bins",
            survey.bins,
            f"of {_number('capacity', survey.capacity)} tokens, {_percent(full)} full"
            + _splits(survey),
            full,
        ),
    ]
    return (
        '<section id="overview" aria-label="Totals"><dl class="tiles">'
        + "".join(tiles)
        + "</dl></section>"
    )


def _tile(count: str, name: str, value: int, note: str, share: float | None = None) -> str:
    meter = "" if share is None else _bar([(share, "strong")], "slim")
    shown = f"{_number(count, value, 'b')}<small>{note}</small>{meter}"
    return f"<div><dt>{name}</dt><dd>{shown}</dd></div>"


def _splits(survey: Survey) -> str:
    """Say how the bins are shared out, where they are for more than training."""
    if len(survey.bins_of) < 2:
        return ""
    parts = [f"{number:,} {_text(name)}" for name, number in survey.bins_of.items()]
    return f"; {', '.join(parts)}"


def _number(count: str, value: int, tag: str = "span") -> str:
    return f'<{tag} data-count="{count}">{value:,}</{tag}>'


def _percent(share: float) -> str:
    """Return a share in per cent, which is 100 or 0 only where it is."""
    shown = f"{share:.1%}"
    if shown == "100.0%" and share < 1:
        shown = f"{share:.2%}" if share < 0.99995 else "99.99%"
    if shown == "0.0%" and share > 0:
        return "<0.1%".replace("<", "&lt;")
    return shown.replace(".0%", "%") if share in (0, 1) else shown


def _bar(shares: Sequence[tuple[float, str]], look: str = "") -> str:
    """Draw shares of 1, one behind the other."""
    drawn, start = [], 0.0
    for share, kind in shares:
        width = 100 * share
        drawn.append(f'<rect class="{kind}" x="{start:.2f}" width="{width:.2f}" height="10"/>')
        start += width
    return (
        f'<svg class="bar {look}" viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(drawn)}</svg>'
    )


def _remarks(remarks: Sequence[tuple[str, str]]) -> str:
    if not remarks:
        return '<p class="fine"><span aria-hidden="true">✓</span> Nothing to warn of.</p>'
    signs = {"warning": "!", "note": "i"}
    items = "".join(
        f'<li class="{kind}"><span class="sign" aria-hidden="true">{signs[kind]}</span>'
        f'<span><span class="sr">{kind}: </span>{_text(text)}</span></li>'
        for kind, text in remarks
    )
    return f'<section aria-label="Warnings"><ul class="remarks">{items}</ul></section>'


def _card(heading: str, lead: str, *body: str, name: str = "") -> str:
    anchor = f' id="{name}"' if name else ""
    note = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section class="card"{anchor}><h2>{heading}</h2>{note}{"".join(body)}</section>'


def _packing(survey: Survey) -> str:
    bars = survey.picture
    half = -(-len(bars) // 2) if len(bars) > 20 else len(bars)
    drawn = [picture.svg(part, survey.capacity) for part in (bars[:half], bars[half:]) if part]
    which = (
        f"All {len(bars)} bins."
        if len(bars) == survey.bins
        else f"{len(bars)} of the {survey.bins:,} bins, drawn at random."
    )
    legend = (
        '<ul class="legend"><li><svg viewBox="0 0 36 10" aria-hidden="true">'
        + "".join(
            f'<rect class="k{n}" x="{6 * n}" width="6" height="10"/>'
            for n in range(picture.COLOURS)
        )
        + '</svg>targets</li><li><svg viewBox="0 0 36 10" aria-hidden="true">'
        + "".join(
            f'<rect class="q{n}" x="{6 * n}" width="6" height="10"/>'
            for n in range(picture.COLOURS)
        )
        + '</svg>prompt</li><li><svg viewBox="0 0 36 10" aria-hidden="true" class="tp-bars">'
        '<g class="tp-padding"><rect width="36" height="10"/></g></svg>padding</li></ul>'
    )
    scale = f'<p class="scale"><span>0</span><span>{survey.capacity:,} tokens</span></p>'
    return _card(
        "How the bins are filled",
        f"{which} Each bar is a bin, each colour in it a conversation.",
        legend,
        '<div class="bins">' + "".join(f"<div>{svg}{scale}</div>" for svg in drawn) + "</div>",
    )


def _lengths(report: Mapping[str, Any], survey: Survey) -> str:
    counts = survey.histogram()
    lengths = np.arange(len(counts))
    there = np.flatnonzero(counts)
    cumulated = np.cumsum(counts)
    total = int(cumulated[-1])

    def quantile(share: float) -> int:
        return int(np.searchsorted(cumulated, share * total))

    facts = [
        ("shortest", int(there[0])),
        ("median", quantile(0.5)),
        ("mean", round(int((counts * lengths).sum()) / total)),
        ("95th percentile", quantile(0.95)),
        ("longest", int(there[-1])),
    ]
    limit = _of(report, "options", "max_length")
    listed = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in facts)
    return _card(
        "How long the rows are",
        "Rows by their tokens; the scale doubles from mark to mark.",
        _histogram(counts, survey.capacity, limit if isinstance(limit, int) else None),
        f'<dl class="facts">{listed}</dl>',
    )


def _histogram(counts: np.ndarray, capacity: int, limit: int | None) -> str:
    """Draw rows by length on a scale of powers of two, four bars to each where there is room."""
    lowest = max(1, int(np.flatnonzero(counts)[0]))
    first, last = int(np.floor(np.log2(lowest))), float(np.log2(capacity))
    edges = sorted({round(2 ** (step / 4)) for step in range(4 * first, int(4 * last) + 6)})
    edges = [edge for edge in edges if edge <= capacity]
    if edges[-1] <= capacity:
        edges.append(capacity + 1)
    upto = np.concatenate([[0], np.cumsum(counts)])
    sums = np.diff(upto[np.minimum(edges, len(counts))])
    width, height = 560, 190
    span = max(last - first, 1)

    def x(length: float) -> float:
        return 14 + (width - 28) * float(np.log2(length) - first) / span

    most = max(1, int(sums.max()))
    drawn = []
    for start, end, number in zip(edges, edges[1:], sums.tolist(), strict=False):
        tall = max(height * number / most, 1.5 if number else 0)
        left, right = x(start), x(min(end, capacity))
        wide = max(right - left - 1.5, 1.5)
        said = f"{start:,} to {end - 1:,}" if end - start > 1 else f"{start:,}"
        drawn.append(
            f'<rect class="column" x="{left:.1f}" y="{14 + height - tall:.1f}" width="{wide:.1f}" '
            f'height="{tall:.1f}"><title>{said} tokens: {number:,} rows</title></rect>'
        )
    ticks = []
    step = 1 if last - first <= 8 else 2
    for power in range(first, int(last) + 1, step):
        ticks.append(f'<text x="{x(2**power):.1f}" y="{height + 32}">{_thousands(2**power)}</text>')
    lines = [(capacity, f"capacity {capacity:,}")]
    if limit is not None and limit < capacity:
        lines.append((limit, f"max length {limit:,}"))
    for place, (length, name) in enumerate(lines):
        at = x(max(length, 1))
        drawn.append(
            f'<path class="limit" d="M{at:.1f} 4V{height + 14}"/>'
            f'<text class="limit" x="{at - 6:.1f}" y="{14 + 15 * place}">{name}</text>'
        )
    said = f"Histogram of the tokens of rows, the most in one column {most:,}"
    return (
        f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {width} {height + 40}">'
        f'<path class="axis" d="M8 {height + 14.5}H{width - 8}"/>{"".join(drawn + ticks)}</svg>'
    )


def _thousands(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 else str(number)


_STRATEGIES = {
    "in_order": "in order",
    "first_fit": "first fit",
    "best_fit": "best fit",
}


def _strategies(needs: Sequence[Needs]) -> str:
    most = max(need.bins for need in needs)
    rows = []
    for need in needs:
        own = ' class="own"' if need.own else ""
        rows.append(
            f'<tr{own}><th scope="row">{_text(_STRATEGIES.get(need.name, need.name))}'
            f"{' <small>this run</small>' if need.own else ''}</th>"
            f'<td class="wide">{_bar([(need.bins / most, "strong" if need.own else "weak")])}</td>'
            f'<td class="n">{"≈ " if need.estimated else ""}{need.bins:,}</td>'
            f'<td class="n">{_over(need, needs[-1])}</td></tr>'
        )
    return _card(
        "How many bins it takes",
        "The same rows, packed otherwise; in order takes them at random. Nothing needs fewer bins "
        "than the lower bound.",
        '<table class="bars"><thead class="sr"><tr><th>strategy<th><th>bins<th>over the bound</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>",
    )


def _over(need: Needs, bound: Needs) -> str:
    """Say how far above the lower bound a strategy is."""
    if need is bound or not bound.bins:
        return ""
    times = need.bins / bound.bins
    return f"+{times - 1:.1%}" if times < 2 else f"{times:.1f} ×"


def _share_row(name: str, count: Count, most: int) -> str:
    share = count.targets / count.tokens if count.tokens else 0.0
    scale = count.tokens / most if most else 0.0
    bar = _bar([(share * scale, "strong"), ((1 - share) * scale, "faint")])
    return (
        f'<tr><th scope="row">{name}</th><td class="wide">{bar}</td>'
        f'<td class="n few">{count.rows:,}</td><td class="n">{count.tokens:,}</td>'
        f'<td class="n">{_percent(share)}</td></tr>'
    )


def _share_table(head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll"><table class="bars"><thead><tr><th>{head}<th><th class="n few">rows'
        '<th class="n">tokens<th class="n">targets</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sources(survey: Survey) -> str:
    most = max(count.tokens for count in survey.sources.values())
    shown = list(survey.sources.items())
    rest = Count()
    for _, count in shown[MOST:]:
        rest += count
    rows = [_share_row(_file(name), count, most) for name, count in shown[:MOST]]
    if rest.rows:
        rows.append(_share_row(OTHERS, rest, most))
    return _card("Targets by source", "", _share_table("file", rows))


def _file(name: str) -> str:
    """Return a file's name, with the folders before it small."""
    _folder, slash, last = name.rpartition("/")
    return f'<bdi title="{_text(name)}">{_text(last if slash else name)}</bdi>'


def _turns(survey: Survey) -> str:
    most = max((count.tokens for count in survey.turns), default=0)
    shown, rest = survey.turns[:10], Count()
    for count in survey.turns[10:]:
        rest += count
    rows = [_share_row(str(turn), count, most) for turn, count in enumerate(shown, 1)]
    if rest.rows:
        rest.rows = survey.turns[10].rows
        rows.append(_share_row(f"{len(shown) + 1} and later", rest, most))
    return _card(
        "Targets by turn",
        "Each answer of a conversation, with the prompt before it.",
        _share_table("answer", rows),
    )


def _rejects(overview: Overview) -> str:
    reasons = _of(overview.report, "rejected_by_reason") or {}
    if not reasons:
        return _card("Rejects", "", "<p>Every row that was read is packed.</p>", name="rejects")
    parts: list[str] = []
    most = max(reasons.values())
    for reason, number in list(reasons.items())[:MOST]:
        examples = list(overview.rejects.get(reason, ()))
        listed = "".join(f"<li>{_name(shortened(text))}</li>" for text in examples)
        more = number - len(examples)
        if more > 0:
            listed += f"<li>and {more:,} more in rejects.jsonl</li>"
        parts.append(
            f"<details{' open' if len(parts) < 3 else ''}><summary>"
            f"<span>{_name(shortened(reason))}</span>{_bar([(number / most, 'weak')])}"
            f'<span class="n" data-reason="{_text(reason)}">{number:,}</span>'
            f"</summary><ul>{listed}</ul></details>"
        )
    if len(reasons) > MOST:
        parts.append(f"<p>and {len(reasons) - MOST:,} more reasons in report.json</p>")
    total = _of(overview.report, "conversations", "rejected") or sum(reasons.values())
    return _card("Rejects", f"{total:,} left out.", *parts, name="rejects")


def _made(report: Mapping[str, Any]) -> str:
    pairs = [("turnpack", report.get("turnpack"))]
    for what in ("tokenizer", "template"):
        pairs += [
            (what if key == "name" else f"{what}: {key}", _short_hash(key, value))
            for key, value in (_of(report, what) or {}).items()
            if value is not None
        ]
    pairs += [
        (name.replace("_", " "), "none" if value is None else value)
        for name, value in (_of(report, "options") or {}).items()
    ]
    seconds = _of(report, "seconds") or {}
    spent = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
    pairs.append(("seconds", spent))
    listed = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_name(shortened(str(value)))}</dd></div>"
        for name, value in pairs
    )
    rows = [
        f'<tr><th scope="row">{_file(str(file.get("file")))}</th>'
        + "".join(
            f'<td class="n">{file.get(key, 0):,}</td>'
            for key in ("bytes", "read", "packed", "rejected")
        )
        + "</tr>"
        for file in (_of(report, "inputs") or [])
    ]
    if len(rows) > MOST:
        rows[MOST:] = [
            f'<tr><th scope="row">and {len(rows) - MOST:,} more in report.json</th></tr>'
        ]
    table = (
        '<div class="scroll"><table class="files"><thead><tr><th>file<th class="n">bytes'
        '<th class="n">read<th class="n">packed<th class="n">rejected</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return _card("Made with", "", f'<dl class="made">{listed}</dl>', table, name="made")


def _short_hash(key: str, value: Any) -> Any:
    return f"{value[:16]}…" if key == "sha256" and isinstance(value, str) else value


# -- the conversations ---------------------------------------------------------------------------


def _browser(picked: Sequence[Picked], reader: Reader, overview: Overview | None) -> str:
    rows = _fitting(picked, reader)
    total = len(picked) if overview is None else overview.survey.total.rows
    lead = f"All {total:,} rows" if len(rows) == total else f"{len(rows):,} of {total:,} rows"
    if overview is not None and len(rows) < total:
        lead += ": some at random, and those worth a look"
    data = {"kinds": list(KINDS), "rows": rows}
    return (
        '<section class="card" id="conversations"><h2>Conversations</h2>'
        f'<p class="lead">{lead}. What is marked is what the model learns to write.</p>'
        + _data_file("browser.html")
        + "<noscript><p>These need JavaScript; <code>turnpack preview</code> shows them in a "
        "terminal.</p></noscript></section>"
        f'<script type="application/json" id="data">{_json(data)}</script>'
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
