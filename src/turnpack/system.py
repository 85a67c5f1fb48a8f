"""What Linux, macOS and Windows spell differently: locks, what is on the disk, processors, signals.

Owns the calls, and the question which system this is; what they are for is their callers'.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    # The byte that stands for the file, past all that is written: nobody can read a locked one.
    AT = 1 << 30

    def try_lock(handle: int) -> bool:
        """Lock an open file until it is closed or its process ends; False where it is locked."""
        before = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, AT, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(handle, before, os.SEEK_SET)
        return True

    def lock(handle: int) -> None:
        """Wait until an open file is locked by no other, and lock it."""
        while not try_lock(handle):
            time.sleep(0.05)

    def sync(path: Path) -> None:
        """See to it that a file survives the machine; of a folder the file system takes care."""
        if not path.is_dir():
            _sync(path, os.O_RDWR)

    @contextmanager
    def interrupts_held() -> Iterator[None]:
        """Nothing: here no process hands a blocked signal on to those that it starts."""
        yield

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Lock an open file until it is closed or its process ends; False where it is locked."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(handle: int) -> None:
        """Wait until an open file is locked by no other, and lock it."""
        fcntl.flock(handle, fcntl.LOCK_EX)

    def sync(path: Path) -> None:
        """See to it that a file, or the names in a folder, survive the machine."""
        _sync(path, os.O_RDONLY)

    @contextmanager
    def interrupts_held() -> Iterator[None]:
        """Keep SIGINT from processes that start here."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Whether a file that is open cannot be removed.
OPEN_FILES_STAY = sys.platform == "win32"


def processors() -> int:
    """How many processors this process may use, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
