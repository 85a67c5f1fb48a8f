"""`make bench-large`: `prepare` on gigabytes, made of real rows with variation.

Keeps in results/large.json the throughput over the run (first and last tenth), the seconds of each
stage and the private memory of the process. Beside it TRL's preparation and ours of the file's
beginning, as much as TRL can do in memory and in minutes: as `make bench-peers` compares them.
GB=2 says how much; nothing of it is left behind.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import orjson

import table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "peers")]

import at_hand  # noqa: E402

GB = float(os.environ.get("GB", "2"))
PART = 50_000_000  # bytes of the beginning that TRL prepares too


def chats():
    """Every row of ../shared/data where that is there, else of the sample, as messages."""
    from turnpack import records
    from turnpack.nouns import Conversation

    folder = next(
        folder for folder in (at_hand.SHARED / "data", ROOT / "examples/sample") if folder.is_dir()
    )
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    return [list(row.messages) for row in records.read(files) if isinstance(row, Conversation)]


def write(path):
    """Rows again and again, in another order and with another beginning each time."""
    rows = chats()
    with path.open("wb") as file:
        turn = 0
        while file.tell() < GB * 1e9:
            turn += 1
            for at in range(len(rows)):
                first, *rest = rows[(at * 7919 + turn) % len(rows)]
                first = {**first, "content": f"{turn}.{at} {first['content']}"}
                file.write(orjson.dumps({"messages": [first, *rest]}) + b"\n")


def private_mib():
    """Memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private")) / 1024


def run(folder):
    """Prepare the file in this process; print what was measured."""
    from turnpack import tokenizers
    from turnpack.prepare import prepare

    backend = tokenizers.load(at_hand.qwen(), eos="<|im_end|>", backend="auto")
    told, memory = [], []

    def tell(now):
        if now.stage != "encode":
            return
        told.append((now.seconds, now.done / now.total))
        if len(told) % 50 == 0:
            memory.append((now.done / now.total, private_mib()))

    begun = perf_counter()
    report = prepare(
        folder / "chats.jsonl",
        tokenizer=backend,
        template="chatml",
        max_length=4096,
        output=folder / "bins",
        progress=tell,
    )
    seconds = perf_counter() - begun

    def rate(start, stop):
        (first, at), *_, (last, to) = [t for t in told if start <= t[1] <= stop]
        return (to - at) / (last - first) * (folder / "chats.jsonl").stat().st_size / 1e6

    middle = [mib for share, mib in memory if 0.2 < share < 0.3]
    print(
        orjson.dumps(
            {
                "gigabytes": GB,
                "conversations": report.conversations["read"],
                "tokens": report.tokens["total"],
                "library": report.tokenizer["library"],
                "seconds": seconds,
                "stages_s": report.seconds,
                "mb_s": {"first tenth": rate(0, 0.1), "last tenth": rate(0.9, 1)},
                "private_mib": {
                    "largest": max(mib for _, mib in memory),
                    "about a quarter": max(middle),
                    "at the end": memory[-1][1],
                },
                "utilization": report.utilization,
            }
        ).decode()
    )


def compare(folder):
    """Prepare the file's beginning as TRL does and as we do; print the MB/s of each."""
    import compare_prepare
    from side_by_side import timed

    with (folder / "chats.jsonl").open("rb") as file:
        (folder / "beginning.jsonl").write_bytes(b"".join(file.readlines(PART)))
    os.environ["TURNPACK_CHATS"] = str(folder / "beginning.jsonl")
    for _, forms, _ in compare_prepare.compare(1.0):  # one group, whose files go with the loop
        figures = forms[0].figures
        rates = {
            name: figures["bytes"] / taken["median_ms"] / 1e3
            for name, taken in timed(forms, 1).items()
            if not name.endswith("report")
        }
    beginning = {"megabytes": figures["bytes"] / 1e6, "conversations": figures["rows"]}
    print(orjson.dumps({"beginning": {**beginning, "mb_s": rates}}).decode())


def main():
    if len(sys.argv) > 1:
        {"run": run, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-large-"))
    try:
        write(folder / "chats.jsonl")
        results = table.machine(("turnpack", "numpy", "pyarrow", "trl"))
        for step in ("run", "compare"):
            command = [sys.executable, __file__, step, str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            results |= orjson.loads(done.stdout.splitlines()[-1])
        table.keep("large", results)
        print(orjson.dumps(results, option=orjson.OPT_INDENT_2).decode())
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
