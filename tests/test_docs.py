"""Every block of code in the README and the guides runs, one after the other, as a reader would."""

import importlib
import re
import shlex
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from turnpack.cli import main

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Elbe."},
]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """What a reader has: a folder with chats, a tokenizer and bins, and names for the rest."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    tiny = importlib.import_module("tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.bins(tmp_path), "other")
    tokenizer = tiny.tokenizer(tmp_path)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained("path/to/tokenizer")
    sample = ROOT / "examples/sample"
    shutil.copy(sample / "alpaca.json", "alpaca.json")
    chats = [
        line for line in (sample / "messages.jsonl").read_text().splitlines() if '"tool' not in line
    ]
    Path("chats.jsonl").write_text("\n".join(chats))
    pq.write_table(pa.Table.from_pylist([{"messages": MESSAGES}]), "more.parquet")
    Path("template.jinja").write_text(CHATML)
    return {
        "jinja_text": CHATML,
        "messages": MESSAGES,
        "model": tiny.model(),
        "tokenizer": tokenizer,
        "chunks": [[5, 6], [7]],
    }


def blocks(path):
    return BLOCK.findall(path.read_text("utf-8"))


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_its_code_runs(path, reader):
    if "stage(" in path.read_text("utf-8") and find_spec("turnpack._cuda") is None:
        pytest.skip("turnpack was built without its CUDA module")
    kinds = {kind for kind, _ in blocks(path)}
    # What is not run has to say so: "text" is a picture, "make" the commands that run this test.
    assert kinds <= {"python", "sh", "toml", "text", "make"}, path
    for kind, _ in blocks(path):
        assert kind, path
    # A recipe stands behind the command that takes it.
    for kind, text in blocks(path):
        if kind == "toml":
            Path("recipe.toml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainers' own code
        for kind, text in blocks(path):
            if kind == "python":
                exec(compile(text, f"{path.name}: {text[:60]!r}", "exec"), reader)
            elif kind == "sh":
                for line in text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words:
                        assert words[0] == "turnpack", line
                        # Of different bins `compare` says by its exit code that they are.
                        assert main(words[1:]) <= (words[1] == "compare"), line


def test_the_guides_are_listed():
    index = (ROOT / "docs/README.md").read_text("utf-8")
    listed = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_links_lead_somewhere():
    for path in [*GUIDES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), (path, target)
