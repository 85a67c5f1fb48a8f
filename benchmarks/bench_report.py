"""The page of a million conversations: seconds and peak memory, beside reading the same columns.

`python benchmarks/bench_report.py [ROWS]` makes bins of random ids and prints a table. Each form
runs in a process of its own, so that its memory is its own; rounds take turns, figures are medians.
The page is made without a tokenizer: loading one is no part of it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from turnpack import kernels
from turnpack.nouns import Tokens
from turnpack.sinks import ParquetSink

CAPACITY = 4096
ROUNDS = 3
CHUNK = 100_000

RUN = """
import re, sys, time
from pathlib import Path
from turnpack import bins, report
folder = Path(sys.argv[2])
begun = time.perf_counter()
if sys.argv[1] == "page":
    report.write_page(folder)
else:
    for _ in bins.read(bins.files(folder)):
        pass
# Not ru_maxrss, which begins with what the parent had.
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
print(time.perf_counter() - begun, int(peak) / 1024)
"""


def make(folder, rows):
    """Write bins of rows with answers of up to 110 tokens: median 200 tokens a row, sigma 0.7."""
    rng = np.random.default_rng(0)
    tokens = bins = 0
    (folder / "data").mkdir(parents=True)
    for shard, start in enumerate(range(0, rows, CHUNK)):
        count = min(CHUNK, rows - start)
        lengths = np.clip(rng.lognormal(np.log(200), 0.7, count), 8, CAPACITY).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(0, 150_000, int(offsets[-1]), np.int32)
        place = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
        mask = (place % 200 > 90).astype(np.uint8)
        mask[offsets[1:] - 1] = 1
        encoded = Tokens(ids, mask, offsets)
        plan = kernels.plan(lengths, CAPACITY)
        names = pa.array([f"chats-{shard}.jsonl:{i}" for i in range(count)], pa.large_string())
        with ParquetSink(folder / f"data/train-{shard:05}.parquet") as sink:
            for first in range(0, plan.num_bins, 256):
                packed = kernels.pack(encoded, plan[first : first + 256], layout="flat")
                sink.write(packed, names)
        tokens += len(ids)
        bins += plan.num_bins
    report = {
        "capacity": CAPACITY,
        "files": [{"bins": bins, "tokens": tokens}],
        "options": {"strategy": "best_fit"},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return tokens


def measured(form, folder):
    """Seconds and peak MiB of one form in a process of its own."""
    run = [sys.executable, "-c", RUN, form, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    return [float(part) for part in done.stdout.split()]


def main():
    """Measure a tenth of the rows too: what is bounded does not grow."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print("| rows | tokens | form | seconds | peak MiB |\n| ---: | ---: | --- | ---: | ---: |")
    for count in (rows // 10, rows):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokens = make(folder, count)
            found = {"read": [], "page": []}
            for _ in range(ROUNDS):
                for form, figures in found.items():
                    figures.append(measured(form, folder))
            for form, figures in found.items():
                seconds, peak = map(median, zip(*figures, strict=True))
                print(f"| {count:,} | {tokens:,} | {form} | {seconds:.1f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
