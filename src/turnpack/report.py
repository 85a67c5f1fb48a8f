"""The report: what a run did with its input, as JSON, as a table and as a page.

Owns the names of the numbers, what is said of them in words, and that the page is made of an output
directory alone. What is counted in bins is survey.py's, how it looks is page's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .output import MANIFEST, write_json
from .reading import NoTokenizer, Reader, one_line

if TYPE_CHECKING:
    from .survey import Survey
    from .tokenizers import Backend

TITLE = "What the model will learn"
PAGE = "report.html"
# Bytes of rejects.jsonl that are searched for the first rejects of each reason.
SEARCHED = 1 << 26
EXAMPLES = 3  # of these


@dataclass(slots=True, kw_only=True)
class Report:
    """What report.json holds, key by key.

    `conversations` are the rows of the input: read = packed + rejected. In a run of a recipe
    read = rejected + filtered + duplicates + sampled_out + kept, packed = kept with repeats
    counted, and `sources` has these of each source. `rows` are what the packed ones became: under
    truncate "split" one may become several. `trained` counts labels as
    written, `truncated` the tokens and targets that were cut off.

    What may differ from run to run over the same input is in run.json: `seconds` by stage, over
    all workers together (by the clock for tokenize, write and total; those of read, render, plan
    and pack are what their thread computed, as other stages run meanwhile), and `compared`, the
    texts on which a fast tokenizer was. `output`, the directory, is in neither.
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
    truncated: dict[str, int] = field(default_factory=dict)
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
    pairs = [*summary(report), *([("seconds", spent)] if spent else [])]
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
SOURCE_COUNTS = ("read", "rejected", "filtered", "duplicates", "sampled_out", "kept", "packed")
_COLUMNS = (
    "source",
    *(key.replace("_", " ") for key in SOURCE_COUNTS),
    *("tokens before", "after", "of all"),
)


def _cells(source: Mapping[str, Any]) -> tuple[str, ...]:
    tokens = source["tokens"]
    return (
        one_line(source["source"]),
        *(f"{source[key]:,}" for key in SOURCE_COUNTS),
        *(f"{tokens['encoded']:,}", f"{tokens['packed']:,}", f"{source['share']:.1%}"),
    )


def write_page(
    folder: str | os.PathLike[str],
    backend: Backend | None = None,
    file: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page of an output directory: report.html in it, or `file`.

    Made of report.json, data/, rejects.jsonl and tokenizer/ alone, in one pass over the bins and in
    memory that does not grow with them. `backend`: the tokenizer, where it is loaded already.
    Raises FileNotFoundError where there is no report.json, ValueError where the files are not what
    `prepare` writes.
    """
    from . import bins
    from .page import Overview, page
    from .survey import strategies, survey

    folder = Path(folder)
    report = read(folder)
    options = report.get("options") or {}
    reader = Reader(backend or tokenizer(folder, options))
    found = survey(
        bins.files(folder),
        reader,
        report["capacity"],
        seed=options.get("seed") or 0,
        cut=bool((report.get("warnings") or {}).get("truncated")),
    )
    overview = Overview(
        report,
        found,
        strategies(found, str(options.get("strategy"))) if found.bins else (),
        list(remarks(report, found, reader)),
        _first_rejects(folder / "rejects.jsonl", report.get("rejected_by_reason") or {}),
    )
    target = folder / PAGE if file is None else Path(file)
    text = page(TITLE, found.picked, reader, overview)
    _replace(target, text.encode("utf-8", "backslashreplace"))
    return target


def read(folder: Path) -> dict[str, Any]:
    """Return report.json of a directory; ValueError where it is no report of turnpack."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())  # not orjson: a file's name may be no Unicode
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict) or not isinstance(report.get("capacity"), int):
        raise ValueError(f"{path} is no report of `turnpack prepare`")
    return report


def of(report: Mapping[str, Any]) -> Report:
    """Return what report.json holds as a Report; keys that are not its own are left out."""
    known = {field.name for field in dataclasses.fields(Report)}
    return Report(**{key: value for key, value in report.items() if key in known})


def relist(folder: Path) -> None:
    """Let the manifest list the page as it is now, where there is a manifest."""
    path = folder / MANIFEST
    if not path.exists():
        return
    manifest = json.loads(path.read_bytes())
    content = (folder / PAGE).read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    others = [file for file in manifest["files"] if file["path"] != PAGE]
    files = [*others, {"path": PAGE, **facts}]
    manifest["files"] = sorted(files, key=lambda file: str(file["path"]))
    write_json(path, manifest)


def tokenizer(folder: Path, options: Mapping[str, Any]) -> Backend:
    """Return the tokenizer of an output directory, or what stands in where it cannot be loaded."""
    from . import tokenizers

    try:
        return tokenizers.load(
            folder / "tokenizer", bos=options.get("bos_token"), eos=options.get("eos_token")
        )
    except (OSError, ValueError, ImportError):
        return NoTokenizer()


