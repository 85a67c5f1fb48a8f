"""The overview: the report's numbers and the survey's, as tiles, charts and tables.

Owns how they look. Counts nothing and reads no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import picture
from ..report import SOURCE_COUNTS
from ..survey import OTHERS, Count, Needs, Survey
from . import markup
from .markup import shortened

MOST = 40  # rows of a table


@dataclass(frozen=True, slots=True)
class Overview:
    """What stands above the conversations: the report's numbers, the survey and what it says."""

    report: Mapping[str, Any]
    survey: Survey
    needs: Sequence[Needs]
    remarks: Sequence[tuple[str, str]]
    rejects: Mapping[str, Sequence[str]]


def header(title: str, overview: Overview | None) -> str:
    """Return the page's head: its title and, with an overview, what it is of and its parts."""
    heading = f'<p class="mark">turnpack</p><h1>{markup.text(title)}</h1>'
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
        f"Tokenizer {markup.name(_of(report, 'tokenizer', 'name'))}, "
        f"template {markup.name(_of(report, 'template', 'name'))}"
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


def before(overview: Overview) -> Iterable[str]:
    """What stands before the conversations."""
    yield _tiles(overview.report, overview.survey)
    yield _remarks(overview.remarks)
    if overview.survey.bins:
        yield _packing(overview.survey)


