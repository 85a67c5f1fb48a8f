"""The kernels of the GPU on the CPU: builds emulation.cpp with the binding of turnpack._cuda.

Owns how it is built and how turnpack.torch is made to work on it. It is built here, with the
compiler that built the package, and not by setup.py: it is no part of what is installed, and so it
is never older than the sources under test. The kernels run under UBSan; `make sanitize` adds ASan.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
SANITIZERS = os.environ.get("TURNPACK_SANITIZE", "undefined")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Icsrc"]
CHECKED = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-g"]


def sources():
    """The kernels and what makes their tables; then the binding and the core that it calls."""
    core = sorted({*ROOT.glob("csrc/*.cpp")} - {*ROOT.glob("csrc/bind_*.cpp")})
    pieces = ROOT / "csrc" / "pieces.cpp"
    core.remove(pieces)
    return [ROOT / "tests" / "emulation.cpp", pieces], [ROOT / "csrc" / "bind_cuda.cpp", *core]


def _compile(path, folder):
    import pybind11

    checked, _ = sources()
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    made = folder / f"{path.stem}.o"
    flags = [
        *FLAGS,
        *(CHECKED if path in checked else ()),
        *(f"-isystem{each}" for each in includes),
    ]
    command = ["c++", *flags, "-DTP_MODULE=_emulated", "-c", str(path), "-o", str(made)]
    subprocess.run(command, check=True, cwd=ROOT)
    return str(made)


@cache
def module():
    """turnpack._cuda, but emulated; built once for all processes, anew when a source changes."""
    checked, others = sources()
    headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/*.cuh"), Path(__file__)]
    texts = [path.read_bytes() for path in sorted([*checked, *others, *headers])]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    key = hashlib.sha256(b"\0".join([SANITIZERS.encode(), suffix.encode(), *texts])).hexdigest()
    folder = ROOT / "build" / "emulation" / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"_emulated{suffix}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda each: _compile(each, folder), [*checked, *others]))
            command = ["c++", "-shared", "-pthread", f"-fsanitize={SANITIZERS}", *objects]
            subprocess.run([*command, "-o", f"{path}.new"], check=True)
            Path(f"{path}.new").rename(path)
    spec = importlib.util.spec_from_file_location("_emulated", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@cache
def library():
    """The functions of emulation.cpp that are its own."""
    found = ctypes.CDLL(module().__file__)
    found.emulated_wait.restype = ctypes.c_void_p
    return found


class Interface:
    """An array of the CPU that says it is one of device 0."""

    def __init__(self, array, **changes):
        array = array.numpy() if hasattr(array, "numpy") else array
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data if array.size else 0, not array.flags.writeable),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
        } | changes


class OnTensors:
    """The module with tensors of the CPU for arrays of the device."""

    def __getattr__(self, name):
        import torch

        found = getattr(module(), name)
        if name not in ("pack", "unpack", "concat", "mask_markers"):
            return found

        def call(*arguments):
            found(
                *(Interface(each) if isinstance(each, torch.Tensor) else each for each in arguments)
            )

        return call


@contextmanager
def active():
    """turnpack.torch on the emulation: every device is the CPU, memory begins as garbage."""
    import torch

    from turnpack.torch import _ops, device

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with it, torch fills what `empty` gives
    try:
        with (
            mock.patch.object(_ops, "module", OnTensors),
            mock.patch.object(_ops, "stream_of", return_value=0),
            mock.patch.object(device, "ready", return_value=torch.device("cpu")),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
