"""The offline job: chat files → packed bins in an output directory.

Owns the options and what is reported. The run itself is job.py's: there text becomes tokens
(pipeline.py), tokens bins (binning.py) and bins files (shards.py), in a directory (output.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import orjson

from . import pipeline, records, tokenizers
from ._version import __version__
from .binning import binning
from .encode import Encoder
from .fast_tokenizer import Accelerated
from .job import STAGES, Job, Progress, Settings, StaleError, block_tokens
from .journal import Journal, input_identity
from .output import RUN, is_output, replacing, write_json, write_manifest
from .pipeline import Work
from .report import Report, write_page
from .shards import complete_weights
from .sinks import exports
from .templates import TemplateProtocol

__all__ = ["STAGES", "OptionError", "Progress", "prepare"]

PathLike = str | os.PathLike[str]
Strategy = Literal["stream", "best_fit", "first_fit", "in_order", "none"]

# Tokens in a file, so that a set can be spread over data loaders; a run that goes on begins where
# a file ended.
SHARD_TOKENS = 1 << 26
# What makes processes that encode worth starting: processors, and bytes of input.
MANY_PROCESSORS = 5
MANY_BYTES = 1 << 26


class OptionError(ValueError):
    """A run that cannot begin: an argument that makes no sense, or a file that is no such thing."""


def prepare(
    files: PathLike | Sequence[PathLike],
    *,
    tokenizer: Any,
    template: TemplateProtocol | str,
    max_length: int,
    output: PathLike,
    capacity: int | None = None,
    strategy: Strategy = "stream",
    window: int = 4096,
    truncate: str = "right",
    train_on: str = "assistant",
    boundary: str = "cut",
    seed: int = 0,
    validation: float = 0.0,
    strict: bool = False,
    system: str | None = None,
    workers: int | None = None,
    format: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    tokenizer_backend: str = "auto",
    shard_tokens: int = SHARD_TOKENS,
    sinks: Sequence[str] = (),
    page: bool = True,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Turn chat files into packed bins in the directory `output`, and report what was done.

    `capacity`: tokens a bin may have, `max_length` by default. `strategy`: "stream" packs as rows
    come, `window` of them waiting; "in_order" and "none" (each row by itself) do not hold rows
    either, "best_fit" and "first_fit" hold all tokens in memory. Bins are shuffled by `seed`, those
    of a stream among some million tokens. `validation`: the share of conversations that goes into
    files of a split of that name, chosen by their tokens and `seed`.

    `strict`: stop at the first bad row. `workers`: processes that encode, None for what the machine
    has; the output does not depend on it. More than one are spawned, so a script that calls this
    needs `if __name__ == "__main__":`. `bos_token`, `eos_token`: how the tokenizer spells them,
    where it does not say. `tokenizer_backend`: "auto", "hf" or "gigatoken", see `tokenizers.load`;
    the report says which it was. `shard_tokens`: tokens that a file may have. `sinks`: what to
    write besides Parquet, of `sinks.exports.SINKS` ("numpy": the arrays that
    `turnpack.torch.PackedDataset` maps, so that it has nothing to decode). `page`: write
    report.html, which `turnpack report` can do later as well. The other options are Encoder's.

    An earlier output in the directory is replaced as a whole when the run has succeeded, and not
    touched when it fails. A run that was stopped or killed goes on with `resume` behind the last
    file that it wrote, to the same output as if it had not been; without, it begins anew. A run
    that finds nothing to pack succeeds, with no bins.

    Raises OptionError or OSError where it cannot begin (another run is at work in the directory, or
    the unfinished one is of other options or input), under `strict` RowError at the first bad row,
    ChildProcessError where a worker dies. Warns where a fast tokenizer was given up.
    """
    options = {key: value for key, value in locals().items() if key not in _NO_OPTIONS}
    begun = perf_counter()
    listed = [files] if isinstance(files, (str, os.PathLike)) else files
    paths = [os.fspath(path) for path in listed]
    try:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but is {seed}")
        if not 0 <= validation < 1:
            raise ValueError(f"validation must be from 0 to below 1, not {validation}")
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, not {shard_tokens}")
        if not os.fspath(output):
            raise ValueError("output is empty, not a directory")
        records.check_format(format)
        options["sinks"] = sinks = sorted({*sinks})
        for name in sinks:
            exports.check(name)
        if boundary == "whole":
            if tokenizer_backend == "gigatoken":
                raise ValueError("gigatoken gives no extents, which boundary 'whole' needs")
            tokenizer_backend = "hf"
        raw = records.raw_rows(paths)
        encoder = Encoder(
            tokenizers.load(tokenizer, bos=bos_token, eos=eos_token, backend=tokenizer_backend),
            template,
            max_length=max_length,
            truncate=truncate,
            train_on=train_on,
            boundary=boundary,
            system=system,
        )
        options["capacity"] = capacity = max_length if capacity is None else capacity
        if capacity < max_length:
            raise ValueError(f"capacity {capacity} is less than max_length {max_length}")
        splits = {
            name: binning(
                strategy,
                capacity,
                window=window,
                seed=seed,
                block_tokens=block_tokens(shard_tokens),
            )
            for name in (("train", "validation") if validation else ("train",))
        }
    except (ValueError, ImportError) as error:
        raise OptionError(str(error)) from error

    report = Report(
        options=options,
        tokenizer=_identity(encoder.backend),
        template=_identity(encoder.template),
        capacity=capacity,
    )
    sizes = {path: os.path.getsize(path) for path in paths}
    identity = {
        "turnpack": __version__,
        "options": options,
        "tokenizer": dict(report.tokenizer),
        "template": dict(report.template),
        "input": {path: input_identity(path) for path in paths},
    }
    if isinstance(encoder.backend, Accelerated):
        encoder.backend.begin()
    try:
        with replacing(output, resume) as hidden, pipeline.seldom_collecting():
            journal = Journal(hidden, identity)
            if resume:
                _check_resumed(journal, Path(output), report)
            folder = hidden / "new"
            job = Job(
                folder,
                journal,
                Work(encoder, format, {path: number for number, path in enumerate(sizes)}),
                sizes,
                splits,
                Settings(capacity, shard_tokens, validation, seed, strict),
                progress or (lambda progress: None),
            )
            job.run(raw, workers or _workers(sizes))
            _count(report, job, sizes, encoder.backend)
            _finish(report, job, folder, encoder.backend, sinks)
            report.seconds["total"] = perf_counter() - begun
            write_json(folder / RUN, {**report.about_the_run(), "identity": identity})
    except _AlreadyThere:
        pass
    except StaleError as error:
        raise OptionError(str(error)) from None
    return report


