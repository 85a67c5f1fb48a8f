"""`make bench`: runs every benchmark, keeps the medians, and writes the README's table from them.

Owns the form of benchmarks/results/*.json and of the table. Measures nothing itself.
"""

import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- table: made by `make bench` -->\n", "<!-- end of table -->"


def measure():
    """Every benchmark's median and quickest round in ms, by group and form."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = ["-m", "pytest", "-q", "-c", str(HERE / "pytest.ini"), str(HERE)]
        subprocess.run([sys.executable, *command, f"--benchmark-json={path}"], check=True)
        made = json.loads(path.read_bytes())
    groups = {}
    for each in made["benchmarks"]:
        form = next(iter((each["params"] or {"": "memcpy"}).values()))
        groups.setdefault(each["group"], {})[form] = {
            "median_ms": round(each["stats"]["median"] * 1e3, 4),
            "min_ms": round(each["stats"]["min"] * 1e3, 4),
            "rounds": each["stats"]["rounds"],
        }
    return {
        "processor": made["machine_info"]["cpu"]["brand_raw"],
        "cores": made["machine_info"]["cpu"]["count"],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("turnpack", "numpy", "numba")},
        "groups": groups,
    }


def table(results):
    """The results as Markdown: our median, and how many times as long each other form takes."""
    yield "| what | form | median | times the core's |"
    yield "| --- | --- | ---: | ---: |"
    for group, forms in results["groups"].items():
        ours = forms.get("core", forms.get("best_fit"))["median_ms"]
        for form, figures in forms.items():
            ratio = figures["median_ms"] / ours
            yield f"| {group} | {form} | {figures['median_ms']:,.2f} ms | {ratio:,.2f} |"
            group = ""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield ""
    yield (
        f"Medians of one run on {results['processor']}, {results['cores']} cores, "
        f"Python {results['python']}, {versions}."
    )


def main():
    results = measure()
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "kernels.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = "".join(f"{line}\n" for line in table(results))
    README.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", "utf-8")
    print(lines)


if __name__ == "__main__":
    main()
