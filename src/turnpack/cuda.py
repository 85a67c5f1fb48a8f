"""Owns the question whether this machine can run turnpack's kernels on a GPU. Imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CudaAvailable:
    """The answer of `cuda_available`: true or false, and where false, `reason` says why."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


def cuda_available() -> CudaAvailable:
    """Whether `turnpack.torch` can work on a GPU; where it cannot, `.reason` says why in words.

    That is: turnpack was built with its CUDA module, the driver is new enough for it, and there is
    a device that it has code for. Asking starts CUDA's driver, so ask after forking, not before.
    """
    try:
        found = importlib.import_module("turnpack._cuda")
    except ModuleNotFoundError:
        return CudaAvailable("turnpack was built without its CUDA module")
    except ImportError as error:
        return CudaAvailable(f"turnpack's CUDA module does not load ({error})")
    return CudaAvailable(found.missing())
