"""Builds the fuzz targets of this folder and runs them: `make fuzz`.

    python tests/fuzz/run.py [TARGET]... [--seconds 60 | --runs N] [--results FILE] [--keep]

Owns how they are built: by clang with libFuzzer, or by another compiler with driver.cpp; both under
ASan and UBSan. tests/corpus/<target>.txt has the inputs that a run begins with, one a line, as
hexadecimal digits; `--keep` writes there what a run found that reaches more of the code (clang
only). An input that crashes is printed as such a line: add it, and mend what it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("TURNPACK_FUZZ_BUILD", ROOT / "build" / "fuzz"))
CORPUS = ROOT / "tests" / "corpus"
KEPT = 64  # inputs of a target that are worth keeping
LONGEST = 20  # seconds; what takes that long never ends, for most take a ten-thousandth of one

# What each target runs on.
TARGETS = {
    "plan": ["csrc/plan.cpp"],
    "planner": ["csrc/planner.cpp"],
    "pack": ["csrc/pack.cpp"],
    "unpack": ["csrc/pack.cpp"],
    "concat": ["csrc/concat.cpp"],
    "mask_spans": ["csrc/mask.cpp"],
    "mask_markers": ["csrc/mask.cpp"],
    "cuda": [
        "tests/emulation.cpp",
        "csrc/pieces.cpp",
        "csrc/pack.cpp",
        "csrc/concat.cpp",
        "csrc/mask.cpp",
    ],
}
FLAGS = [
    *("-std=c++17", "-O2", "-g1", "-fno-omit-frame-pointer", "-pthread", "-Icsrc", "-Itests/fuzz"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "-DTP_ROWS_A_THREAD=16",
    "-DTP_TILE=128",
]
# Freed memory is reused soon, and where it came from is not told: else that is most of a run.
ENVIRONMENT = {
    "ASAN_OPTIONS": "quarantine_size_mb=1:malloc_context_size=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@cache
def compiler() -> tuple[str, bool]:
    """The compiler, and whether it has libFuzzer."""
    program = "int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }"
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "has.cpp").write_text('extern "C" ' + program)
    clang = shutil.which(os.environ.get("CLANGXX", "clang++"))
    if clang is not None:
        command = [clang, "-fsanitize=fuzzer,address", BUILD / "has.cpp", "-o", BUILD / "has"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return clang, True
    return os.environ.get("CXX", "c++"), False


def texts_of(path: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """The file and all that it includes from here."""
    if path not in seen:
        seen[path] = path.read_bytes()
        for name in re.findall(rb'#include "(.+?)"', seen[path]):
            for folder in (path.parent, ROOT / "csrc", ROOT / "tests" / "fuzz"):
                if (folder / name.decode()).exists():
                    texts_of(folder / name.decode(), seen)
                    break
    return seen


def compiled(source: str) -> Path:
    program, has_fuzzer = compiler()
    # Only what is tested says which inputs are new, and by its branches alone: what it compares is
    # hardly ever a byte of the input.
    guided = has_fuzzer and source.startswith("csrc/")
    coverage = ["-fsanitize-coverage=inline-8bit-counters,pc-table"]
    command = [program, *FLAGS, *(coverage if guided else [])]
    parts = texts_of(ROOT / source, {}).values()
    key = hashlib.sha256(b"\0".join([repr(command).encode(), *parts])).hexdigest()[:16]
    made = BUILD / f"{Path(source).stem}-{key}.o"
    if not made.exists():
        new = made.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-c", source, "-o", new], check=True, cwd=ROOT)
        new.rename(made)
    return made


def built(target: str) -> Path:
    """The program of a target."""
    program, has_fuzzer = compiler()
    sources = [f"tests/fuzz/{target}.cpp", "csrc/machine.cpp", *TARGETS[target]]
    if not has_fuzzer:
        sources.append("tests/fuzz/driver.cpp")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    made = BUILD / f"{target}-{key}"
    if not made.exists():
        fuzzer = ["-fsanitize=fuzzer"] if has_fuzzer else []
        subprocess.run([program, *FLAGS, *fuzzer, *objects, "-o", made], check=True)
    return made


def corpus_of(target: str) -> list[bytes]:
    lines = (CORPUS / f"{target}.txt").read_text().split()
    return [bytes.fromhex(line) for line in lines]


def write(folder: Path, inputs: list[bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in inputs:
        (folder / hashlib.sha256(each).hexdigest()[:16]).write_bytes(each)


def run(target: str, seconds: int, runs: int, seed: int | None) -> tuple[int, Path]:
    """Runs a target; how often it was called, and the folder of what it found.

    Raises SystemExit, after it has printed the input, if it crashes.
    """
    folder = BUILD / target
    write(folder / "inputs", corpus_of(target))
    for old in folder.glob("crash*"):
        old.unlink()
    command = [built(target), folder / "inputs", "-max_len=256", "-entropic=0", "-reload=0"]
    command += [f"-timeout={LONGEST}", "-artifact_prefix=crash-"]
    command += [f"-max_total_time={seconds}"] if seconds else [f"-runs={runs}"]
    command += [] if seed is None else [f"-seed={seed}"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True
    )
    count = re.search(r"^Done (\d+) runs", done.stderr, re.M)
    if done.returncode != 0 or count is None:
        print(done.stderr[-6000:])
        for crash in folder.glob("crash*"):
            print(f"{target}: add to tests/corpus/{target}.txt: {crash.read_bytes().hex()}")
        raise SystemExit(f"{target}: exit status {done.returncode}")
    return int(count[1]), folder / "inputs"


def keep(target: str, found: Path) -> None:
    """Writes some of the smallest set of inputs that reach all that the run reached."""
    merged = BUILD / target / "merged"
    write(merged, [])
    command = [built(target), "-merge=1", merged, found]
    subprocess.run(
        command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT}
    )
    inputs = sorted((path.read_bytes() for path in merged.iterdir()), key=lambda each: len(each))
    chosen = inputs[:: -(-len(inputs) // KEPT)] if inputs else []
    lines = sorted({each.hex() for each in chosen if each} | {"00"})
    (CORPUS / f"{target}.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, help="of each target, instead of seconds")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--results", type=Path, help="write the counts of these targets there")
    parser.add_argument("--keep", action="store_true", help="write what was found into the corpus")
    given = parser.parse_args()
    program, has_fuzzer = compiler()
    name = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    print(name.splitlines()[0], "with libFuzzer" if has_fuzzer else "with driver.cpp", flush=True)
    for target in given.targets or TARGETS:
        seconds = 0 if given.runs else given.seconds
        executions, found = run(target, seconds, given.runs or 0, given.seed)
        print(f"{target:<14}{executions:>14,} executions", flush=True)
        if given.results:
            results = json.loads(given.results.read_text()) if given.results.exists() else {}
            results[target] = {
                "executions": executions,
                "compiler": name.splitlines()[0],
                "sanitizers": "address, undefined",
                "machine": platform.machine(),
            }
            given.results.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        if given.keep:
            keep(target, found)


if __name__ == "__main__":
    sys.exit(main())
