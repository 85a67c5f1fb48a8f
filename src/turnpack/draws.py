"""Random numbers by their number: the n-th of a sequence is the same whatever was drawn before it.

Owns how the seed of a job and a purpose become a sequence, and how bits are mixed. The draws of a
sequence are all different.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """SplitMix64, its start made of `seed` and `purpose`: uint64, uniform, none of them twice."""

    def __init__(self, seed: int, purpose: str) -> None:
        digest = blake2b(f"{seed} {purpose}".encode("utf-8", "surrogatepass"), digest_size=8)
        self._start = np.array([int.from_bytes(digest.digest(), "little")], np.uint64)

    def take(self, first: int, count: int) -> UInt64s:
        """Return draws `first` to `first + count`."""
        state = self._start + np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GAMMA
        return mixed(state)


def mixed(values: UInt64s) -> UInt64s:
    """SplitMix64's finalizer: every bit of a value in every bit of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
