"""The offline job: chat files → packed bins in an output directory.

Owns the options and what is reported. The run itself is job.py's: there text becomes tokens
(pipeline.py), tokens bins (binning.py) and bins files (shards.py), in a directory (output.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from . import recipe as recipes
from . import records, tokenizers
from ._version import __version__
from .binning import Binning, binning
from .encode import Encoder
from .fast_tokenizer import Accelerated
from .fates import FATES, Input
from .garbage import seldom_collecting
from .job import STAGES, Assignment, Job, Progress, Settings, StaleError, block_tokens
from .journal import Journal, input_identity
from .output import (
    ENTRIES,
    HIDDEN,
    RUN,
    is_output,
    loads,
    on_disk,
    replacing,
    write_json,
    write_manifest,
)
from .pipeline import Part, Work
from .recipe import Recipe
from .report import Report, write_page
from .shards import complete_weights
from .shuffle import Shuffled
from .sinks import exports
from .templates import TemplateProtocol

__all__ = ["STAGES", "OptionError", "Progress", "prepare", "prepare_recipe"]

PathLike = str | os.PathLike[str]
Strategy = Literal["stream", "best_fit", "first_fit", "in_order", "none"]

# Tokens in a file, so that a set can be spread over data loaders; a run that goes on begins where
# a file ended.
SHARD_TOKENS = 1 << 26


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
    job: Any = Job,
) -> Report:
    """Turn chat files into packed bins in the directory `output`, and report what was done.

    `capacity`: tokens a bin may have, `max_length` by default. `strategy`: "stream" packs as rows
    come, `window` of them waiting; "in_order" (each behind the one before it) and "none" (each by
    itself) do not hold rows either, "best_fit" and "first_fit" hold all tokens in memory. Bins are
    shuffled by `seed`, a stream's in blocks of half a million tokens. `validation`: the share of
    conversations that goes into files of a split of that name, chosen by their tokens and `seed`.

    `strict`: stop at the first bad row. `workers`: processes that encode, None for what the machine
    has; the output does not depend on it. More than one are spawned, so a script that calls this
    needs `if __name__ == "__main__":`. `bos_token`, `eos_token`: how the tokenizer spells them,
    where it does not say. `tokenizer_backend`: "auto", "hf" or "gigatoken", see `tokenizers.load`;
    the report says which it was. `shard_tokens`: tokens that a file may have. `sinks`: what to
    write besides Parquet, of `sinks.exports.SINKS` ("numpy": the arrays that
    `turnpack.torch.PackedDataset` maps, so that it has nothing to decode). `page`: write
    report.html, which `turnpack report` can do later as well. `job`: what does the work, for
    ray.py. The other options are Encoder's.

    An earlier output in the directory is replaced as a whole when the run has succeeded, and not
    touched when it fails. A run that was stopped or killed goes on with `resume` behind the last
    file that it wrote, to the same output as if it had not been; without, it begins anew. A run
    that finds nothing to pack succeeds, with no bins.

    Raises OptionError or OSError where it cannot begin (another run is at work in the directory, or
    the unfinished one is of other options or input), under `strict` RowError at the first bad row,
    ChildProcessError where a worker dies. Warns where a fast tokenizer was given up.
    """
    options = {key: value for key, value in locals().items() if key != "files"}
    listed = [files] if isinstance(files, (str, os.PathLike)) else files
    source = recipes.Source("", [os.fspath(path) for path in listed], {})
    return _prepare([source], options, None)


def prepare_recipe(
    path: PathLike,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Report:
    """Do what a recipe says, a TOML file; the README has its keys.

    `options`: those of `prepare`, in the place of the recipe's. The report has a line for each
    source besides. Of the bins is true what `prepare` says, and the same is raised; a mistake in
    the recipe is an OptionError that names it.
    """
    known = signature(prepare).parameters
    for key in options:
        if key not in known or key == "files":
            raise TypeError(f"{key} is no option of a recipe")
    recipe = load_recipe(path)
    defaults = {
        key: option.default for key, option in known.items() if option.default is not option.empty
    }
    options = {**defaults, **recipe.options, **options, "resume": resume, "progress": progress}
    for key in known:
        if key != "files" and key not in options:
            raise OptionError(f"{recipe.path}: {key} is missing")
    return _prepare(recipe.sources, options, recipe)


def load_recipe(path: PathLike) -> Recipe:
    """Read a recipe; raises OptionError where it says what makes no sense."""
    try:
        return recipes.load(path)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _prepare(
    sources: Sequence[recipes.Source], options: dict[str, Any], recipe: Recipe | None
) -> Report:
    """Pack the files of sources; `options` are all of `prepare`."""
    begun = perf_counter()
    output, resume = options["output"], options["resume"]
    try:
        _check(options)
        for source in sources:
            records.raw_rows(source.files)  # raises where one is no file that can be read
        encoder = _encoder(options)
        parts = _parts(sources, options, encoder, recipe)
        splits = _splits(options)
    except (ValueError, ImportError) as error:
        raise OptionError(f"{recipe.path}: {error}" if recipe else str(error)) from error

    backend = encoder.backend
    inputs = [
        Input(number, source.name, file, os.path.getsize(file))
        for number, (source, part) in enumerate(zip(sources, parts, strict=True))
        for file in part.files
    ]
    _check_apart(inputs, Path(output))
    report = _begun(options, encoder, recipe)
    identity = _identity_of_run(report, inputs, sources, parts, recipe)
    if isinstance(backend, Accelerated):
        backend.begin()
    try:
        with replacing(output, resume) as hidden, seldom_collecting():
            journal = Journal(hidden, identity)
            if resume:
                _check_resumed(journal, Path(output), report)
            folder = hidden / "new"
            if recipe is not None and recipe.shuffle:
                splits = {
                    name: Shuffled(split, journal.state, hidden / "sorting", name, options["seed"])
                    for name, split in splits.items()
                }
            saved = _Tokenizer(backend, folder)
            assignment = Assignment(
                folder,
                journal,
                Work(parts),
                inputs,
                [source.choice for source in sources],
                splits,
                Settings(
                    options["capacity"],
                    options["shard_tokens"],
                    options["validation"],
                    options["seed"],
                    options["strict"],
                    recipe.duplicates if recipe else "keep",
                ),
                options["progress"] or (lambda progress: None),
                saved.save,
            )
            job = options["job"](assignment)
            job.run([source.files for source in sources], options["workers"])
            _count(report, job, inputs, backend, recipe)
            _finish(report, job, folder, saved, options["sinks"])
            report.seconds["total"] = perf_counter() - begun
            write_json(folder / RUN, {**report.about_the_run(), "identity": identity})
    except _AlreadyThere:
        pass
    except (StaleError, tokenizers.TokenizerError) as error:
        raise OptionError(str(error)) from None
    return report


def _check_apart(inputs: Sequence[Input], output: Path) -> None:
    """Raise OptionError where a file is part of the output, and would be replaced by it."""
    replaced = {(output / name).resolve() for name in (HIDDEN, *ENTRIES)}
    for input in inputs:
        file = Path(input.file).resolve()
        if replaced & {file, *file.parents}:
            raise OptionError(f"{input.file} is part of the output {output}, which is replaced")


def _check(options: dict[str, Any]) -> None:
    """Raise ValueError where options make no sense, and fill in what they leave open."""
    for key, least in (("workers", 1), ("shard_tokens", 1)):
        if options[key] is not None and options[key] < least:
            raise ValueError(f"{key} must be at least {least}, not {options[key]}")
    if options["seed"] < 0:
        raise ValueError(f"seed must not be negative, but is {options['seed']}")
    if not 0 <= options["validation"] < 1:
        raise ValueError(f"validation must be from 0 to below 1, not {options['validation']}")
    if not os.fspath(options["output"]):
        raise ValueError("output is empty, not a directory")
    records.check_format(options["format"])
    options["sinks"] = sorted({*options["sinks"]})
    for name in options["sinks"]:
        exports.check(name)
    if options["boundary"] == "whole" and options["tokenizer_backend"] == "gigatoken":
        raise ValueError("gigatoken gives no extents, which boundary 'whole' needs")


def _encoder(options: Mapping[str, Any], backend: Any = None) -> Encoder:
    """The encoder that options ask for; by a tokenizer that is loaded already, if there is one."""
    if backend is None:
        backend = tokenizers.load(
            options["tokenizer"],
            bos=options["bos_token"],
            eos=options["eos_token"],
            backend="hf" if options["boundary"] == "whole" else options["tokenizer_backend"],
        )
    wanted = ("max_length", "truncate", "train_on", "boundary", "system")
    return Encoder(backend, options["template"], **{key: options[key] for key in wanted})


def _parts(
    sources: Sequence[recipes.Source],
    options: Mapping[str, Any],
    encoder: Encoder,
    recipe: Recipe | None,
) -> list[Part]:
    """How each source is encoded; the inputs are numbered over all of them."""
    parts: list[Part] = []
    numbers = count()
    for source in sources:
        own, format = encoder, source.options.get("format", options["format"])
        try:
            records.check_format(format)
            if source.options.keys() - {"format"}:
                own = _encoder({**options, **source.options}, encoder.backend)
        except ValueError as error:
            raise ValueError(f"source {source.name!r}: {error}") from error
        digests = recipe is not None and recipe.duplicates != "keep"
        described = "digests" if digests else "yes" if source.choice.filters else "no"
        files = {file: next(numbers) for file in dict.fromkeys(source.files)}
        parts.append(Part(own, format, files, described))
    return parts


def _splits(options: dict[str, Any]) -> dict[str, Binning]:
    """What makes the bins of each split; fills in the capacity where it is left open."""
    capacity, max_length = options["capacity"], options["max_length"]
    options["capacity"] = capacity = max_length if capacity is None else capacity
    if capacity < max_length:
        raise ValueError(f"capacity {capacity} is less than max_length {max_length}")
    return {
        name: binning(
            options["strategy"],
            capacity,
            window=options["window"],
            seed=options["seed"],
            block_tokens=block_tokens(options["shard_tokens"]),
        )
        for name in (("train", "validation") if options["validation"] else ("train",))
    }


_NO_OPTIONS = ("files", "tokenizer", "template", "output", "workers", "resume", "progress", "job")


def _begun(options: Mapping[str, Any], encoder: Encoder, recipe: Recipe | None) -> Report:
    """The report of a run that has done nothing yet."""
    report = Report(
        options={
            **{key: value for key, value in options.items() if key not in _NO_OPTIONS},
            **options["job"].options,
        },
        tokenizer=_identity(encoder.backend),
        template=_identity(encoder.template),
        capacity=options["capacity"],
        output=os.fspath(options["output"]),
    )
    if recipe is not None:
        report.options["recipe"] = _about(recipe)
    return report


def _identity_of_run(
    report: Report,
    inputs: Sequence[Input],
    sources: Sequence[recipes.Source],
    parts: Sequence[Part],
    recipe: Recipe | None,
) -> dict[str, Any]:
    """All that the output depends on; runs of the same identity may go on with each other's."""
    identity = {
        "turnpack": __version__,
        "options": report.options,
        "tokenizer": dict(report.tokenizer),
        "template": dict(report.template),
        "input": {input.file: input_identity(input.file) for input in inputs},
        "files": [file for source in sources for file in source.files],
    }
    if recipe is not None:
        identity["sources"] = [source.name for source in sources]
        identity["templates"] = {
            source.name: _identity(part.encoder.template)
            for source, part in zip(sources, parts, strict=True)
        }
    return identity


