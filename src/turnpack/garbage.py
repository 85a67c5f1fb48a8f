"""How often Python searches for garbage in cycles while very many objects are made.

Owns the threshold, which is one for the whole process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

# Objects made between two searches. A row makes some ten and a tokenizer some hundred thousand,
# none of them in a cycle, and with Python's own 700 the searches take a third of the time.
COLLECT_EVERY = 100_000

_lock = Lock()
_inside = 0  # blocks of all threads
_before = (0, 0, 0)


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Search for garbage in cycles less often inside the block, or while another is under way."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            collect_seldom()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_before)


def collect_seldom() -> None:
    """Do so from now on; where there is no search at all, there will be none."""
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, COLLECT_EVERY) if first else 0, *others)
