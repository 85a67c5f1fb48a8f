"""Rows of the input → rows of tokens, in order, on all processors.

Owns what runs in which thread or process. What is done with a row is records.py's and encode.py's;
what becomes of its tokens is the caller's.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from . import records
from ._ingest import places
from .encode import Begun, Encoder
from .fast_tokenizer import Accelerated
from .fates import Described, describe
from .garbage import collect_seldom
from .nouns import Conversation, Reject, Source, Tokens
from .plain_rows import PlainRows, plain_rows
from .records import RawRow
from .rows import Rows
from .system import interrupts_held
from .tokenizers import Backend

# Chunks, and how much text in them, that may wait for the thread that tokenizes: some take it ten
# times as long as others.
AHEAD, AHEAD_SIZE = 16, 1 << 25
# Seconds after which one that is done is passed on all the same, so that a run tells how far it is.
PATIENCE = 0.2


class Chunk(NamedTuple):
    """Rows of the input that are encoded in one call, all of the part of this number.

    `size`: how much text they have. `bytes`: theirs in the file, as far as they can be told.
    """

    part: int
    rows: Sequence[RawRow]
    size: int
    bytes: int


@dataclass(slots=True)
class Part:
    """A part of the input that is encoded in one way.

    `files` says which input has which number. `described`: "no" where all rows are taken as they
    come, else whether with "digests".
    """

    encoder: Encoder
    format: str | None
    files: dict[str, int]
    described: str = "no"

    def plain(self, rows: Sequence[RawRow]) -> PlainRows | None:
        """The columns of rows, where all are plain messages and no more need be known of them."""
        if self.described != "no" or self.format not in (None, "messages"):
            return None
        lines = [row.content for row in rows]
        if not self.encoder.fills or not all(type(line) is bytes for line in lines):
            return None
        return plain_rows(lines)


class _Parsing(Sequence[Conversation]):
    """Rows that hold conversations, parsed when one is asked for."""

    def __init__(self, rows: Sequence[RawRow], format: str | None) -> None:
        self._rows, self._format = rows, format

    def __getitem__(self, place: Any) -> Any:
        return records.parse(self._rows[place], self._format)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(slots=True)
class Encoded:
    """What encoding made of a chunk of the input.

    `part` and `bytes`: as in Chunk. `rows`, and `rejects` in the order of the input. `described`:
    what the choice among its conversations wants to know of them. `read`: how many rows it had of
    which input. `warnings`, `truncated` and
    `seconds` (by stage) are those of the report. `exact`: the tokenizer's own library encoded from
    the first row on.
    `fallback`: where a fast tokenizer was given up, `compared`: texts that both encoded.
    """

    part: int
    rows: Rows
    described: Described | None
    rejects: list[Reject]
    read: dict[int, int]
    bytes: int
    warnings: Counter[str]
    truncated: Counter[str]
    seconds: dict[str, float]
    exact: bool
    fallback: str | None
    compared: int


@dataclass(slots=True)
class _Parsed:
    """A chunk that was rendered."""

    chunk: Chunk
    begun: Begun
    described: Described | None
    sources: list[Source]
    rejects: list[Reject]
    seconds: dict[str, float]


@dataclass(slots=True)
class _Tokenized:
    """A chunk that was tokenized; the rest as in Encoded."""

    parsed: _Parsed
    tokens: Tokens
    warnings: Counter[str]
    truncated: Counter[str]
    exact: bool
    fallback: str | None
    compared: int


@dataclass(slots=True)
class Work:
    """What is done with a chunk of one of the parts, in three steps; they have one tokenizer."""

    parts: Sequence[Part]

    @property
    def backend(self) -> Backend:
        """The tokenizer of all parts."""
        return self.parts[0].encoder.backend

    @property
    def settled(self) -> bool:
        """Whether the tokenizer is past the first texts, which it compares."""
        backend = self.backend
        return not isinstance(backend, Accelerated) or backend.settled

    def begin(self, chunk: Chunk) -> _Parsed:
        """Parse and render: Python objects, by one thread at a time."""
        part = self.parts[chunk.part]
        reading = perf_counter()  # Arrow may have threads of its own
        plain = part.plain(chunk.rows)
        read, begun = perf_counter() - reading, thread_time()
        if plain is not None:
            rendered = part.encoder.begin_plain(plain, _Parsing(chunk.rows, part.format))
            sources = [row.source for row in chunk.rows]
            seconds = {"read": read, "render": thread_time() - begun}
            return _Parsed(chunk, rendered, None, sources, [], seconds)
        conversations: list[Conversation] = []
        rejects: list[Reject] = []
        for row in chunk.rows:
            parsed = records.parse(row, part.format)
            if isinstance(parsed, Reject):
                rejects.append(parsed)
            else:
                conversations.append(parsed)
        parsed_at = thread_time()
        rendered = part.encoder.begin(conversations)
        described = None
        if part.described != "no":
            described = describe(
                rendered.numbers, rendered.conversations, part.described == "digests"
            )
        return _Parsed(
            chunk,
            rendered,
            described,
            cast("list[Source]", [conversation.source for conversation in conversations]),
            rejects,
            {"read": read + parsed_at - begun, "render": thread_time() - parsed_at},
        )

    def tokenize(self, parsed: _Parsed) -> _Tokenized:
        """Tokenize, mask and truncate: arrays, without Python's lock for the most part.

        Chunks come in order, and one at a time.
        """
        begun = thread_time()
        encoder = self.parts[parsed.chunk.part].encoder
        backend, told = encoder.backend, encoder.fallback
        compared, exact = getattr(backend, "compared", 0), getattr(backend, "exact", True)
        encoder.warnings.clear()
        encoder.truncated.clear()
        tokenized, computed = encoder.seconds_tokenizing, encoder.thread_seconds_tokenizing
        tokens = encoder.finish(parsed.begun, parsed.rejects)
        if encoder.fallback != told:
            for other in self.parts:  # that the tokenizer was given up is told once
                other.encoder.fallback = encoder.fallback
        parsed.seconds["tokenize"] = encoder.seconds_tokenizing - tokenized
        computed = encoder.thread_seconds_tokenizing - computed
        parsed.seconds["render"] += thread_time() - begun - computed
        return _Tokenized(
            parsed,
            tokens,
            Counter(encoder.warnings),
            Counter(encoder.truncated),
            exact,
            None if encoder.fallback == told else encoder.fallback,
            getattr(backend, "compared", 0) - compared,
        )

    def finish(self, tokenized: _Tokenized) -> Encoded:
        """Say of every row where it is from: Python objects again."""
        begun = thread_time()
        parsed, tokens = tokenized.parsed, tokenized.tokens
        part, raw = self.parts[parsed.chunk.part], parsed.chunk.rows
        rejects, described = parsed.rejects, parsed.described
        if rejects:
            order = {row.source: number for number, row in enumerate(raw)}
            rejects.sort(key=lambda reject: order[cast(Source, reject.source)])
        files, spelled, offsets = places(parsed.sources, part.files)
        names = pa.LargeStringArray.from_buffers(
            len(files), pa.py_buffer(offsets), pa.py_buffer(spelled)
        )
        rows = Rows.of(tokens, names, files)
        described = described and described.take(tokens.source[rows.first])
        if len(files) < len(raw):
            files, *_ = places([row.source for row in raw], part.files)
        read = np.bincount(files)
        parsed.seconds["render"] += thread_time() - begun
        return Encoded(
            parsed.chunk.part,
            rows,
            described,
            rejects,
            {number: int(read[number]) for number in np.flatnonzero(read).tolist()},
            parsed.chunk.bytes,
            tokenized.warnings,
            tokenized.truncated,
            parsed.seconds,
            tokenized.exact,
            tokenized.fallback,
            tokenized.compared,
        )

    def __call__(self, chunk: Chunk, exact: bool = False) -> Encoded:
        """Do all of it; with `exact` by the tokenizer's own library."""
        if exact and isinstance(self.backend, Accelerated):
            self.backend.give_up()
        return self.finish(self.tokenize(self.begin(chunk)))


