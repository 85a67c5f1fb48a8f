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
        shares = (
            f"{form[len(ours) :].lstrip(', ')}: {_share(figures):.0%}".removeprefix(": ")
            for form, figures in forms.items()
            if form.startswith(ours) and "memcpy_gb_s" in figures
        )
        others = (
            f"{form} {_ratio(figures, forms[ours])}{_besides(figures)}"
            for form, figures in forms.items()
            if form != ours
        )
        median = _time(forms[ours]) + _besides(forms[ours])
        yield f"| {group} | {median} | {'; '.join(shares)} | {', '.join(others)} |"
    yield from _caption(results)


def _share(figures):
    """The rate of a form that says its bytes, in parts of the memcpy that it took turns with."""
    return figures["bytes"] / figures["median_ms"] / 1e6 / figures["memcpy_gb_s"]


def _besides(figures):
    """What a form says besides its time and its bytes."""
    said = []
    if "utilization" in figures:
        said.append(f"{figures['utilization']:.3%} full")
    if "bytes_a_row" in figures:
        said.append(f"{figures['bytes_a_row']:.1f} bytes a row")
    if "touch_and_kernel_ms" in figures:
        least = figures["median_ms"] / figures["touch_and_kernel_ms"]
        said.append(f"{least:.2f} of first touch and kernel")
    if "rest_of_tokenizing" in figures:
        said.append(
            f"reading, rendering and packing {figures['rest_of_tokenizing']:.0%} of tokenizing"
        )
        said.append(f"{figures['microseconds_a_conversation']:.1f} µs a conversation")
    return f" ({', '.join(said)})" if said else ""


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


def large(results):
    """What `prepare` did with gigabytes."""
    rates, memory = results["mb_s"], results["private_mib"]
    yield "| | |"
    yield "| --- | ---: |"
    yield f"| input | {results['gigabytes']:g} GB, {results['conversations']:,} conversations |"
    yield f"| tokens | {results['tokens']:,}, by {results['library']} |"
    yield f"| time | {results['seconds']:,.0f} s |"
    for part, rate in rates.items():
        yield f"| throughput, {part} | {rate:.1f} MB/s |"
    for when, mib in memory.items():
        yield f"| private memory, {when} | {mib:,.0f} MiB |"
    yield f"| bins full | {results['utilization']:.2%} |"
    stages = ", ".join(f"{stage} {took:,.0f}" for stage, took in results["stages_s"].items())
    yield f"| seconds of stages, which run beside each other | {stages} |"
    beginning = results["beginning"]
    part = f"{beginning['megabytes']:.0f} MB, {beginning['conversations']:,} conversations"
    for form, rate in beginning["mb_s"].items():
        yield f"| its beginning alone ({part}): {form} | {rate:.1f} MB/s |"
    yield ""
    cores, python = results["cores"], results["python"]
    yield f"One run on {results['processor']}, {cores} cores, Python {python}."


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
TABLES = {
    "kernels": (kernels, "make bench"),
    "peers": (peers, "make bench-peers"),
    "large": (large, "make bench-large"),
}


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
