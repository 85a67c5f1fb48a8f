"""The offline job: chat files → packed bins in an output directory.

Owns the order of the stages, what runs in which process, and the counting. What a stage computes
is the stage's own: text is encode.py's, bins are kernels.py's, files sinks.py's and output.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import accumulate, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import kernels, mapped, records, tokenizers
from .encode import Encoder, FallbackWarning
from .fast_tokenizer import Accelerated
from .nouns import Conversation, Plan, Reject, RowError, Source, Tokens
from .output import json_line, replacing, write_json, write_manifest
from .records import RawRow
from .report import Report, write_page
from .sinks import ParquetSink
from .templates import TemplateProtocol

PathLike = str | os.PathLike[str]
Strategy = Literal["best_fit", "first_fit", "in_order"]

# Rows that are encoded in one call. Fixed, so that nothing depends on the number of workers.
CHUNK = 1000
# Tokens in a row group: little to decode for one bin, enough for zstd to find repetition.
GROUP_TOKENS = 1 << 20
# Tokens in a file, so that a set can be spread over data loaders.
SHARD_TOKENS = 1 << 26
# Rejects of each reason that the page shows.
EXAMPLES = 3
STAGES = ("read", "render", "tokenize", "plan", "pack", "write")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: what `prepare` tells its `progress` callback, a few times a second.

    `stage`: "encode" or "write", for `seconds` now. `done` of `total`: bytes of input as far as
    they can be told, then tokens. `rows` read, `tokens` encoded or written, `rejected` so far.
    """

    stage: str
    seconds: float
    done: int
    total: int
    rows: int
    tokens: int
    rejected: int


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
    strategy: Strategy = "best_fit",
    truncate: str = "right",
    train_on: str = "assistant",
    boundary: str = "cut",
    seed: int = 0,
    strict: bool = False,
    system: str | None = None,
    workers: int = 1,
    format: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    tokenizer_backend: str = "auto",
    numpy: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Turn chat files into packed bins in the directory `output`, and report what was done.

    `capacity`: tokens a bin may have, `max_length` by default. `strategy`: see `plan`; the bins are
    then shuffled by `seed`. `strict`: stop at the first bad row. `workers`: processes that encode;
    the bins do not depend on it. More than one are spawned, so a script that calls this needs
    `if __name__ == "__main__":`. `bos_token`, `eos_token`: how the tokenizer spells them, where it
    does not say. `tokenizer_backend`: "auto", "hf" or "gigatoken", see `tokenizers.load`; the
    report says which it was. `numpy`: write the mapped arrays too that
    `turnpack.torch.PackedDataset` reads, so that it has nothing to decode. The other options are
    Encoder's.

    An earlier output in the directory is replaced as a whole when the run has succeeded, and not
    touched when it fails. A run that finds nothing to pack succeeds, with no bins. Raises
    OptionError or OSError where it cannot begin, under `strict` RowError at the first bad row,
    ChildProcessError where a worker dies. Warns where a fast tokenizer was given up.
    """
    options = {key: value for key, value in locals().items() if key not in _NO_OPTIONS}
    begun = perf_counter()
    paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    try:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but is {seed}")
        if not os.fspath(output):
            raise ValueError("output is empty, not a directory")
        records.check_format(format)
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
        kernels.plan([1], capacity, strategy=strategy)
    except (ValueError, ImportError) as error:
        raise OptionError(str(error)) from error

    sizes = {os.fspath(path): os.path.getsize(path) for path in paths}
    if isinstance(encoder.backend, Accelerated):
        encoder.backend.begin()
    report = Report(
        options=options,
        tokenizer=_identity(encoder.backend),
        template=_identity(encoder.template),
        capacity=capacity,
    )
    with replacing(output) as folder, _seldom_collecting():
        run = _Run(report, sizes, progress or (lambda progress: None))
        with (folder / "rejects.jsonl").open("wb") as log:
            work = _Work(encoder, format)
            with contextlib.closing(_spread(work, run.chunks(raw), workers)) as chunks:
                run.gather(chunks, log, strict)
            report.tokenizer |= run.backend(encoder.backend)
        run.write(folder, capacity, strategy, seed)
        if numpy and report.files:
            mapping = perf_counter()
            mapped.decode(*mapped.find(folder, "train"))
            report.seconds["numpy"] = perf_counter() - mapping
        saving = perf_counter()
        if hasattr(encoder.backend, "save"):
            encoder.backend.save(folder / "tokenizer")
        report.seconds["write"] += perf_counter() - saving
        report.seconds["total"] = perf_counter() - begun
        write_json(folder / "report.json", report.to_dict())
        write_page(folder, encoder.backend)
        write_manifest(folder, {file["path"]: _counts(file) for file in report.files})
    return report


_NO_OPTIONS = ("files", "tokenizer", "template", "output", "progress")


def _counts(file: dict[str, Any]) -> dict[str, int]:
    return {"rows": file["bins"], "tokens": file["tokens"]}


def _identity(thing: Any) -> dict[str, Any]:
    """Name and hash of a tokenizer or template; one that people bring may have neither."""
    fingerprint = getattr(thing, "fingerprint", None)
    return {
        "name": getattr(thing, "name", type(thing).__name__),
        "sha256": None if fingerprint is None else fingerprint(),
    }


@dataclass(slots=True)
class _Chunk:
    """What encoding made of some rows; `source` of `tokens` counts `sources`.

    `exact`: the tokenizer's own library encoded from the first row on. `fallback`: where a fast
    tokenizer was given up, `compared`: texts that both encoded.
    """

    tokens: Tokens
    sources: list[Source]
    rejects: list[Reject]
    warnings: Counter[str]
    seconds: dict[str, float]
    exact: bool
    fallback: str | None
    compared: int


@dataclass(slots=True)
class _Work:
    """Rows of the input → their tokens, and the rejects in the order of the input."""

    encoder: Encoder
    format: str | None

    @property
    def settled(self) -> bool:
        """Whether the tokenizer is past the first texts, which it compares."""
        backend = self.encoder.backend
        return not isinstance(backend, Accelerated) or backend.settled

    def __call__(self, rows: Sequence[RawRow], exact: bool = False) -> _Chunk:
        """Do the work; with `exact` by the tokenizer's own library."""
        backend = self.encoder.backend
        if exact and isinstance(backend, Accelerated):
            backend.give_up()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)  # gather warns, once
            return _encode(self.encoder, self.format, rows)