def behind(overview: Overview) -> Iterable[str]:
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
            f"of {markup.number('read', counts.get('read', 0))} read, "
            f"{markup.number('rejected', rejected)} rejected",
        ),
        _tile("tokens", "tokens", total.tokens, f"in {markup.number('rows', total.rows)} rows"),
        _tile(
            "trained",
            "targets",
            total.targets,
            f"{markup.percent(share)} of the tokens",
            share,
        ),
        _tile(
            "bins",
            "bins",
            survey.bins,
            f"of {markup.number('capacity', survey.capacity)} tokens, {markup.percent(full)} full"
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
    meter = "" if share is None else markup.bar([(share, "strong")], "slim")
    shown = f"{markup.number(count, value, 'b')}<small>{note}</small>{meter}"
    return f"<div><dt>{name}</dt><dd>{shown}</dd></div>"


def _splits(survey: Survey) -> str:
    """Say how the bins are shared out, where they are for more than training."""
    if len(survey.bins_of) < 2:
        return ""
    parts = [f"{number:,} {markup.text(name)}" for name, number in survey.bins_of.items()]
    return f"; {', '.join(parts)}"


def _remarks(remarks: Sequence[tuple[str, str]]) -> str:
    if not remarks:
        return '<p class="fine"><span aria-hidden="true">✓</span> Nothing to warn of.</p>'
    signs = {"warning": "!", "note": "i"}
    items = "".join(
        f'<li class="{kind}"><span class="sign" aria-hidden="true">{signs[kind]}</span>'
        f'<span><span class="sr">{kind}: </span>{markup.text(text)}</span></li>'
        for kind, text in remarks
    )
    return f'<section aria-label="Warnings"><ul class="remarks">{items}</ul></section>'


def _packing(survey: Survey) -> str:
    bars = survey.picture
    half = -(-len(bars) // 2) if len(bars) > 20 else len(bars)
    drawn = [picture.svg(part, survey.capacity) for part in (bars[:half], bars[half:]) if part]
    which = (
        f"All {len(bars)} bins."
        if len(bars) == survey.bins
        else f"{len(bars)} of the {survey.bins:,} bins, drawn at random."
    )
    targets, prompts = (
        "".join(
            f'<rect class="{look}{n}" x="{6 * n}" width="6" height="10"/>'
            for n in range(picture.COLOURS)
        )
        for look in "kq"
    )
    legend = (
        f'<ul class="legend"><li><svg viewBox="0 0 36 10" aria-hidden="true">{targets}</svg>targets'
        f'</li><li><svg viewBox="0 0 36 10" aria-hidden="true">{prompts}</svg>prompt</li>'
        '<li><svg viewBox="0 0 36 10" aria-hidden="true" class="tp-bars">'
        '<g class="tp-padding"><rect width="36" height="10"/></g></svg>padding</li></ul>'
    )
    scale = f'<p class="scale"><span>0</span><span>{survey.capacity:,} tokens</span></p>'
    return markup.card(
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
    return markup.card(
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
    "none": "one row a bin",
    "stream": "as a stream",
    "in_order": "in order",
    "first_fit": "first fit",
    "best_fit": "best fit",
}


def _strategies(needs: Sequence[Needs]) -> str:
    most = max(need.bins for need in needs)
    rows = []
    for need in needs:
        own = ' class="own"' if need.own else ""
        drawn = markup.bar([(need.bins / most, "strong" if need.own else "weak")])
        rows.append(
            f'<tr{own}><th scope="row">{markup.text(_STRATEGIES.get(need.name, need.name))}'
            f"{' <small>this run</small>' if need.own else ''}</th>"
            f'<td class="wide">{drawn}</td>'
            f'<td class="n">{"≈ " if need.estimated else ""}{need.bins:,}</td>'
            f'<td class="n">{_over(need, needs[-1])}</td></tr>'
        )
    return markup.card(
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
    bar = markup.bar([(share * scale, "strong"), ((1 - share) * scale, "faint")])
    return (
        f'<tr><th scope="row">{name}</th><td class="wide">{bar}</td>'
        f'<td class="n few">{count.rows:,}</td><td class="n">{count.tokens:,}</td>'
        f'<td class="n">{markup.percent(share)}</td></tr>'
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
    return markup.card("Targets by source", "", _share_table("file", rows))


def _file(name: str) -> str:
    """Return a file's name, with the folders before it small."""
    _folder, slash, last = name.rpartition("/")
    return f'<bdi title="{markup.text(name)}">{markup.text(last if slash else name)}</bdi>'


def _turns(survey: Survey) -> str:
    most = max((count.tokens for count in survey.turns), default=0)
    shown, rest = survey.turns[:10], Count()
    for count in survey.turns[10:]:
        rest += count
    rows = [_share_row(str(turn), count, most) for turn, count in enumerate(shown, 1)]
    if rest.rows:
        rest.rows = survey.turns[10].rows
        rows.append(_share_row(f"{len(shown) + 1} and later", rest, most))
    return markup.card(
        "Targets by turn",
        "Each answer of a conversation, with the prompt before it.",
        _share_table("answer", rows),
    )


def _rejects(overview: Overview) -> str:
    reasons = _of(overview.report, "rejected_by_reason") or {}
    if not reasons:
        return markup.card(
            "Rejects", "", "<p>Every row that was read is packed.</p>", name="rejects"
        )
    parts: list[str] = []
    most = max(reasons.values())
    for reason, number in list(reasons.items())[:MOST]:
        examples = list(overview.rejects.get(reason, ()))
        listed = "".join(f"<li>{markup.name(shortened(text))}</li>" for text in examples)
        more = number - len(examples)
        if more > 0:
            listed += f"<li>and {more:,} more in rejects.jsonl</li>"
        parts.append(
            f"<details{' open' if len(parts) < 3 else ''}><summary>"
            f"<span>{markup.name(shortened(reason))}</span>{markup.bar([(number / most, 'weak')])}"
            f'<span class="n" data-reason="{markup.text(reason)}">{number:,}</span>'
            f"</summary><ul>{listed}</ul></details>"
        )
    if len(reasons) > MOST:
        parts.append(f"<p>and {len(reasons) - MOST:,} more reasons in report.json</p>")
    total = _of(overview.report, "conversations", "rejected") or sum(reasons.values())
    return markup.card("Rejects", f"{total:,} left out.", *parts, name="rejects")


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
    listed = "".join(
        f"<div><dt>{markup.text(name)}</dt><dd>{markup.name(shortened(str(value)))}</dd></div>"
        for name, value in pairs
    )
    return markup.card(
        "Made with",
        "",
        f'<dl class="made">{listed}</dl>',
        _counts(report, "sources", "source", (*SOURCE_COUNTS, "share"), markup.name),
        _counts(report, "inputs", "file", ("bytes", "read", "packed", "rejected"), _file),
        name="made",
    )


def _counts(
    report: Mapping[str, Any],
    what: str,
    named: str,
    keys: Sequence[str],
    spell: Callable[[str], str],
) -> str:
    """A table of the counts of each of report.json's `what`; nothing where there are none."""
    all_of_it = _of(report, what) or []
    if not all_of_it:
        return ""
    rows = [
        f'<tr><th scope="row">{spell(str(each.get(named)))}</th>'
        + "".join(f'<td class="n">{_spelled(each.get(key, 0))}</td>' for key in keys)
        + "</tr>"
        for each in all_of_it[:MOST]
    ]
    if len(all_of_it) > MOST:
        left = len(all_of_it) - MOST
        rows.append(f'<tr><th scope="row">and {left:,} more in report.json</th></tr>')
    titles = "".join(f'<th class="n">{key.replace("_", " ")}' for key in keys)
    return (
        f'<div class="scroll"><table class="files"><thead><tr><th>{named}{titles}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _spelled(number: float) -> str:
    return f"{number:.1%}" if isinstance(number, float) else f"{number:,}"


def _short_hash(key: str, value: Any) -> Any:
    return f"{value[:16]}…" if key == "sha256" and isinstance(value, str) else value
