"""Owns the peers as they are installed: their versions, their modules, a piece of their C++."""

import ctypes
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

# What the table calls a package.
TITLES = {
    "trl": "TRL",
    "transformers": "transformers",
    "lightbinpack": "LightBinPack",
    "seqpacker": "seqpacker",
    "axolotl": "Axolotl",
    "llamafactory": "LLaMA-Factory",
    "ms-swift": "ms-swift",
    "nemo-toolkit": "NeMo",
    "torchtune": "torchtune",
    "unsloth-zoo": "Unsloth",
}


def title(package):
    """Name and version, as the table has them."""
    return f"{TITLES[package]} {version(package)}"


def installed(package):
    """Whether it is there; only seqpacker, which may not build, can be missing."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def alone(package, file, beside=()):
    """One module of a package, without the package's other modules and what they require.

    `beside`: modules that it imports and that have no part in what is measured; in their place
    stands an object that takes anything.
    """
    for name in beside:
        sys.modules[name] = MagicMock(name=name)
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, distribution(package).locate_file(file))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bare_lightbinpack():
    """LightBinPack's best fit on an array: (seconds, bins) of a call without Python lists.

    Compiled from the source that its package installs, with the flags of its own setup.py.
    """
    import pybind11

    source = distribution("lightbinpack").locate_file("lightbinpack/cpp/obfd.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bare.so"
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
        includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
        ours = Path(__file__).with_name("lightbinpack_bare.cpp")
        command = ["g++", *flags, *includes, f'-DSOURCE="{source}"', str(ours), "-o", str(library)]
        subprocess.run(command, check=True)
        best_fit = ctypes.CDLL(str(library)).best_fit
    best_fit.restype = ctypes.c_double
    array = np.ctypeslib.ndpointer(np.int64, flags="C_CONTIGUOUS")
    best_fit.argtypes = [array, ctypes.c_int64, ctypes.c_int64, array]

    def call(lengths, capacity):
        bins = np.zeros(1, np.int64)
        seconds = best_fit(lengths, len(lengths), capacity, bins)
        return seconds, int(bins[0])

    return call