def _encode(encoder: Encoder, format: str | None, rows: Sequence[RawRow]) -> _Chunk:
    begun = perf_counter()
    backend, told = encoder.backend, encoder.fallback
    compared = getattr(backend, "compared", 0)
    exact = getattr(backend, "exact", True)
    conversations: list[Conversation] = []
    rejects: list[Reject] = []
    for row in rows:
        parsed = records.parse(row, format)
        if isinstance(parsed, Reject):
            rejects.append(parsed)
        else:
            conversations.append(parsed)
    parsed_at = perf_counter()
    encoder.warnings.clear()
    tokenized = encoder.seconds_tokenizing
    tokens = encoder(conversations, rejects)
    if rejects:
        place = {row.source: number for number, row in enumerate(rows)}
        rejects.sort(key=lambda reject: place[cast(Source, reject.source)])
    tokenizing = encoder.seconds_tokenizing - tokenized
    seconds = {
        "read": parsed_at - begun,
        "render": perf_counter() - parsed_at - tokenizing,
        "tokenize": tokenizing,
    }
    sources = cast("list[Source]", [conversation.source for conversation in conversations])
    return _Chunk(
        tokens,
        sources,
        rejects,
        Counter(encoder.warnings),
        seconds,
        exact,
        None if encoder.fallback == told else encoder.fallback,
        getattr(backend, "compared", 0) - compared,
    )


