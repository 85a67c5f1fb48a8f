"""A run of `prepare` under way: chunks of the input through bins into files, and its journal.

Owns what is counted, which rows go into which split, and when the run is safe to go on from. Knows
no option but those, and nothing of the directory in which its folder lies. Which rows are kept is
selection.py's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import accumulate, islice, pairwise
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from ._ingest import taken
from .binning import Binning
from .duplicates import Duplicates
from .encode import FallbackWarning
from .fast_tokenizer import Accelerated
from .fates import Fates, Input
from .journal import Journal
from .nouns import Reject, RowError, Source
from .output import json_line, keep_only
from .pipeline import Chunk, Encoded, Work, encoded
from .records import RawRow, Slice, raw_rows
from .rows import Rows
from .selection import Choice, Selection
from .shards import Shards, Written, is_whole
from .system import processors, sync

# Rows and bytes that are encoded in one call. Fixed, so that nothing depends on the number of
# workers; small enough that a call ends within a second.
CHUNK = 1000
CHUNK_BYTES = 1 << 21
# What makes processes that encode worth starting: processors, and bytes of input.
MANY_PROCESSORS = 5
MANY_BYTES = 1 << 26
STAGES = ("read", "render", "tokenize", "plan", "pack", "write")

REJECTS = "rejects.jsonl"
DUPLICATES = "duplicates.jsonl"


class StaleError(ValueError):
    """What an unfinished run has left is no longer what it wrote."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: what `prepare` tells its `progress` callback, a few times a second.

    `stage`: "encode" (bins are written meanwhile, if the strategy allows) or "write", for `seconds`
    now. `done` of `total`: bytes of input as far as they can be told, then tokens. `rows` read,
    `tokens` encoded or written and `rejected` so far; `utilization` of the bins so far, if any.
    """

    stage: str
    seconds: float
    done: int
    total: int
    rows: int
    tokens: int
    rejected: int
    utilization: float | None


def block_tokens(shard_tokens: int) -> int:
    """Tokens of a block, in which a stream's bins are shuffled, and which is written at once."""
    return max(1, shard_tokens // 128)


@dataclass(slots=True)
class Tally:
    """What was counted of the input so far, in JSON's types.

    `read`, `rejected`: rows by input. `bytes` of those read, as far as they can be told. `tokens`
    that were encoded. `truncated`: tokens and targets that were cut off. `fallback`: why a fast
    tokenizer was given up, `compared`: texts that it was compared on.
    """

    read: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    tokens: int = 0
    compared: int = 0
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a job needs to know of the options; `shard_tokens` and `capacity` in tokens."""

    capacity: int
    shard_tokens: int
    validation: float
    seed: int
    strict: bool
    duplicates: str = "keep"

    @property
    def due(self) -> int:
        """Tokens after which the open files end, with a block, for an entry in the journal.

        Less than a file may have: the block may be larger than it was meant to be.
        """
        return self.shard_tokens - 2 * block_tokens(self.shard_tokens)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a job is to make in `folder`, from where the journal stands to the last file.

    `inputs`: the files of all parts in order. `choices`: what is to be chosen of each part.
    `splits`: what makes the bins of each split. `meanwhile`: called once, when all rows are
    read, while the last of them are being encoded and written if that is possible.
    """

    folder: Path
    journal: Journal
    work: Work
    inputs: Sequence[Input]
    choices: Sequence[Choice]
    splits: Mapping[str, Binning]
    settings: Settings
    progress: Callable[[Progress], None]
    meanwhile: Callable[[], None] = lambda: None


def add(counts: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add numbers by key."""
    for key, number in more.items():
        counts[key] = counts.get(key, 0) + number


class Job:
    """One run, which does what it is assigned."""

    options: ClassVar[Mapping[str, Any]] = {}  # of its own, that the output depends on

    def __init__(self, assigned: Assignment) -> None:
        self.tally = Tally()
        self.fates = Fates()
        self.written = {name: Written() for name in assigned.splits}
        self._folder = assigned.folder
        self._journal = assigned.journal
        self._work = assigned.work
        self._inputs = assigned.inputs
        self._before = list(accumulate((input.bytes for input in assigned.inputs), initial=0))
        self._choices = assigned.choices
        self._part = 0  # of which rows are taken now
        self._selection: Selection | None = None
        self._duplicates: Duplicates | None = None
        self._splits = assigned.splits
        self._settings = assigned.settings
        self._progress = assigned.progress
        self._meanwhile = assigned.meanwhile
        self._shards: dict[str, Shards] = {}
        self._logs: dict[str, BinaryIO] = {}
        self._since = 0  # tokens since the last entry in the journal
        self._states: dict[str, Any] = {}
        self._chosen: dict[str, Any] = {}  # the state of the choice, as `_states` are the splits'
        self._flushed: dict[str, int] = {}  # blocks of each split that are written at the end
        self._begun = perf_counter()

    def run(self, files: Sequence[Sequence[str | Slice]], workers: int | None) -> None:
        """Do the work, from the first row in the files of the parts that is not behind us.

        `workers`: processes that encode, None for as many as are worth it.
        """
        raw = [raw_rows(part) for part in files]
        (self._folder / "data").mkdir(exist_ok=True)
        with ExitStack() as stack:
            logs = [REJECTS]
            if self._settings.duplicates != "keep":
                logs.append(DUPLICATES)
                self._duplicates = stack.enter_context(closing(self._new_duplicates()))
            sizes = self._restore(logs)
            for name in self._splits:
                shards = Shards(self._folder, name, self._settings.shard_tokens, self.written[name])
                self._shards[name] = stack.enter_context(shards)
            for name in logs:
                self._logs[name] = stack.enter_context((self._folder / name).open("ab"))
                self._logs[name].seek(sizes.get(name, 0))  # truncate() leaves tell() behind
                self._logs[name].truncate()
            chunks = self._chunks(raw)
            processes = workers or self._processes()
            for chunk in stack.enter_context(closing(encoded(self._work, chunks, processes))):
                self._take(chunk)
            self._pass_on(self._until(len(self._choices)))
            self._flush()
            for shards in self._shards.values():
                shards.close()
                add(self.tally.seconds, shards.seconds)

    def _processes(self) -> int:
        found = processors()
        return found if found >= MANY_PROCESSORS and self._before[-1] >= MANY_BYTES else 1

    def _chunks(self, raw: Sequence[Iterator[RawRow]]) -> Iterator[Chunk]:
        for part in range(self._part, len(raw)):
            read = (
                self.tally.read.get(str(n), 0) for n, i in enumerate(self._inputs) if i.part == part
            )
            behind = islice(raw[part], sum(read), None)
            while True:
                begun = thread_time()
                rows, size, known = taken(behind, CHUNK, CHUNK_BYTES)
                add(self.tally.seconds, {"read": thread_time() - begun})
                if not rows:
                    break
                yield Chunk(part, rows, size, known)
        self._meanwhile()

    def _take(self, chunk: Encoded) -> None:
        """Count a chunk, and let those of its rows that are kept go on to their bins."""
        if self._settings.strict and chunk.rejects:
            first = chunk.rejects[0]
            raise RowError(first.reason, first.detail, str(first.source))
        tally = self.tally
        writing = perf_counter()
        for reject in chunk.rejects:
            self._reject(reject, chunk.part)
        written, planning = perf_counter() - writing, thread_time()
        add(tally.read, {str(number): rows for number, rows in chunk.read.items()})
        add(tally.warnings, chunk.warnings)
        add(tally.truncated, chunk.truncated)
        add(tally.seconds, chunk.seconds)
        tally.bytes = max(tally.bytes + chunk.bytes, self._before[max(chunk.read)])
        tally.tokens += len(chunk.rows.tokens.input_ids)
        tally.compared += chunk.compared
        if chunk.fallback is not None:
            tally.fallback = chunk.fallback
            add(tally.warnings, {"a fast tokenizer was given up": 1})
            warnings.warn(chunk.fallback, FallbackWarning, stacklevel=4)
        filled = self._pass_on(self._choose(chunk), len(chunk.rows.tokens.input_ids))
        add(tally.seconds, {"write": written, "plan": thread_time() - planning})
        if (filled or self._nothing_goes_on) and self._since >= self._settings.due:
            self._checkpoint()
        self._tell("encode", min(tally.bytes, self._before[-1]), self._before[-1], tally.tokens)

    def _choose(self, chunk: Encoded) -> Iterator[Rows]:
        """What goes on when a chunk has come: of those before it, and of its own."""
        yield from self._until(chunk.part)
        if self._selection is None:
            self._selection = self._new_selection()
        yield from self._selection.add(chunk.rows, chunk.described)

    def _until(self, part: int) -> Iterator[Rows]:
        """What still waits of the parts before this one, which are at their end."""
        while self._part < part:
            if self._selection is not None:
                yield from self._selection.end()
            self._selection = None
            self._part += 1

    def _new_selection(self) -> Selection:
        return Selection(
            self._choices[self._part],
            self._part,
            self._settings.seed,
            self._duplicates,
            self.fates,
            self._journal.state,
        )

    def _new_duplicates(self) -> Duplicates:
        return Duplicates(
            self._settings.duplicates,
            self._journal.state,
            self._inputs,
            lambda told: self._logs[DUPLICATES].write(json_line(told)),
        )

    def _pass_on(self, parts: Iterable[Rows], encoded: int = 0) -> bool:
        """Let rows go to their bins; return whether that filled a block.

        `encoded`: how many tokens were, of which these are what was kept.
        """
        filled, tokens = False, 0
        for part in parts:
            tokens += len(part.tokens.input_ids)
            for name, rows in self._split(part):
                for block in self._splits[name].add(rows):
                    self._shards[name].write(block)
                    filled = True
        self._since += max(tokens, encoded)
        return filled

    def _split(self, rows: Rows) -> Iterator[tuple[str, Rows]]:
        """The rows of each split: which one is for their tokens and the seed to say."""
        if "validation" not in self._splits:
            yield "train", rows
            return
        key = str(self._settings.seed).encode()[:64]
        ids, offsets = rows.tokens.input_ids, rows.tokens.offsets
        starts = [*np.flatnonzero(rows.first).tolist(), len(rows)]
        chosen = np.zeros(len(rows), bool)
        for start, stop in pairwise(starts):
            whole = ids[offsets[start] : offsets[stop]].tobytes()
            draw = int.from_bytes(blake2b(whole, key=key, digest_size=8).digest(), "little")
            chosen[start:stop] = draw < self._settings.validation * 2.0**64
        yield "train", rows.take(np.flatnonzero(~chosen))
        yield "validation", rows.take(np.flatnonzero(chosen))

    def _reject(self, reject: Reject, part: int) -> None:
        tally, source = self.tally, cast(Source, reject.source)
        place = {"line": source.line, "index": source.index}
        self._logs[REJECTS].write(
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
        add(tally.rejected, {str(self._work.parts[part].files[source.file]): 1})
        add(tally.reasons, {reject.reason: 1})

    @property
    def _all_held(self) -> bool:
        return all(split.holds_all for split in self._splits.values())

    @property
    def _nothing_goes_on(self) -> bool:
        """Whether no block is filled before the end of the input, or of the part."""
        return self._all_held or (self._selection is not None and self._selection.holds_all)

    def _flush(self) -> None:
        """Write all that waits. What a strategy has held until now may be more than one file."""
        safe = self._all_held and bool(self._states or self._since >= self._settings.due)
        if safe and not self._flushed:
            self._checkpoint()
        total, done = self.fates.of("packed", range(len(self._inputs)))[1], 0
        for name, split in self._splits.items():
            begun = thread_time()
            for number, block in enumerate(split.flush(), 1):
                add(self.tally.seconds, {"plan": thread_time() - begun})
                fill = int(block.plan.fill.sum())
                done += fill
                if number > self._flushed.get(name, 0):
                    self._shards[name].write(block)
                    self._flushed[name] = number
                    self._since += fill
                    if safe and self._since >= self._settings.due:
                        self._record()
                    self._tell("write", done, total, done)
                begun = thread_time()

    # -- the journal ---------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """End all files and write down what is held: from here a run can go on."""
        for name, split in self._splits.items():
            for block in split.drain():
                self._shards[name].write(block)
        self._states = {
            name: split.save(self._journal.state, f"{self._journal.next}-{name}")
            for name, split in self._splits.items()
        }
        name, selection, duplicates = (
            f"{self._journal.next}-part",
            self._selection,
            self._duplicates,
        )
        self._chosen = {
            "part": self._part,
            "selection": selection and selection.save(self._journal.state, name),
            "duplicates": duplicates and duplicates.save(),
        }
        self._record()

    def _record(self) -> None:
        for shards in self._shards.values():
            shards.close()
        sync(self._folder / "data")
        for log in self._logs.values():
            log.flush()
            os.fsync(log.fileno())
        entry = {
            "tally": asdict(self.tally),
            "fates": asdict(self.fates),
            "written": {name: written.to_dict() for name, written in self.written.items()},
            "logs": {name: log.tell() for name, log in self._logs.items()},
            "held": self._states,
            "chosen": self._chosen,
            "flushed": self._flushed,
        }
        chosen = (self._chosen["selection"], self._chosen["duplicates"])
        states = [*self._states.values(), *(state for state in chosen if state is not None)]
        self._journal.write(entry, [name for state in states for name in state["files"]])
        self._since = 0

    def _restore(self, logs: Sequence[str]) -> dict[str, int]:
        """Go back to the last entry; return how many bytes of each log are behind it."""
        entry = self._journal.read()
        keep_only(self._folder, ["data", *logs])
        if entry is None:
            keep_only(self._folder / "data", [])
            return {}
        self.tally = Tally(**entry["tally"])
        self.fates = Fates(**entry["fates"])
        self.written = {name: Written(**written) for name, written in entry["written"].items()}
        self._states, self._flushed = entry["held"], entry["flushed"]
        files = [file for written in self.written.values() for file in written.files]
        keep_only(self._folder / "data", [Path(file["path"]).name for file in files])
        for file in files:
            if not is_whole(self._folder, file):
                path = self._folder / file["path"]
                raise StaleError(f"{path} is not as it was written; begin without --resume")
        for name, split in self._splits.items():
            split.load(self._journal.state, self._states[name])
        self._chosen = entry["chosen"]
        self._part = self._chosen["part"]
        if self._chosen["selection"] is not None:
            self._selection = self._new_selection()
            self._selection.load(self._journal.state, self._chosen["selection"])
        if self._duplicates is not None:
            self._duplicates.load(self._chosen["duplicates"])
        backend = self._work.backend
        if isinstance(backend, Accelerated):
            backend.compared = self.tally.compared
            if self.tally.fallback is not None:
                backend.give_up()
        return cast("dict[str, int]", entry["logs"])

    def _tell(self, stage: str, done: int, total: int, tokens: int) -> None:
        tally = self.tally
        seconds = perf_counter() - self._begun
        rows, rejected = sum(tally.read.values()), sum(tally.rejected.values())
        bins = sum(written.bins for written in self.written.values())
        cells = bins * self._settings.capacity
        used = sum(w.tokens for w in self.written.values()) / cells if cells else None
        self._progress(Progress(stage, seconds, done, total, rows, tokens, rejected, used))
