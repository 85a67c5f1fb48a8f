"""Owns the form of results/*.json and the two tables that the README shows of them.

Measures nothing. `python benchmarks/table.py` writes the tables anew from the results as they lie.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parents[1] / "README.md"
# A group's first form of these names is ours; in the peers' groups the first form is.
OURS = ("core", "best_fit", "program", "gigatoken", "lists")
MEMCPY = "memcpy"


def machine(packages):
    """What the figures are taken on and with; `load`: how busy it is, to be asked before."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor():
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def kernels(results):
    """A line for each group of `make bench`: ours, its share of memcpy's rate, the other forms."""
    yield "| kernel | median | of memcpy | other forms, in times of it |"
    yield "| --- | ---: | ---: | --- |"
    for group, forms in results["groups"].items():
        ours = next((form for form in OURS if form in forms), next(iter(forms)))
        shares = {form[len(ours) :]: share for form, share in _shares(forms, ours)}
        share = "; ".join(
            f"{form.lstrip(', ')}: {share:.0%}".removeprefix(": ") for form, share in shares.items()
        )
        others = [
            f"{form} {_ratio(figures, forms[ours])}{_full(figures)}"
            for form, figures in forms.items()
            if form != ours and not (shares and form.startswith(MEMCPY))
        ]
        median = _time(forms[ours]) + _full(forms[ours])
        yield f"| {group} | {median} | {share} | {', '.join(others)} |"
    yield from _caption(results)


def _shares(forms, ours):
    """The rate of every form of ours that says its bytes, as a share of the memcpy beside it.

    Beside `core, 2 threads` stands `memcpy, 2 threads` where there is one, else `memcpy`.
    """
    for form, figures in forms.items():
        beside = forms.get(MEMCPY + form[len(ours) :], forms.get(MEMCPY))
        if form.startswith(ours) and beside and "bytes" in figures and "bytes" in beside:
            yield form, _rate(figures) / _rate(beside)


def _full(figures):
    return f" ({figures['utilization']:.3%} full)" if "utilization" in figures else ""


def _rate(figures):
    return figures["bytes"] / figures["median_ms"]


def peers(results):
    """A line for each form of `make bench-peers`; the first of a group is turnpack's."""
    yield "| job | done by | median | in times of ours | bins full |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for group, forms in results["groups"].items():
        ours = next(iter(forms.values()))
        for form, figures in forms.items():
            full = f"{figures['utilization']:.2%}" if "utilization" in figures else ""
            yield f"| {group} | {form} | {_time(figures)} | {_ratio(figures, ours)} | {full} |"
            group = ""
    yield from _caption(results)
    yield ""
    for forms in results["groups"].values():
        for form, figures in forms.items():
            if "stages_s" in figures:
                stages = (f"{stage} {took:.2g}" for stage, took in figures["stages_s"].items())
                yield f"- Seconds of {form}: {', '.join(stages)}."


def _caption(results):
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield ""
    yield (
        f"Medians of one run on {results['processor']}, {results['cores']} cores, "
        f"Python {results['python']}, {versions}."
    )


def _ratio(figures, ours):
    ratio = figures["median_ms"] / ours["median_ms"]
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}"


def _time(figures):
    milliseconds = figures["median_ms"]
    if milliseconds < 0.1:
        return f"{milliseconds * 1e3:,.2f} µs"
    if milliseconds < 1000:
        return f"{milliseconds:,.2f} ms"
    return f"{milliseconds / 1e3:,.2f} s"


# The README's tables: the name of the results, what makes the lines, the command that measures.
TABLES = {"kernels": (kernels, "make bench"), "peers": (peers, "make bench-peers")}


def keep(name, results):
    """Write results/<name>.json and the README's table of it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    README.write_text(inserted(README.read_text("utf-8"), name, results), "utf-8")


def inserted(readme, name, results):
    """The README with the table `name` made of these results."""
    lines, command = TABLES[name]
    begin, end = f"<!-- {name}: made by `{command}` -->\n", f"\n<!-- end of {name} -->"
    before, rest = readme.split(begin)
    after = rest.split(end)[1]
    table = "".join(f"{line}\n" for line in lines(results))
    return f"{before}{begin}\n{table}{end}{after}"


def main():
    for name in TABLES:
        keep(name, json.loads((RESULTS / f"{name}.json").read_bytes()))


if __name__ == "__main__":
    main()
