"""`make bench-peers`: every comparison in one process; writes results/peers.json and the table.

`--share 0.1` takes a tenth of the rows, names of comparisons (`plan`, `mask`, ...) only those;
either prints the table and writes nothing.
"""

import argparse
import importlib
import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "tests")]
# No progress bars and no call home: neither is what is measured.
os.environ.update(TQDM_DISABLE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1")

from side_by_side import timed  # noqa: E402

import table  # noqa: E402

# Each is compare_<name>.py, which says what it compares and what is equal.
COMPARISONS = ("prepare", "plan", "pack", "mask", "lists")
# Beside those of the peers, which stand with their names.
VERSIONS = ("turnpack", "numpy", "pyarrow", "tokenizers", "torch", "datasets", "numba")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=COMPARISONS, metavar="name")
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' own
    results = {**table.machine(VERSIONS), "groups": {}}
    for name in options.names:
        comparison = importlib.import_module(f"compare_{name}")
        for group, forms, rounds in comparison.compare(options.share):
            results["groups"][group] = timed(forms, rounds)
            print(f"measured: {group}", flush=True)
    if options.names == COMPARISONS and options.share == 1:
        table.keep("peers", results)
    print(*table.peers(results), sep="\n")


if __name__ == "__main__":
    main()
