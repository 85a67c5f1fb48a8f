"""`make bench`: runs every benchmark, keeps the medians, and has the README's table made from them.

Measures nothing itself; the form of the results and of the table is table.py's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import table

HERE = Path(__file__).resolve().parent


def measure():
    """Every benchmark's figures, by group and form."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = ["-m", "pytest", "-q", "-c", str(HERE / "pytest.ini"), str(HERE)]
        subprocess.run([sys.executable, *command, f"--benchmark-json={path}"], check=True)
        return gathered(json.loads(path.read_bytes()))


def gathered(made):
    """What pytest-benchmark wrote, as groups of forms, with what a benchmark says besides.

    `bytes`: what a form must read and write; `memcpy_gb_s`: the rate of memcpy in turns with it.
    `utilization`: how full its bins are. `bytes_a_row`: the memory it takes. `touch_and_kernel_ms`:
    the least that new memory costs.
    """
    groups = {}
    for each in made["benchmarks"]:
        params = each["params"]
        form = params.get("form") or next(iter(params.values()))
        groups.setdefault(each["group"], {})[form] = {
            "median_ms": round(each["stats"]["median"] * 1e3, 4),
            "min_ms": round(each["stats"]["min"] * 1e3, 4),
            "rounds": each["stats"]["rounds"],
            **each["extra_info"],
        }
    return groups


def main():
    results = {**table.machine(("turnpack", "numpy", "numba")), "groups": measure()}
    table.keep("kernels", results)
    print(*table.kernels(results), sep="\n")


if __name__ == "__main__":
    main()
