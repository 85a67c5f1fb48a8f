"""The benchmarks' tables: what is written of literal results, and that every module is known.

Nothing is measured here, and no figure is judged.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import table

    return table


MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "python": "3.11.7",
    "versions": {"turnpack": "0.1.0", "numpy": "2.3.5"},
}
VERSIONS = "Python 3.11.7, turnpack 0.1.0, numpy 2.3.5"
CAPTION = ["", f"Medians of one run on a processor, 2 cores, {VERSIONS}."]


def forms(**medians):
    return {name: {"median_ms": median} for name, median in medians.items()}


def test_the_kernels(table):
    groups = {
        "flatten": forms(core=24.188, numpy=93.0, reference=11_000.0),
        "plan": forms(first_fit=0.8, best_fit=0.05),
        "planner": {
            "core": {"median_ms": 4.0, "utilization": 0.999984},
            "windows": {"median_ms": 50.0, "utilization": 0.9954},
        },
        "render": forms(mine=1500.0, other=15_000.0),
        "pack": {
            "core": {"median_ms": 6.0, "bytes": 63_000_000, "memcpy_gb_s": 20.0},
            "core, 2 threads": {"median_ms": 3.0, "bytes": 63_000_000, "memcpy_gb_s": 40.0},
            "core, new memory": {"median_ms": 15.0, "touch_and_kernel_ms": 12.0},
            "numba": {"median_ms": 24.0, "bytes": 63_000_000, "memcpy_gb_s": 20.0},
        },
        "plan many": {
            "core": {"median_ms": 4.0, "bytes_a_row": 13.26},
            "core, 2 threads": {"median_ms": 2.0, "bytes_a_row": 14.0},
        },
    }
    assert list(table.kernels({**MACHINE, "groups": groups})) == [
        "| kernel | median | of memcpy | other forms, in times of it |",
        "| --- | ---: | ---: | --- |",
        "| flatten | 24.19 ms |  | numpy 3.84, reference 455 |",
        "| plan | 50.00 µs |  | first_fit 16.0 |",
        "| planner | 4.00 ms (99.998% full) |  | windows 12.5 (99.540% full) |",
        "| render | 1.50 s |  | other 10.0 |",
        "| pack | 6.00 ms | 52%; 2 threads: 52% | core, 2 threads 0.50, "
        "core, new memory 2.50 (1.25 of first touch and kernel), numba 4.00 |",
        "| plan many | 4.00 ms (13.3 bytes a row) |  | core, 2 threads 0.50 (14.0 bytes a row) |",
        *CAPTION,
    ]


def test_the_peers(table):
    groups = {
        "plan 7 rows": {
            "turnpack": {"median_ms": 0.5, "utilization": 0.99991},
            "Peer 1.0": {"median_ms": 60.0, "utilization": 0.97},
        },
        "prepare": {
            "turnpack": {"median_ms": 2000.0, "stages_s": {"encode": 1.8, "plan": 0.0031}},
            "Peer 1.0": {"median_ms": 61_000.0},
        },
    }
    assert list(table.peers({**MACHINE, "groups": groups})) == [
        "| job | done by | median | in times of ours | bins full |",
        "| --- | --- | ---: | ---: | ---: |",
        "| plan 7 rows | turnpack | 0.50 ms | 1.00 | 99.99% |",
        "|  | Peer 1.0 | 60.00 ms | 120 | 97.00% |",
        "| prepare | turnpack | 2.00 s | 1.00 |  |",
        "|  | Peer 1.0 | 61.00 s | 30.5 |  |",
        *CAPTION,
        "",
        "- Seconds of turnpack: encode 1.8, plan 0.0031.",
    ]


def test_a_table_replaces_its_own_part_of_the_readme(table):
    results = {**MACHINE, "groups": {"flatten": forms(core=1.0)}}
    readme = "a\n<!-- kernels: made by `make bench` -->\n{}\n<!-- end of kernels -->\nb\n"
    lines = "".join(f"{line}\n" for line in table.kernels(results))
    assert table.inserted(readme.format("old\n"), "kernels", results) == readme.format(f"\n{lines}")


def test_what_pytest_benchmark_wrote_is_gathered(table):
    import run

    def made(group, params, median, **extra):
        stats = {"median": median, "min": median / 2, "rounds": 3}
        return {"group": group, "params": params, "extra_info": extra, "stats": stats}

    said = {"bytes": 100, "utilization": 0.5}
    benchmarks = [
        made("pack", {"form": "core"}, 0.004, **said),
        made("pack", {"form": "numba", "dtype": "int32"}, 0.002, bytes=80),
        made("plan", {"strategy": "best_fit"}, 0.001),
    ]
    assert run.gathered({"benchmarks": benchmarks}) == {
        "pack": {
            "core": {"median_ms": 4.0, "min_ms": 2.0, "rounds": 3, **said},
            "numba": {"median_ms": 2.0, "min_ms": 1.0, "rounds": 3, "bytes": 80},
        },
        "plan": {"best_fit": {"median_ms": 1.0, "min_ms": 0.5, "rounds": 3}},
    }


@pytest.mark.parametrize("name", ["kernels", "peers"])
def test_the_readme_shows_the_results_that_lie_there(table, name):
    results = json.loads((table.RESULTS / f"{name}.json").read_bytes())
    readme = table.README.read_text("utf-8")
    assert table.inserted(readme, name, results) == readme


def test_every_comparison_runs():
    tree = ast.parse((BENCHMARKS / "peers" / "__main__.py").read_text("utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPARISONS"
    )
    assert sorted(names) == sorted(
        path.stem.removeprefix("compare_") for path in (BENCHMARKS / "peers").glob("compare_*.py")
    )


def test_every_module_is_in_the_readme():
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    modules = [*BENCHMARKS.glob("bench_*.py"), *(BENCHMARKS / "peers").glob("compare_*.py")]
    assert len(modules) >= 13
    assert [path.name for path in modules if f"`{path.name}`" not in text] == []