class _AlreadyThere(Exception):
    """The output that a run is to go on to is complete."""


def _check_resumed(journal: Journal, output: Path, report: Report) -> None:
    """Raise OptionError unless what is there is this run's, _AlreadyThere if that is all of it."""
    try:
        if journal.read() is None and is_output(output):
            about = loads((output / RUN).read_bytes())
            journal.check(about.pop("identity"))
            there = loads((output / "report.json").read_bytes())
            for key, value in {**there, **about}.items():
                setattr(report, key, value)
            raise _AlreadyThere
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"{output} cannot be gone on with: {error}") from None


def _count(
    report: Report, job: Job, inputs: Sequence[Input], backend: Any, recipe: Recipe | None
) -> None:
    """Report what was counted, and see that no row and no token was lost."""
    tally, written = job.tally, list(job.written.values())
    for number, file in enumerate(inputs):
        conversations, rows, tokens = (
            sum(counts)
            for counts in zip(*(w.inputs.get(str(number), [0, 0, 0]) for w in written), strict=True)
        )
        read, rejected = (c.get(str(number), 0) for c in (tally.read, tally.rejected))
        fates = {fate: job.fates.of(fate, [number])[0] for fate in FATES}
        packed = job.fates.of("packed", [number])
        if read != rejected + sum(fates.values()) - fates["packed"]:
            raise RuntimeError(
                f"rows of {file.file} were lost, this is a bug of turnpack: {read} read, "
                f"{rejected} rejected, {_listed(fates)}"
            )
        if packed != (conversations, tokens):
            raise RuntimeError(
                f"{packed[0]} rows of {file.file} and their {packed[1]} tokens became "
                f"{conversations} and {tokens}, this is a bug of turnpack"
            )
        named = {"file": file.file, "bytes": file.bytes}
        counts = {"read": read, "packed": conversations, "rejected": rejected}
        if recipe is not None:
            named["source"] = file.source
            counts |= {fate: fates[fate] for fate in FATES if fate != "packed"}
        report.inputs.append({**named, **counts, "rows": rows, "tokens": tokens})
    kept = sum(job.fates.of(fate, range(len(inputs)))[1] for fate in FATES if fate != "packed")
    if kept != tally.tokens:
        raise RuntimeError(
            f"of {tally.tokens} tokens {kept} were counted, this is a bug of turnpack"
        )
    keys: tuple[str, ...] = ("read", "packed", "rejected")
    if recipe is not None:
        keys = ("read", "rejected", *FATES)
        report.sources = [
            _of_source(number, source, report, job, inputs)
            for number, source in enumerate(recipe.sources)
        ]
        tally.warnings |= dict.fromkeys(recipe.notes, 1)
    report.conversations = {key: sum(file[key] for file in report.inputs) for key in keys}
    report.warnings = dict(Counter(tally.warnings).most_common())
    report.truncated = {key: tally.truncated.get(key, 0) for key in ("tokens", "targets")}
    report.rejected_by_reason = dict(Counter(tally.reasons).most_common())
    report.seconds = {stage: tally.seconds.get(stage, 0.0) for stage in STAGES}
    report.rows = sum(w.rows for w in written)
    report.bins = sum(w.bins for w in written)
    total, trained = sum(w.tokens for w in written), sum(w.trained for w in written)
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


