"""Plants an error at a time into the index arithmetic of csrc/ and runs the fuzz target that must
see it: `make mutate`. Prints each one, whether it was caught and how long that took, building
included; fails if one was not. There are 46, and each has been caught.

    python tests/mutate.py [--seconds 20] [FILE]...
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "mutate"

# By target and file: what stands there once, and what stands there instead.
ERRORS = {
    ("pack", "index.h"): [
        ("(i > 0) & (in.loss_mask", "(i > 1) & (in.loss_mask"),
        ("static_cast<Int>(k - first + 1)", "static_cast<Int>(k - first)"),
        ("in.cell_offsets[bin + 1] - cell;", "in.cell_offsets[bin + 1] - cell - 1;"),
        ("k < in.bin_offsets[bin + 1]; ++k", "k + 1 < in.bin_offsets[bin + 1]; ++k"),
        ("i > 0 ? in.loss_weights", "i > 1 ? in.loss_weights"),
    ],
    ("pack", "pack.cpp"): [
        ("row >= offsets_size - 1)", "row > offsets_size - 1)"),
        ("if (used > capacity)", "if (used >= capacity)"),
        ("static_cast<Int>(from + i)", "static_cast<Int>(from + i + 1)"),
        ("if (done == 0) weights[0]", "if (done >= 0) weights[0]"),
        ("+ (used < cells)", "+ (used <= cells)"),
    ],
    ("pack", "stream.h"): [
        ("kStage : kStage + shift_ - end_", "kStage + 1 : kStage + shift_ - end_"),
        (
            "std::copy_n(stage_ + kStage, shift_, stage_)",
            "std::copy_n(stage_ + kStage, shift_ - 1, stage_)",
        ),
    ],
    ("unpack", "pack.cpp"): [
        ("segment + 1 < cu_seqlens_size)", "segment < cu_seqlens_size)"),
        ("places > cu_seqlens_size - 1 - segment", "places > cu_seqlens_size - segment"),
    ],
    ("plan", "rule.h"): [
        ("(length - 1) / align + 1", "length / align + 1"),
        ("return capacity / align", "return (capacity - 1) / align"),
    ],
    ("plan", "plan.cpp"): [
        ("placed == rule.max_rows", "placed > rule.max_rows"),
        ("|| units > space", "|| units >= space"),
        ("while (bin < end && spaces[bin] < space)", "while (bin < end && spaces[bin] <= space)"),
    ],
    ("plan", "bins.h"): [
        ("space - units < units ? 1", "space - units <= units ? 1"),
        ("start + (bin + 1) * each", "start + bin * each"),
        ("start + (i + 1) * each", "start + i * each"),
        ("starts[at] < end; ++at", "starts[at] + 1 < end; ++at"),
    ],
    ("plan", "by_length.h"): [
        ("ends_[length - 1]", "ends_[length - 2]"),
        ("part * step + std::min(part, extra)", "part * step + std::min(part + 1, extra)"),
    ],
    ("plan", "spaces.h"): [("size = (size + 63) / 64", "size = (size + 62) / 64")],
    ("planner", "planner.cpp"): [
        ("- id > patience", "- id >= patience"),
        ("if (size >= window_)", "if (size > window_)"),
        ("if (id >= state.rows)", "if (id > state.rows)"),
        ("if (going < size - size / 2) {", "if (going < size / 2) {"),
    ],
    ("concat", "errors.h"): [("for (int64_t i = 1; i < count", "for (int64_t i = 2; i < count")],
    ("concat", "concat.cpp"): [
        ("role >= in.settings", "role > in.settings"),
        (
            "in.affixes + affix[1], affix[2] - affix[1]",
            "in.affixes + affix[1], affix[2] - affix[0]",
        ),
    ],
    ("mask_spans", "mask.cpp"): [
        ("begin > window.high", "begin >= window.high"),
        ("(window.first < end)", "(window.first <= end)"),
        ("next->second - 1, next->first", "next->second, next->first"),
        ("size - done >= 4", "size - done >= 3"),
        ("size - done >= 8", "size - done >= 7"),
    ],
    ("mask_markers", "mask.cpp"): [
        ("pattern.size <= end - at", "pattern.size < end - at"),
        ("end - at >= 16", "end - at >= 15"),
        ("(1 << left) - 1", "(1 << left) / 2 - 1"),
    ],
    ("cuda", "tiles.cuh"): [
        ("tile.begins[middle] <= element", "tile.begins[middle] < element"),
        ("wanted < load(pieces.starts + after)", "wanted <= load(pieces.starts + after)"),
        ("tile.begins[i + 1] == at + k", "tile.begins[i + 1] == at + k + 1"),
    ],
    ("cuda", "mask.cuh"): [("if (size > left) continue;", "if (size > left + 1) continue;")],
    ("cuda", "pieces.cpp"): [("return -1 - place;", "return -place;")],
}


def caught(target: str, path: Path, old: str, new: str, seconds: int) -> bool:
    text = (ROOT / path).read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{path}: {old!r} stands there {text.count(old)} times")
    for folder in ("csrc", "tests/fuzz", "tests/corpus"):
        shutil.copytree(ROOT / folder, TREE / folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "tests" / "emulation.cpp", TREE / "tests")
    (TREE / path).write_text(text.replace(old, new))
    environment = {**os.environ, "TURNPACK_FUZZ_BUILD": str(ROOT / "build" / "fuzz")}
    command = [sys.executable, "tests/fuzz/run.py", target, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True)
    if "CalledProcessError" in done.stderr:
        raise SystemExit(f"{path}: {new!r} does not compile\n{done.stderr}")
    return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="of csrc; all by default")
    parser.add_argument("--seconds", type=int, default=20, help="for each error, at most")
    given = parser.parse_args()
    count, survived = 0, []
    for (target, name), errors in ERRORS.items():
        if given.files and name not in given.files:
            continue
        for old, new in errors:
            count += 1
            began = time.monotonic()
            found = caught(target, Path("csrc", name), old, new, given.seconds)
            took = f"{time.monotonic() - began:4.0f} s"
            fate = "caught  " if found else "SURVIVED"
            print(f"{fate} {took}  {target}, {name}: {old}  ->  {new}", flush=True)
            if not found:
                survived.append(f"{name}: {new}")
    print(f"{count - len(survived)} of {count} caught")
    if survived:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
