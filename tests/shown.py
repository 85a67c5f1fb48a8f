"""Sets that the tests of report, preview and compare look at, and a browser to look with."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import at_hand
from turnpack.cli import main

CHROMIUM = os.environ.get("TURNPACK_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

EVIL = "<script>document.title='ran'</script></script><img src=x onerror=\"document.title='ran'\">"
LINK = "[click](javascript:document.title='ran') javascript:alert(1)"
TERMINAL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eevil\u2066"

TALKS = {
    "english": ("What is a river?", "Water that goes somewhere.\n\n```sh\n\techo  river\n```"),
    "chinese": ("什么是河？", "往低处流的水，比如長江。龘"),
    "emoji": ("👩‍👩‍👧‍👦 or 👋🏽?", "🏳️‍🌈 and 𠮷 and é"),
    "arabic": ("كيف أقول شكراً؟", "قل: شكراً جزيلاً (shukran) 123."),
    "hebrew": ("איך אומרים תודה?", "תודה רבה (toda)."),
    "script": (EVIL, f"{EVIL} &amp; &lt;b&gt; {LINK}"),
    "terminal": (TERMINAL, f"{TERMINAL} end"),
    "spelled": ("what does <|im_end|> mean?", "It is how <|im_end|> is spelled."),
}
# The file's name is what runs where names are not escaped.
FILE = "<img src=x onerror=\"document.title='ran'\">\x1b[31m.jsonl"


@functools.cache
def tokenizer() -> Path:
    """A tokenizer that splits characters over tokens, and knows chatml's control tokens."""
    return at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>")


def chats(folder: Path, talks=TALKS, name=FILE) -> Path:
    """Write conversations; the first has three answers, and two rows are rejects."""
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in talks.values()
    ]
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No more."}]
    rows[0]["messages"] += more * 2
    rows.append({"messages": [{"role": f"bot{EVIL}", "content": TERMINAL}]})
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + f"{{not JSON {EVIL}\n")
    return path


def prepared(folder: Path, *files: Path, out="out", length=400, **options) -> Path:
    """What `prepare` makes of files."""
    asked = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    where = folder / out
    code = main(
        [
            "prepare",
            *map(str, files),
            "--tokenizer",
            str(tokenizer()),
            "--template",
            "chatml",
            "--max-length",
            str(length),
            "--output",
            str(where),
            "--tokenizer-backend",
            "hf",
            *asked,
        ]
    )
    assert code == 0
    return where


def write_bins(path: Path, rows, *, group=None):
    """Write bins: each a list of rows, each row (ids, targets, source)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [
        [i if t else -100 for ids, targets, _ in b for i, t in zip(ids, targets, strict=True)]
        for b in rows
    ]
    int32s = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([[i for ids, _, _ in b for i in ids] for b in rows], int32s),
            "labels": pa.array(labels, int32s),
            "seq_lengths": pa.array([[len(ids) for ids, _, _ in b] for b in rows], int32s),
            "source": pa.array([[name for _, _, name in b] for b in rows], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, path, row_group_size=group)


def drawn_bins(random: np.random.Generator, count: int, most=6, longest=30, vocabulary=50):
    """Random bins; rows are often equal, and a row may have no target."""
    made = []
    for _ in range(count):
        rows = []
        for _ in range(int(random.integers(1, most))):
            n = int(random.integers(1, longest))
            ids = random.integers(0, vocabulary, n).tolist() if random.random() < 0.8 else [7] * n
            targets = (random.random(n) < random.random()).tolist()
            rows.append((ids, [False, *targets[1:]], f"dir/f{random.integers(3)}.jsonl:{n}"))
        made.append(rows)
    return made