def _of_source(
    number: int, source: recipes.Source, report: Report, job: Job, inputs: Sequence[Input]
) -> dict[str, Any]:
    """What report.json says of a source: what was read, what became of it, what was packed."""
    here = [at for at, file in enumerate(inputs) if file.part == number]
    files = [report.inputs[at] for at in here]
    tokens = {fate: job.fates.of(fate, here)[1] for fate in FATES}
    packed = job.fates.of("packed", range(len(inputs)))[1]
    keys = ("bytes", "read", "rejected", *FATES, "rows")
    return {
        "source": source.name,
        "files": len(files),
        **{key: sum(file[key] for file in files) for key in keys},
        "filtered_by": job.fates.reasons.get(str(number), {}),
        "tokens": {"encoded": sum(tokens.values()) - tokens["packed"], **tokens},
        "share": tokens["packed"] / packed if packed else 0.0,
    }


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())


def _about(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says besides options, as the report and the journal spell it."""
    return {
        "duplicates": recipe.duplicates,
        "shuffle": recipe.shuffle,
        "sources": {
            source.name: {"files": source.files, **source.options, **source.choice.to_dict()}
            for source in recipe.sources
        },
    }


class _Tokenizer:
    """The tokenizer in the output, where it can be saved: `known` is what its manifest says of it.

    Saved as soon as all rows are read, which takes `seconds`.
    """

    def __init__(self, backend: Any, folder: Path) -> None:
        self.backend = backend
        self.known: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._folder = folder

    def save(self) -> None:
        """Write it, and put it on the disk."""
        begun = perf_counter()
        if hasattr(self.backend, "save"):
            self.backend.save(self._folder / "tokenizer")
            self.known = on_disk(self._folder, "tokenizer")
        self.seconds = perf_counter() - begun


def _finish(
    report: Report, job: Job, folder: Path, saved: _Tokenizer, sinks: Sequence[str]
) -> None:
    """Write what is made of the bins when all are there."""
    begun, backend = perf_counter(), saved.backend
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
    write_json(folder / "report.json", report.to_dict())
    drawing = perf_counter()
    if report.options["page"]:
        write_page(folder, backend)
    report.seconds["page"] = perf_counter() - drawing
    known = {
        file["path"]: {"rows": file["bins"], "tokens": file["tokens"], "sha256": file["sha256"]}
        for file in report.files
    }
    write_manifest(folder, known | saved.known)
    report.seconds["write"] += saved.seconds + perf_counter() - begun - report.seconds["page"]


def _identity(thing: Any) -> dict[str, Any]:
    """Name and hash of a tokenizer or template; one that people bring may have neither."""
    fingerprint = getattr(thing, "fingerprint", None)
    return {
        "name": getattr(thing, "name", type(thing).__name__),
        "sha256": None if fingerprint is None else fingerprint(),
    }
