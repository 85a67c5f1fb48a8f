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
# The form that is ours, in the groups that have it.
OURS = ("core", "best_fit", "program", "lists")
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
        params = each["params"] or {"form": "memcpy"}
        form = params.get("form") or next(iter(params.values()))
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
    yield "| what | form | median | times ours |"
    yield "| --- | --- | ---: | ---: |"
    for group, forms in results["groups"].items():
        ours = next(forms[form] for form in OURS if form in forms)["median_ms"]
        for form, figures in forms.items():
            ratio = figures["median_ms"] / ours
            yield f"| {group} | {form} | {_time(figures['median_ms'])} | {ratio:,.2f} |"
            group = ""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield ""
    yield (
        f"Medians of one run on {results['processor']}, {results['cores']} cores, "
        f"Python {results['python']}, {versions}."
    )


def _time(milliseconds):
    if milliseconds < 0.1:
        return f"{milliseconds * 1e3:,.2f} µs"
    return f"{milliseconds:,.2f} ms"


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
