"""The offline job on Ray Data: `prepare` whose rows are read, encoded and packed by actors.

Owns how Ray is asked, and how what was made of the pieces becomes one output. What an actor does is
piecework.py's; options, report and directory are prepare.py's. The only module that imports ray.
All machines must see the input and the output under the same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa

from . import prepare as here
from .encode import FallbackWarning
from .fates import Fates
from .job import REJECTS, Assignment, Progress, Tally, add
from .output import LOCK, alone_in, keep_only
from .pieces import cut
from .piecework import NEW, TASK, Made, Task, Worker, left
from .prepare import OptionError
from .records import UNREADABLE, Slice
from .report import Report
from .rows import Rows
from .shards import Shards, Written, adopt
from .system import processors

__all__ = ["prepare", "prepare_recipe"]

# Bytes of input in a piece: some thousand bins, so that there is little at its end to pack again.
PIECE_BYTES = 1 << 26
# What a Ray that is started here may hold in memory: it carries no rows.
STORE_BYTES = 100 << 20
# Where the rows of a Dataset lie, in the output directory, while the job runs.
ROWS = ".turnpack-rows"


def prepare(
    files: Any,
    *,
    output: str | os.PathLike[str],
    address: str | None = None,
    piece_bytes: int = PIECE_BYTES,
    **options: Any,
) -> Report:
    """Do what `turnpack.prepare.prepare` does, on Ray: same rows, rejects, totals and layout.

    `files`: paths, or a `ray.data.Dataset` whose rows are chats in any format that `prepare` reads;
    those are written into the output directory as Parquet while the job runs, and their places are
    in those files. `address`: that of a cluster; None for the Ray at hand (the one that this
    process is connected to, else RAY_ADDRESS), or where there is none for a small one that is
    started here and stopped at the end. `piece_bytes`: input that an actor takes at a time. JSONL
    that is not compressed and Parquet are cut into such pieces, other files are one each. The other
    options are `prepare`'s; `workers` are actors, of one CPU each, by default all CPUs.

    Every machine must have turnpack, and see input and output under the same paths. Bins are other
    than those of a local run, as each piece is packed by itself, but nearly as full: what a piece
    leaves in its emptiest bins is packed together at the end. They depend on `piece_bytes`, not on
    `workers`. A piece whose worker died is made again. With `resume` the pieces that are there are
    not made again; a Dataset cannot be resumed.

    Raises what `prepare` raises, ChildProcessError where a piece or all of Ray is given up.
    """
    job = _on_ray(address, piece_bytes)
    import ray.data

    if not isinstance(files, ray.data.Dataset):
        return here.prepare(files, output=output, job=job, **options)
    if options.pop("resume", False):
        raise OptionError("a run on a Dataset cannot be resumed: begin it anew")
    with _written(files, Path(output)) as paths:
        return here.prepare(paths, output=output, job=job, **options)


def prepare_recipe(
    path: str | os.PathLike[str],
    *,
    address: str | None = None,
    piece_bytes: int = PIECE_BYTES,
    **options: Any,
) -> Report:
    """Do on Ray what a recipe says: sources with options and filters of their own.

    Of its arguments is true what `prepare` says. What takes all rows at once (weight, cap,
    duplicates, and shuffle, which is true where a recipe does not say) raises OptionError.
    """
    job = _on_ray(address, piece_bytes)
    recipe = here.load_recipe(path)
    wanted = [
        f"{key} of source {source.name!r}"
        for source in recipe.sources
        for key, asked in (("weight", source.choice.weight != 1), ("cap", source.choice.capped))
        if asked
    ]
    if recipe.duplicates != "keep":
        wanted.append(f"duplicates = {recipe.duplicates!r}")
    if recipe.shuffle:
        wanted.append("shuffle = true")
    if wanted:
        raise OptionError(
            f"{recipe.path}: not on Ray, where no machine sees all rows: {', '.join(wanted)}"
        )
    return here.prepare_recipe(path, job=job, **options)


def _on_ray(address: str | None, piece_bytes: int) -> _OnRay:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise OptionError("ray is not installed: pip install 'turnpack[ray]'") from None
    if piece_bytes < 1:
        raise OptionError(f"piece_bytes must be at least 1, not {piece_bytes}")
    return _OnRay(address, piece_bytes)


@contextmanager
def _written(dataset: Any, output: Path) -> Iterator[list[Path]]:
    """Files that hold the rows of a dataset, in their order."""
    with alone_in(output, ROWS) as folder:
        keep_only(folder, [LOCK])
        dataset.write_parquet(str(folder.absolute()))
        paths = []
        for number, path in enumerate(sorted(folder.glob("*.parquet"))):
            paths.append(path.rename(folder / f"{number:05}.parquet"))
        yield paths


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[None]:
    """Ray, connected; one that was started here ends with the block."""
    import ray

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    started = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    small = {
        "num_cpus": workers or processors(),
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        if started:
            options = small if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        yield
    finally:
        if started:
            ray.shutdown()
        logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class _OnRay:
    """What `prepare` takes for a job."""

    address: str | None
    piece_bytes: int

    @property
    def options(self) -> dict[str, Any]:
        """See Job."""
        return {"piece_bytes": self.piece_bytes}

    def __call__(self, assigned: Assignment) -> _Job:
        return _Job(self.address, self.piece_bytes, assigned)


class _Job:
    """What `Job` is to `prepare`: one run, by actors, in pieces beside the folder assigned."""

    def __init__(self, address: str | None, piece_bytes: int, assigned: Assignment) -> None:
        self.tally = Tally()
        self.fates = Fates()
        self.written = {name: Written() for name in assigned.splits}
        self._address = address
        self._piece_bytes = piece_bytes
        self._folder = assigned.folder
        self._journal = assigned.journal
        self._home = (assigned.folder.parent / "pieces").absolute()
        self._bytes = sum(input.bytes for input in assigned.inputs)
        self._task = partial(
            Task,
            work=assigned.work,
            inputs=assigned.inputs,
            choices=assigned.choices,
            splits=assigned.splits,
            settings=assigned.settings,
        )
        self._splits = assigned.splits
        self._shard_tokens = assigned.settings.shard_tokens
        self._progress = assigned.progress
        self._meanwhile = assigned.meanwhile
        self._begun = perf_counter()

    def run(self, files: Sequence[Sequence[str]], workers: int | None) -> None:
        """Do the work: what is not there yet of the pieces of these files, and what follows."""
        self._home.mkdir(exist_ok=True)
        for attempt in self._home.glob("*-*"):  # of a run before this one
            shutil.rmtree(attempt)
        with _connected(self._address, workers):
            mapped = partial(_mapped, workers=workers)
            task = self._task(cut(files, self._piece_bytes, mapped))
            self._make(task, range(len(task.pieces)), False, mapped)
            self._make(task, self._doubtful(len(task.pieces)), True, mapped)
        self._gather(task)
        self._meanwhile()
        if self.tally.fallback is not None:
            warnings.warn(self.tally.fallback, FallbackWarning, stacklevel=4)

    def _make(
        self, task: Task, numbers: Sequence[int], exact: bool, mapped: Callable[..., Any]
    ) -> None:
        """Have actors make these pieces; raise what was raised, for the first in order."""
        if not numbers:
            return
        from ray import cloudpickle

        # A file, as arguments in Ray's memory may be lost before an actor is started again.
        (self._home / TASK).write_bytes(cloudpickle.dumps(task))
        rows = [{"piece": number, "exact": exact} for number in numbers]
        done = {"pieces": 0, "rows": 0, "tokens": 0, "rejected": 0}
        for told in mapped(Worker, rows, (str(self._home), os.getcwd())):
            if told["error"] is not None:
                raise pickle.loads(told["error"])
            if told["tokens"] and not done["tokens"]:
                self._journal.write({}, ())  # from here on there is something to go on with
            add(done, {key: told[key] for key in done})
            self._tell(len(task.pieces), **done)

    def _tell(self, total: int, pieces: int, rows: int, tokens: int, rejected: int) -> None:
        seconds, done = perf_counter() - self._begun, self._bytes * pieces // total
        self._progress(Progress("encode", seconds, done, self._bytes, rows, tokens, rejected, None))

    def _doubtful(self, pieces: int) -> list[int]:
        """Pieces behind the first that gave a fast tokenizer up, which are to be exact instead."""
        made = [self._made(number) for number in range(pieces)]
        given_up = [number for number, each in enumerate(made) if each.tally.fallback is not None]
        behind = range(given_up[0] + 1, len(made)) if given_up else ()
        again = [number for number in behind if not made[number].exact]
        for number in again:
            shutil.rmtree(self._home / str(number))
        return again

    def _gather(self, task: Task) -> None:
        """Count what the pieces hold and put it together, in order; pack what they left.

        The pieces stay as they are, so that a run that ends here can go on.
        """
        keep_only(self._folder, [])
        (self._folder / "data").mkdir()
        rest: dict[str, list[Path]] = {name: [] for name in self.written}
        broken: str | None = None
        with (self._folder / REJECTS).open("wb") as log:
            for number, (_, (first, *_)) in enumerate(task.pieces):
                if isinstance(first, Slice):
                    if first.start > 0 and first.path == broken:
                        continue  # a run on one machine does not get there
                    broken = None
                made, home = self._made(number), self._home / str(number)
                if isinstance(first, Slice) and UNREADABLE in made.tally.reasons:
                    broken = first.path
                self._count(made)
                with (home / NEW / REJECTS).open("rb") as rejects:
                    shutil.copyfileobj(rejects, log)
                for name, written in self.written.items():
                    adopt(self._folder, name, written, home / NEW, made.written[name])
                    rest[name].append(left(home, name))
        for name, written in self.written.items():
            split = self._splits[name]
            with Shards(self._folder, name, self._shard_tokens, written) as shards:
                for path in rest[name]:
                    for block in split.add(Rows.load(path)):
                        shards.write(block)
                for block in split.flush():
                    shards.write(block)
                shards.close()
            add(self.tally.seconds, shards.seconds)

    def _made(self, number: int) -> Made:
        return Made.load(self._home / str(number))

    def _count(self, made: Made) -> None:
        tally, more = self.tally, made.tally
        for name in ("read", "rejected", "reasons", "warnings", "truncated", "seconds"):
            add(getattr(tally, name), getattr(more, name))
        tally.tokens += more.tokens
        tally.compared += more.compared
        tally.fallback = tally.fallback or more.fallback
        self.fates.merge(made.fates)


def _mapped(
    function: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    arguments: tuple[Any, ...] = (),
    workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Map each row, as a block of its own, to rows, in order.

    `function` takes and gives tables. If it is a class, `workers` actors have an instance each.
    """
    import ray.data
    from ray.exceptions import RayError

    blocks = ray.data.from_arrow([pa.Table.from_pylist([row]) for row in rows])
    blocks.context.execution_options.preserve_order = True
    blocks.context.enable_progress_bars = False
    options: dict[str, Any] = {"batch_format": "pyarrow", "num_cpus": 1}
    if isinstance(function, type):
        actors = workers or int(ray.cluster_resources().get("CPU", 1))
        options["compute"] = ray.data.ActorPoolStrategy(size=min(actors, len(rows)))
        options["fn_constructor_args"] = arguments
    mapped = blocks.map_batches(function, **options)
    try:
        with closing(iter(mapped.iter_batches(batch_size=None, batch_format="pyarrow"))) as tables:
            for table in tables:
                yield from table.to_pylist()
    except RayError as error:
        why = str(error).strip().split("\n")[0]
        raise ChildProcessError(f"Ray gave up: {why}") from error
