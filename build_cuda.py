"""How setup.py builds turnpack._cuda: csrc/device.cu with nvcc, the rest like any extension.

The module is optional. TURNPACK_CUDA says whether it is built: `auto` (the default) where there is
an nvcc, `0` never, `1` or else the build fails. TURNPACK_CUDA_ARCHS lists the architectures that it
has machine code for (`80;90`), beside PTX of the newest of them for those to come; by default those
of ARCHITECTURES that the nvcc at hand knows. The CUDA runtime is linked statically.
"""

import os
import re
import shlex
import shutil
import subprocess
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
DEVICE = "csrc/device.cu"


def find_nvcc(environ):
    """Path of nvcc: under CUDA_HOME, else on PATH; None if there is none."""
    home = environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc", path=environ.get("PATH", ""))


def wanted_nvcc(environ):
    """The nvcc to build the module with, None to build without it."""
    choice = environ.get("TURNPACK_CUDA", "auto")
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"TURNPACK_CUDA is {choice!r}: 0, 1 or auto")
    nvcc = None if choice == "0" else find_nvcc(environ)
    if choice == "1" and nvcc is None:
        raise SystemExit("TURNPACK_CUDA=1, but there is no nvcc on PATH nor in CUDA_HOME/bin")
    return nvcc


def chosen_architectures(environ, known):
    """Which of the architectures that nvcc knows to compile for, the newest last."""
    asked = re.findall(r"[^\s;,]+", environ.get("TURNPACK_CUDA_ARCHS", ""))
    names = [name.removeprefix("sm_") for name in asked]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(
            f"TURNPACK_CUDA_ARCHS names {', '.join(unknown)}, "
            f"but this nvcc knows {', '.join(known)}"
        )
    chosen = names or [name for name in ARCHITECTURES if name in known]
    if not chosen:
        raise SystemExit(f"this nvcc knows none of {', '.join(ARCHITECTURES)}: TURNPACK_CUDA=0")
    return sorted(set(chosen), key=lambda name: int(re.match(r"\d+", name)[0]))


def code_flags(chosen):
    """Flags of nvcc: machine code for each architecture and PTX of the newest."""
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in chosen]
    return [*flags, f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"]


def known_architectures(nvcc):
    """What nvcc can make machine code for, without `sm_`."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return re.findall(r"sm_(\w+)", listed.stdout)


def library_folders(nvcc):
    """Where nvcc has the CUDA runtime; it may be a script that stands anywhere, so it is asked."""
    dry = subprocess.run([nvcc, "--dryrun", DEVICE], capture_output=True, text=True, check=False)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", dry.stderr, re.MULTILINE)
    flags = shlex.split(line[1]) if line else []
    return [flag.removeprefix("-L") for flag in flags if flag.startswith("-L")]


def extensions(compile_args, link_args, environ=os.environ):
    """turnpack._cuda in a list, or an empty list."""
    nvcc = wanted_nvcc(environ)
    if nvcc is None:
        return []
    bindings = {*glob("csrc/bind_*.cpp")} - {"csrc/bind_cuda.cpp"}
    module = Pybind11Extension(
        "turnpack._cuda",
        sorted({*glob("csrc/*.cpp")} - bindings),
        define_macros=[("TP_MODULE", "_cuda")],
        depends=[DEVICE, *sorted(glob("csrc/*.h")), *sorted(glob("csrc/*.cuh"))],
        libraries=["cudart_static", "rt", "dl"],
        library_dirs=library_folders(nvcc),
        cxx_std=17,
        # Of the core, only what makes the tables is kept.
        extra_compile_args=[*compile_args, "-ffunction-sections", "-fdata-sections"],
        extra_link_args=[*link_args, "-Wl,--gc-sections", "-Wl,--exclude-libs,ALL"],
    )
    module.nvcc = [nvcc, *code_flags(chosen_architectures(environ, known_architectures(nvcc)))]
    return [module]


class build_ext(pybind11_build_ext):
    """Also compiles device.cu, for the extension that has an nvcc."""

    def build_extension(self, extension):
        nvcc = getattr(extension, "nvcc", None)
        if nvcc:
            made = Path(self.build_temp) / "csrc" / "device.o"
            made.parent.mkdir(parents=True, exist_ok=True)
            flags = [
                "-std=c++17",
                "-O3",
                "--threads",
                "0",
                "-Xcompiler",
                "-fPIC,-fvisibility=hidden,-g0",
            ]
            done = subprocess.run([*nvcc, *flags, "-c", DEVICE, "-o", str(made)], check=False)
            if done.returncode:
                raise SystemExit(f"{nvcc[0]} failed on {DEVICE}; TURNPACK_CUDA=0 builds without it")
            extension.extra_objects = [str(made)]
        super().build_extension(extension)