def encoded(work: Work, chunks: Iterator[Chunk], workers: int) -> Generator[Encoded, None, None]:
    """Map `work` over chunks in order, a bounded number of them ahead of the caller.

    With one worker the caller's thread does what is done with Python objects, while other chunks
    are tokenized in another; the tokenizer has threads of its own. More workers are processes.
    """
    return _in_threads(work, chunks) if workers == 1 else _in_processes(work, chunks, workers)


def _in_threads(work: Work, chunks: Iterator[Chunk]) -> Generator[Encoded, None, None]:
    waiting: deque[Future[_Tokenized]] = deque()
    size, passed = 0, perf_counter()

    def is_due() -> bool:
        if len(waiting) > AHEAD or size > AHEAD_SIZE:
            return True
        return waiting[0].done() and perf_counter() - passed > PATIENCE

    with _pool_of_one("turnpack-tokenize") as pool:
        for chunk in chunks:
            waiting.append(pool.submit(work.tokenize, work.begin(chunk)))
            size += chunk.size
            while waiting and is_due():
                tokenized = waiting.popleft().result()
                size -= tokenized.parsed.chunk.size
                yield work.finish(tokenized)
                passed = perf_counter()
        while waiting:
            yield work.finish(waiting.popleft().result())


@contextlib.contextmanager
def _pool_of_one(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread that ends with the block, without what it has not begun."""
    pool = ThreadPoolExecutor(1, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_processes(
    work: Work, chunks: Iterator[Chunk], workers: int
) -> Generator[Encoded, None, None]:
    """Map `work` over chunks in processes.

    They are spawned, never forked: a tokenizer may have threads. The first texts, which a fast
    tokenizer compares, are encoded here. Behind a chunk at which one process gave it up, all is
    exact: what another made faster meanwhile is made again.
    """
    while not work.settled:
        chunk = next(chunks, None)
        if chunk is None:
            return
        yield work(chunk)
    exact = False

    def done(chunk: Chunk, future: Future[Encoded]) -> Encoded:
        nonlocal exact
        made = future.result()
        if exact and not made.exact:
            made = pool.submit(_in_worker, chunk, True).result()
        exact = exact or made.fallback is not None
        return made

    with (
        TemporaryDirectory(prefix="turnpack-") as folder,
        _pool_of_processes(workers, pickled := Path(folder) / "work") as pool,
    ):
        # In a file: what a process is started with goes through a pipe, and of one that dies before
        # it has read all of that its parent would wait for ever.
        with pickled.open("wb") as file:
            pickle.dump(work, file)
        waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
        for chunk in chunks:
            with interrupts_held():  # stopping them is our business
                waiting.append((chunk, pool.submit(_in_worker, chunk, exact)))
            if len(waiting) > 2 * workers:
                yield done(*waiting.popleft())
        while waiting:
            yield done(*waiting.popleft())


@contextlib.contextmanager
def _pool_of_processes(workers: int, work: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes with the pickled `work`; where the block fails, they end in the midst of theirs."""
    context = get_context("spawn")
    stopping, stop = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(work, stopping)
    )
    if sys.version_info < (3, 11, 5):
        # A pool whose workers died waits for ever until they have read what is on its way to them:
        # CPython's issue 94777.
        pool._call_queue.cancel_join_thread()  # type: ignore[attr-defined]
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died, perhaps for lack of memory: try fewer workers"
        ) from None
    finally:
        stop.close()
        pool.shutdown()
        stopping.close()


_worker: list[Work] = []


def _start_worker(work: Path, stopping: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where they cannot be held back from us
    collect_seldom()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other processors have workers of their own
    threading.Thread(target=_die_with_parent, args=(stopping,), daemon=True).start()
    _worker.append(pickle.loads(work.read_bytes()))


def _in_worker(chunk: Chunk, exact: bool) -> Encoded:
    return _worker[0](chunk, exact)


def _die_with_parent(stopping: Any) -> None:
    """End this process when the one that started it says so, or was killed without a word."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel, stopping])
        os._exit(1)
