# Builds the compiled modules: turnpack._core (C++17, arrays in and out); in Cython turnpack._ingest
# (Python containers in, arrays out) and turnpack.torch._cells (the collator's loops); and, where
# there is nvcc, turnpack._cuda (build_cuda.py). All other metadata is in pyproject.toml.

import sys
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # not there when pip builds

import build_cuda

if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/W4"], []
else:
    # -g0 and -s: a Python built with debug flags hands them on, and they triple the module's size.
    compile_args, link_args = ["-O3", "-Wall", "-Wextra", "-g0"], ["-pthread"]
    if sys.platform == "linux":
        link_args.append("-s")

# Neither pickles nor Python-visible leftovers: the module holds what its stub names.
DIRECTIVES = {"language_level": 3, "auto_pickle": False, "autotestdict": False}
HEADERS = sorted(glob("csrc/*.h"))
SOURCES = ("bind_core", "concat", "machine", "mask", "pack", "plan", "planner")

core = Pybind11Extension(  # adds -fvisibility=hidden
    "turnpack._core",
    [f"csrc/{name}.cpp" for name in SOURCES],
    depends=HEADERS,
    cxx_std=17,
    extra_compile_args=[*compile_args],
    extra_link_args=[*link_args],
)
ingest = Extension(
    "turnpack._ingest",
    ["src/turnpack/_ingest.pyx"],
    extra_compile_args=[*compile_args],
    extra_link_args=[*link_args],
)

cells = Extension(
    "turnpack.torch._cells",
    ["src/turnpack/torch/_cells.pyx"],
    extra_compile_args=[*compile_args],
    extra_link_args=[*link_args],
)

setup(
    ext_modules=[
        core,
        *cythonize([ingest, cells], build_dir="build", compiler_directives=DIRECTIVES),
        *build_cuda.extensions(compile_args, link_args),
    ],
    cmdclass={"build_ext": build_cuda.build_ext},
)
