"""The report: what a run did with its input, as JSON, as a table and as a page.

Owns the names and the layout of the numbers. Counts nothing itself and reads no data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ._version import __version__
from .preview import one_line, visible


@dataclass(slots=True, kw_only=True)
class Report:
    """What report.json holds, key by key.

    `conversations` are the rows of the input: read = packed + rejected. In a run of a recipe
    read = rejected + filtered + duplicates + sampled_out + kept, packed = kept with repeats
    counted, and `sources` has these of each source. `rows` are what the packed ones became: under
    truncate "split" one may become several. `trained` counts labels as
    written.

    What may differ from run to run over the same input is in run.json: `seconds` spent, over all
    threads and workers together, by stage (`total` is by the clock), and `compared`, the texts on
    which a fast tokenizer was. `output`, the directory, is in neither.
    """

    turnpack: str = __version__
    options: dict[str, Any]
    tokenizer: dict[str, Any]
    template: dict[str, Any]
    inputs: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    conversations: dict[str, int] = field(default_factory=dict)
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: dict[str, Any] = field(default_factory=dict)
    bins: int = 0
    capacity: int = 0
    utilization: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    compared: int = 0
    output: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as report.json spells it."""
        left_out = {"output", *self.about_the_run()}
        return {
            key: value for key, value in dataclasses.asdict(self).items() if key not in left_out
        }

    def about_the_run(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        return {"seconds": self.seconds, "compared": self.compared}


def summary(report: Report) -> Iterator[tuple[str, str]]:
    """Name and value of what a person wants to know first, in order."""
    counts, tokens = report.conversations, report.tokens
    yield "rows read", f"{counts['read']:,}"
    yield "rejected", f"{counts['rejected']:,}"
    for reason, number in report.rejected_by_reason.items():
        yield f"  {one_line(reason)}", f"{number:,}"
    for key in ("filtered", "duplicates", "sampled_out", "kept"):
        if key in counts:
            yield key.replace("_", " "), f"{counts[key]:,}"
    yield "packed", f"{counts['packed']:,}"
    if report.rows != counts["packed"]:
        yield "  in rows", f"{report.rows:,}"
    yield "tokens", f"{tokens['total']:,}"
    yield "trained on", f"{tokens['trained']:,} ({tokens['share']:.1%})"
    if report.tokenizer.get("library"):
        why = report.tokenizer.get("exact_because")
        yield "tokenized by", report.tokenizer["library"] + (f" ({one_line(why)})" if why else "")
    yield "bins", f"{report.bins:,} of {report.capacity:,} tokens"
    yield "utilization", f"{report.utilization:.2%}"
    for phrase, number in report.warnings.items():
        yield "warning", f"{one_line(phrase)} ({number:,})"


def table(report: Report) -> str:
    """Lay the summary out for the terminal, a line for each pair."""
    spent = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
    pairs = [*summary(report), ("seconds", spent)]
    width = max(len(name) for name, _ in pairs)
    lines = [f"{name:{width}}  {value}" for name, value in pairs]
    if report.sources:
        cells = [_COLUMNS, *map(_cells, report.sources)]
        first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
        lines.append("")
        lines += [
            "  ".join([f"{name:{first}}", *map(str.rjust, numbers, widths)])
            for name, *numbers in cells
        ]
    return "\n".join(lines)


# What is said of each source, from what was read to what is in the bins.
_COUNTS = ("read", "rejected", "filtered", "duplicates", "sampled_out", "kept", "packed")
_COLUMNS = (
    "source",
    *(key.replace("_", " ") for key in _COUNTS),
    *("tokens before", "after", "of all"),
)


def _cells(source: Mapping[str, Any]) -> tuple[str, ...]:
    tokens = source["tokens"]
    return (
        one_line(source["source"]),
        *(f"{source[key]:,}" for key in _COUNTS),
        *(f"{tokens['encoded']:,}", f"{tokens['packed']:,}", f"{source['share']:.1%}"),
    )


def page(report: Report, examples: Mapping[str, Sequence[str]]) -> str:
    """Write the report as one HTML page that loads nothing.

    `examples`: the first few rejects of each reason. Whatever comes from the input is escaped.
    """
    tokenizer, template = report.tokenizer, report.template
    made = [
        ("tokenizer", tokenizer["name"], tokenizer["sha256"]),
        ("template", template["name"], template["sha256"]),
    ]
    parts = [
        _HEAD,
        _rows([(name.strip(), value) for name, value in summary(report)]),
        "<h2>Made with</h2>",
        _rows([("turnpack", report.turnpack)]),
        _rows([(what, f"{name} (sha256 {sha256})") for what, name, sha256 in made]),
        _rows([(name, str(value)) for name, value in report.options.items()]),
        *_sources(report.sources),
        "<h2>Files read</h2>",
        "<table><tr><th>file<th>bytes<th>read<th>packed<th>rejected</tr>",
        *(
            f"<tr><td>{_text(file['file'])}"
            + "".join(f"<td>{file[key]:,}" for key in ("bytes", "read", "packed", "rejected"))
            + "</tr>"
            for file in report.inputs
        ),
        "</table>",
    ]
    if report.rejected_by_reason:
        parts.append("<h2>Rejected</h2>")
    for reason, number in report.rejected_by_reason.items():
        first = examples.get(reason, ())
        parts.append(f"<h3>{_text(reason)} ({number:,})</h3><ul>")
        parts += [f"<li>{_text(_shortened(example))}</li>" for example in first]
        if number > len(first):
            parts.append(f"<li>and {number - len(first):,} more in rejects.jsonl</li>")
        parts.append("</ul>")
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>turnpack report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .15rem 1.5rem .15rem 0; text-align: left; vertical-align: top; }
td, li { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
th { font-weight: normal; opacity: .7; }
</style></head><body><main>
<h1>turnpack report</h1>"""


def _sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not sources:
        return
    yield "<h2>Sources</h2><table><tr>" + "".join(f"<th>{name}" for name in _COLUMNS) + "</tr>"
    for source in sources:
        yield "<tr>" + "".join(f"<td>{_text(cell)}" for cell in _cells(source)) + "</tr>"
    yield "</table><ul>"
    for source in sources:
        for bound, number in source["filtered_by"].items():
            yield f"<li>{_text(source['source'])}: {number:,} filtered by {bound}</li>"
    yield "</ul>"


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    lines = [f"<tr><th>{_text(name)}<td>{_text(value)}</tr>" for name, value in pairs]
    return "\n".join(["<table>", *lines, "</table>"])


def _text(value: str) -> str:
    return escape(visible(value))


def _shortened(text: str, limit: int = 500) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"