_NO_OPTIONS = ("files", "tokenizer", "template", "output", "workers", "resume", "progress")


class _AlreadyThere(Exception):
    """The output that a run is to go on to is complete."""


def _check_resumed(journal: Journal, output: Path, report: Report) -> None:
    """Raise OptionError unless what is there is this run's, _AlreadyThere if that is all of it."""
    try:
        if journal.read() is None and is_output(output):
            about = orjson.loads((output / RUN).read_bytes())
            journal.check(about.pop("identity"))
            there = orjson.loads((output / "report.json").read_bytes())
            for key, value in {**there, **about}.items():
                setattr(report, key, value)
            raise _AlreadyThere
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"{output} cannot be gone on with: {error}") from None


def _workers(sizes: Mapping[str, int]) -> int:
    processors = len(os.sched_getaffinity(0))
    many = processors >= MANY_PROCESSORS and sum(sizes.values()) >= MANY_BYTES
    return processors if many else 1


def _count(report: Report, job: Job, sizes: Mapping[str, int], backend: Any) -> None:
    """Report what was counted, and see that no row was lost."""
    tally, written = job.tally, list(job.written.values())
    for number, (file, size) in enumerate(sizes.items()):
        conversations, rows, tokens = (
            sum(counts)
            for counts in zip(*(w.inputs.get(str(number), [0, 0, 0]) for w in written), strict=True)
        )
        read = tally.read.get(str(number), 0)
        rejected = tally.rejected.get(str(number), 0)
        if read != conversations + rejected:
            raise RuntimeError(
                f"rows of {file} were lost, this is a bug of turnpack: {read} read, "
                f"{conversations} packed, {rejected} rejected"
            )
        counts = {"read": read, "packed": conversations, "rejected": rejected}
        more = {"rows": rows, "tokens": tokens}
        report.inputs.append({"file": file, "bytes": size, **counts, **more})
    report.conversations = {
        key: sum(file[key] for file in report.inputs) for key in ("read", "packed", "rejected")
    }
    report.warnings = dict(Counter(tally.warnings).most_common())
    report.truncated = {key: tally.truncated.get(key, 0) for key in ("tokens", "targets")}
    report.rejected_by_reason = dict(Counter(tally.reasons).most_common())
    report.seconds = {stage: tally.seconds.get(stage, 0.0) for stage in STAGES}
    report.rows = sum(w.rows for w in written)
    report.bins = sum(w.bins for w in written)
    total, trained = sum(w.tokens for w in written), sum(w.trained for w in written)
    if total != tally.tokens:
        raise RuntimeError(f"{tally.tokens} tokens became {total}, this is a bug of turnpack")
    share = trained / total if total else 0.0
    report.tokens = {"total": total, "trained": trained, "share": share}
    report.utilization = total / (report.bins * report.capacity) if report.bins else 0.0
    if isinstance(backend, Accelerated):
        if tally.fallback is not None:
            backend.give_up()  # perhaps it was in another process
        because = tally.fallback or backend.exact_because
        report.tokenizer["library"] = backend.library
        report.compared = tally.compared
        if because is not None:
            report.tokenizer["exact_because"] = because


def _finish(report: Report, job: Job, folder: Path, backend: Any, sinks: Sequence[str]) -> None:
    """Write what is made of the bins when all are there."""
    begun = perf_counter()
    for written in job.written.values():
        complete_weights(folder, written)
        report.files += written.files
    splits = {
        split: [folder / file["path"] for file in written.files]
        for split, written in job.written.items()
    }
    if sinks:
        facts = exports.Facts(report.capacity, getattr(backend, "vocabulary", None))
    for name in sinks:
        exports.export(name, splits, folder, facts)
    if hasattr(backend, "save"):
        backend.save(folder / "tokenizer")
    write_json(folder / "report.json", report.to_dict())
    drawing = perf_counter()
    if report.options["page"]:
        write_page(folder, backend)
    report.seconds["page"] = perf_counter() - drawing
    known = {
        file["path"]: {"rows": file["bins"], "tokens": file["tokens"], "sha256": file["sha256"]}
        for file in report.files
    }
    write_manifest(folder, known)
    report.seconds["write"] += perf_counter() - begun - report.seconds["page"]


def _identity(thing: Any) -> dict[str, Any]:
    """Name and hash of a tokenizer or template; one that people bring may have neither."""
    fingerprint = getattr(thing, "fingerprint", None)
    return {
        "name": getattr(thing, "name", type(thing).__name__),
        "sha256": None if fingerprint is None else fingerprint(),
    }