def _replace(target: Path, content: bytes) -> None:
    """Write a file so that it is the old or the new one, never a part."""
    fresh = target.with_name(f".{target.name}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _first_rejects(path: Path, reasons: Mapping[str, int]) -> dict[str, list[str]]:
    """The first few rejects of each reason, as far as they stand in the first `SEARCHED` bytes."""
    from .page.markup import shortened

    found: dict[str, list[str]] = {}
    missing = sum(min(number, EXAMPLES) for number in reasons.values())
    if not missing or not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            try:
                reject = json.loads(line)
                place, reason = reject["file"], reject["reason"]
            except (ValueError, KeyError, TypeError):
                continue
            examples = found.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                if "line" in reject:
                    place = f"{place}:{reject['line']}"
                elif "index" in reject:
                    place = f"{place}[{reject['index']}]"
                row = reject.get("row")
                text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
                detail = f" · {reject['detail']}" if reject.get("detail") else ""
                examples.append(f"{place}{detail} · {shortened(text, 160)}")
                missing -= 1
            if not missing or file.tell() > SEARCHED:
                break
    return found


# What a person is told of a warning that encoding counts.
_MEANINGS = {
    "no stop token": "an answer ends without a stop token: the model does not learn to stop there",
    "prompt differs": "the text of an answer leaves its generation prompt: the target starts where "
    "it does, so `turnpack check` is worth a look",
    "a fast tokenizer was given up": "the fast tokenizer gave other ids than the tokenizer's own "
    "library, which encoded the rest",
}


def remarks(report: Mapping[str, Any], found: Survey, reader: Reader) -> Iterator[tuple[str, str]]:
    """What a person should know before training, in words: ("warning" or "note", text)."""
    options, total = report.get("options") or {}, found.total
    if not total.rows:
        yield "warning", "Nothing was packed: there is nothing to train on."
    files = report.get("files") or ()
    if [sum(file[key] for file in files) for key in ("bins", "tokens")] != [
        found.bins,
        total.tokens,
    ]:
        yield "warning", "The bins are not those that report.json counts."
    if found.masked:
        yield "warning", f"{_rows(found.masked)} no target at all: they teach nothing."
    noted = dict(report.get("warnings") or {})
    truncated = noted.pop("truncated", 0)
    yield from _truncation(report, truncated, options)
    yield from _endings(
        found, truncated if options.get("truncate") in ("right", "split") else 0, reader
    )
    for text, number in found.spelled.items():
        yield (
            "warning",
            f"In {number:,} row{'s' * (number != 1)} ordinary text spells {one_line(text)}. It is "
            "encoded as text, not as the control token.",
        )
    if found.duplicates:
        about = "About " if found.thinned > 1 else ""
        share = found.duplicates / max(1, total.rows)
        yield (
            "warning" if share > 0.01 else "note",
            f"{about}{found.duplicates:,} rows ({share:.1%}) are there already, token for token.",
        )
    yield from _left_out(report)
    for phrase, number in noted.items():
        meaning = _MEANINGS.get(phrase)
        said = f"{meaning[0].upper()}{meaning[1:]}" if meaning else phrase
        yield "warning", f"{one_line(said)} ({number:,})."


def _rows(number: int) -> str:
    return f"{number:,} rows have" if number != 1 else "1 row has"


def _endings(found: Survey, cut: int, reader: Reader) -> Iterator[tuple[str, str]]:
    """What is wrong with the last targets of rows; `cut`: rows of which the end was cut off."""
    total = found.total
    if found.unstopped == total.rows and total.rows:
        yield (
            "warning",
            "No row ends with a control token that is a target: no EOS is trained, so the model "
            "never learns to stop.",
        )
    elif found.unstopped > cut:
        yield (
            "warning",
            f"{_rows(found.unstopped)} no stop token as the last target: the end is not learned.",
        )
    ending = next(iter(found.endings), None)
    eos = one_line(reader.eos or ending or "")
    if found.unstopped < total.rows and eos not in found.endings:
        yield (
            "note",
            f"Answers end with {ending}, and the tokenizer's EOS {eos} is never a last target: "
            f"generation must stop at {ending}.",
        )


def _left_out(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Files of which nothing is packed, and rejects where they are many."""
    for file in report.get("inputs") or ():
        if file.get("read") and not file.get("packed"):
            yield (
                "warning",
                f"Nothing of {file['file']} is left: all {file['read']:,} rows "
                + ("are rejects." if file.get("rejected") == file["read"] else "were left out."),
            )
        elif not file.get("read"):
            yield "warning", f"{file.get('file')} has no rows."
    counts = report.get("conversations") or {}
    if counts.get("rejected", 0) > 0.1 * counts.get("read", 0):
        share = counts["rejected"] / counts["read"]
        yield (
            "warning",
            f"{counts['rejected']:,} of {counts['read']:,} rows ({share:.0%}) are rejects.",
        )


def _truncation(
    report: Mapping[str, Any], truncated: int, options: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What truncation cost: conversations, and tokens where the run counted them."""
    if not truncated:
        return
    packed = (report.get("conversations") or {}).get("packed") or 1
    how = {
        "right": "were cut at the end",
        "turns": "lost their oldest exchanges",
        "split": "were split over several rows",
    }.get(str(options.get("truncate")), "were shortened")
    lost = report.get("truncated") or {}
    if "tokens" in lost:
        cost = f", at the cost of {lost['tokens']:,} tokens"
        if "targets" in lost:
            cost += f" and {lost['targets']:,} targets"
    else:
        cost = "; how many tokens that cost was not counted"
    limit = options.get("max_length")
    length = f" than {limit:,} tokens" if isinstance(limit, int) else ""
    yield (
        "warning" if truncated > 0.01 * packed else "note",
        f"{truncated:,} of {packed:,} conversations are longer{length} and {how}{cost}.",
    )
