"""Owns runs of `prepare` that are stopped at a chosen place, each in a process of its own.

Run as a script: it has no threads when it forks. Prints a line of JSON for each stopped run.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from turnpack import duplicates, job, rows, selection, shards, shuffle, spool
from turnpack.prepare import prepare as prepare_files
from turnpack.prepare import prepare_recipe

# Whatever changes a disk passes through one of these.
PLACES = [
    *((os, name) for name in ("fsync", "replace", "rename", "unlink", "mkdir")),
    *((Path, name) for name in ("write_bytes", "write_text", "unlink")),
    *((shards.ParquetSink, name) for name in ("__init__", "write_batch", "close")),
    (rows.Rows, "save"),
    (spool.Spool, "append"),
    *((duplicates.Duplicates, name) for name in ("remove", "save", "load")),
]


def prepare(*, recipe=None, **options) -> None:
    """Do what a recipe says, or pack files."""
    if recipe is None:
        prepare_files(**options)
    else:
        prepare_recipe(recipe, **options)


def tree(directory: Path) -> dict[str, bytes]:
    """All that a run writes but run.json, hidden things included."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def forked(work) -> int:
    """Do work in a process of its own; return its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at(number: int, act) -> None:
    """Call `act` in the place of the `number`-th change of the disk, counted from 1."""
    made = 0

    def stopping(real):
        def call(*arguments, **options):
            nonlocal made
            made += 1
            if made == number:
                act()
            return real(*arguments, **options)

        return call

    for owner, name in PLACES:
        setattr(owner, name, stopping(getattr(owner, name)))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def main() -> None:
    options = json.loads(sys.argv[1])
    how, moments, folder = options.pop("how"), options.pop("moments"), Path(options.pop("folder"))
    job.CHUNK = options.pop("chunk")
    # Small enough that a shuffle of little data is dealt to files, and some of these once more.
    shuffle.DEALT_TOKENS = options.pop("dealt", shuffle.DEALT_TOKENS)
    shuffle.SORTED_TOKENS = options.pop("sorted", shuffle.SORTED_TOKENS)
    selection.GROUP = options.pop("group", selection.GROUP)
    whole = folder / "whole"
    begun = time.monotonic()
    assert forked(lambda: prepare(output=whole, **options)) == 0
    took = time.monotonic() - begun
    for moment in moments:
        output = folder / "stopped"

        def run(moment=moment, output=output):
            if how != "time":
                at(moment, kill if how == "kill" else fail)
            prepare(output=output, **options)

        if how == "time":
            child = os.fork()
            if not child:
                run()
                os._exit(0)
            time.sleep(moment * took)
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            status = forked(run)
        left = sorted(tree(output)) if output.exists() else []
        journal = output / ".turnpack/journal.json"
        entries = json.loads(journal.read_bytes())["number"] if journal.exists() else 0
        resumed = forked(lambda output=output: prepare(output=output, resume=True, **options))
        same = resumed == 0 and tree(output) == tree(whole)
        told = {"moment": moment, "status": status, "entries": entries, "left": left}
        print(json.dumps({**told, "resumed": resumed, "same": same}), flush=True)
        if output.exists():
            os.system(f"rm -rf '{output}'")
        if status == 0 and how != "time":
            break


if __name__ == "__main__":
    main()