class _Run:
    """One run's way from chunks to files; what is counted on it goes into the report."""

    def __init__(
        self, report: Report, sizes: dict[str, int], progress: Callable[[Progress], None]
    ) -> None:
        self.report = report
        self.examples: dict[str, list[str]] = {}
        self._sizes = sizes
        self._progress = progress
        self._read: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._compared = 0
        self._fallback: str | None = None
        self._bytes = 0
        self._all_bytes = sum(sizes.values())
        self._before = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        # Of every conversation: its tokens, its name, and the number of its file.
        self._tokens: list[Tokens] = []
        self._names: list[pa.Array] = []
        self._files: list[npt.NDArray[np.int32]] = []

    def chunks(self, raw: Iterator[RawRow]) -> Iterator[list[RawRow]]:
        """Read the input in chunks, and count its rows."""
        while True:
            begun = perf_counter()
            rows = list(islice(raw, CHUNK))
            self._seconds["read"] += perf_counter() - begun
            if not rows:
                return
            self._read.update([row.source.file for row in rows])
            self._bytes += sum(len(row.content) for row in rows if isinstance(row.content, bytes))
            # Of a file that does not come as bytes it is only known when it is behind us.
            self._bytes = max(self._bytes, self._before[rows[-1].source.file])
            yield rows

    def gather(self, chunks: Iterator[_Chunk], log: BinaryIO, strict: bool) -> None:
        """Hold what was encoded, and write what was rejected to `log`."""
        numbers = {file: number for number, file in enumerate(self._sizes)}
        noted: Counter[str] = Counter()
        conversations = tokens = 0
        begun = perf_counter()
        for chunk in chunks:
            if strict and chunk.rejects:
                first = chunk.rejects[0]
                raise RowError(first.reason, first.detail, str(first.source))
            rejected_at = perf_counter()
            for reject in chunk.rejects:
                self._reject(reject, log)
            self._seconds["write"] += perf_counter() - rejected_at
            self._tokens.append(
                dataclasses.replace(chunk.tokens, source=chunk.tokens.source + conversations)
            )
            self._names.append(_names(chunk.sources))
            self._files.append(np.array([numbers[s.file] for s in chunk.sources], np.int32))
            noted.update(chunk.warnings)
            self._compared += chunk.compared
            if chunk.fallback is not None:
                self._fallback = chunk.fallback
                noted["a fast tokenizer was given up"] += 1
                warnings.warn(chunk.fallback, FallbackWarning, stacklevel=3)
            for stage, seconds in chunk.seconds.items():
                self._seconds[stage] += seconds
            conversations += len(chunk.sources)
            tokens += len(chunk.tokens.input_ids)
            done = min(self._bytes, self._all_bytes)
            self._tell("encode", begun, done, self._all_bytes, tokens)
        self.report.warnings = dict(noted.most_common())
        self.report.rejected_by_reason = dict(self._reasons.most_common())

    def backend(self, backend: Any) -> dict[str, Any]:
        """Report what encoded the text, and what is to be said of the fast way to do so."""
        if not isinstance(backend, Accelerated):
            return {}
        if self._fallback is not None:
            backend.give_up()  # perhaps it was in another process
        because = self._fallback or backend.exact_because
        return {
            "library": backend.library,
            "compared": self._compared,
            **({} if because is None else {"exact_because": because}),
        }

    def _reject(self, reject: Reject, log: BinaryIO) -> None:
        source = cast(Source, reject.source)
        place = {"line": source.line, "index": source.index}
        log.write(
            json_line(
                {
                    "file": source.file,
                    **{key: value for key, value in place.items() if value is not None},
                    "reason": reject.reason,
                    "detail": reject.detail,
                    "row": reject.row,
                }
            )
        )
        self._rejected[source.file] += 1
        self._reasons[reject.reason] += 1
        examples = self.examples.setdefault(reject.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(str(reject))

    def write(self, folder: Path, capacity: int, strategy: Strategy, seed: int) -> None:
        """Plan the bins, shuffle them, and write them to files; count what is in there."""
        report, seconds = self.report, self._seconds
        begun = perf_counter()
        tokens = Tokens.join(self._tokens)
        names = pa.concat_arrays([*self._names, pa.array([], pa.large_string())])
        files = np.concatenate([*self._files, np.empty(0, np.int32)])
        self._tokens, self._names, self._files = [], [], []
        plan = shuffled(kernels.plan(tokens.lengths, capacity, strategy=strategy), seed)
        seconds["plan"] += perf_counter() - begun

        (folder / "data").mkdir()
        weighted = tokens.loss_weights is not None
        group = max(1, GROUP_TOKENS // capacity)
        seen = np.zeros(len(names), bool)
        written = trained = report.rows = 0
        opened = perf_counter()
        for path, start, stop in _shards(plan.num_bins, max(1, SHARD_TOKENS // capacity)):
            before = written
            with ParquetSink(folder / path, weighted) as sink:
                for first in range(start, stop, group):
                    begun = perf_counter()
                    bins = plan[first : min(first + group, stop)]
                    packed = kernels.pack(tokens, bins, layout="flat")
                    packed_at = perf_counter()
                    sink.write(packed, names)
                    seconds["pack"] += packed_at - begun
                    seconds["write"] += perf_counter() - packed_at
                    seen[packed.source] = True
                    report.rows += len(packed.rows)
                    written += len(packed.input_ids)
                    trained += int(np.count_nonzero(packed.labels != -100))
                    self._tell("write", opened, written, len(tokens.input_ids), written)
            size = (folder / path).stat().st_size
            report.files.append(
                {"path": path, "bins": stop - start, "tokens": written - before, "bytes": size}
            )
        share = trained / written if written else 0.0
        report.tokens = {"total": written, "trained": trained, "share": share}
        report.bins, report.utilization = plan.num_bins, plan.utilization
        report.seconds = dict(seconds)
        self._count_conversations(np.bincount(files[seen], minlength=len(self._sizes)).tolist())

    def _count_conversations(self, packed: list[int]) -> None:
        """Report what became of every file's rows; `packed` was counted in what was written."""
        for (file, size), number in zip(self._sizes.items(), packed, strict=True):
            counts = {"read": self._read[file], "packed": number, "rejected": self._rejected[file]}
            if counts["read"] != counts["packed"] + counts["rejected"]:
                raise RuntimeError(f"rows of {file} were lost, this is a bug of turnpack: {counts}")
            self.report.inputs.append({"file": file, "bytes": size, **counts})
        self.report.conversations = {
            key: sum(file[key] for file in self.report.inputs)
            for key in ("read", "packed", "rejected")
        }

    def _tell(self, stage: str, begun: float, done: int, total: int, tokens: int) -> None:
        seconds = perf_counter() - begun
        rows, rejected = self._read.total(), self._rejected.total()
        self._progress(Progress(stage, seconds, done, total, rows, tokens, rejected))


def _names(sources: Sequence[Source]) -> pa.Array:
    """How the places of rows are spelled; a file's name need not be Unicode."""
    names = [str(source) for source in sources]
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError:
        spelled = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        return pa.array(spelled, pa.large_string())


# Objects made between two searches for garbage in cycles. A row makes some ten, none of them in a
# cycle, and with Python's own 700 the searches take a third of the time of reading.
COLLECT_EVERY = 100_000


@contextlib.contextmanager
def _seldom_collecting() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], COLLECT_EVERY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def shuffled(plan: Plan, seed: int) -> Plan:
    """Put a plan's bins into an order that depends on `seed` and their number alone.

    The order sorts raw draws of PCG64, as NumPy promises to keep those for ever, and promises
    nothing of the kind for `Generator.permutation`.
    """
    order = np.argsort(np.random.PCG64(seed).random_raw(plan.num_bins), kind="stable")
    sizes = np.diff(plan.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    # A row stands as far behind the start of its bin as before.
    shift = np.repeat(plan.offsets[:-1][order] - offsets[:-1], sizes)
    rows = plan.rows[np.arange(len(plan.rows)) + shift]
    return Plan(rows=rows, offsets=offsets, fill=plan.fill[order], capacity=plan.capacity)


def _shards(bins: int, most: int) -> Iterator[tuple[str, int, int]]:
    """Files of about the same number of bins, no more than `most`: (path, first bin, end)."""
    count = -(-bins // most)
    for number in range(count):
        path = f"data/train-{number:05}-of-{count:05}.parquet"
        yield path, bins * number // count, bins * (number + 1) // count


def _spread(
    work: _Work, chunks: Iterator[list[RawRow]], workers: int
) -> Generator[_Chunk, None, None]:
    """Map `work` over chunks in order: here, or in processes with a bounded number under way.

    They are spawned, never forked: a tokenizer may have threads. The first texts, which a fast
    tokenizer compares, are encoded here. Behind a chunk at which one process gave it up, all is
    exact: what another made faster meanwhile is made again.
    """
    while workers == 1 or not work.settled:
        rows = next(chunks, None)
        if rows is None:
            return
        yield work(rows)
    exact = False

    def done(rows: list[RawRow], future: Future[_Chunk]) -> _Chunk:
        nonlocal exact
        chunk = future.result()
        if exact and not chunk.exact:
            chunk = pool.submit(_in_worker, rows, True).result()
        exact = exact or chunk.fallback is not None
        return chunk

    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(work,)
    )
    waiting: deque[tuple[list[RawRow], Future[_Chunk]]] = deque()
    try:
        for chunk in chunks:
            with _interrupts_held():
                waiting.append((chunk, pool.submit(_in_worker, chunk, exact)))
            if len(waiting) > 2 * workers:
                yield done(*waiting.popleft())
        while waiting:
            yield done(*waiting.popleft())
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died, perhaps for lack of memory: try fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep SIGINT from processes that start here: stopping them is their parent's business."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: list[_Work] = []


def _start_worker(work: _Work) -> None:
    gc.set_threshold(COLLECT_EVERY)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other processors have workers of their own
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker.append(work)


def _in_worker(rows: list[RawRow], exact: bool) -> _Chunk:
    return _worker[0](rows, exact)


def _die_with_parent() -> None:
    """End this process with the one that started it, even if that was killed without a word."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
