"""Owns the benchmark of the whole job: chat files to Parquet bins, ChatML under Qwen's tokenizer.

Loading is excluded. Every row of ../shared/data where that is there, else of examples/sample.
`extra_info` has the medians of each stage's seconds, and of what a conversation costs besides
tokenizing and writing.
"""

import sys
from pathlib import Path
from statistics import median

import pytest

from turnpack import tokenizers
from turnpack.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import at_hand  # noqa: E402

FOLDER = next(
    folder for folder in (at_hand.SHARED / "data", ROOT / "examples/sample") if folder.is_dir()
)
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".json", ".jsonl"))
FORMS = ("hf", "gigatoken")


@pytest.fixture(scope="session")
def backends():
    """One backend of each form; their bins are equal to the byte."""
    return {form: tokenizers.load(at_hand.qwen(), eos="<|im_end|>", backend=form) for form in FORMS}


@pytest.fixture(scope="session")
def equal_bins(backends, tmp_path_factory):
    bins = []
    for backend in backends.values():
        output = tmp_path_factory.mktemp("bins")
        run(backend, output)
        bins.append([path.read_bytes() for path in sorted((output / "data").iterdir())])
    assert bins[0] == bins[1]


def run(backend, output):
    return prepare(FILES, tokenizer=backend, template="chatml", max_length=4096, output=output)


@pytest.mark.parametrize("form", FORMS)
def test_prepare(benchmark, backends, equal_bins, form, tmp_path):
    benchmark.group = "prepare"
    reports = []

    def job():
        reports.append(run(backends[form], tmp_path / "bins"))

    benchmark.pedantic(job, rounds=5, warmup_rounds=1, iterations=1)
    report, rounds = reports[0], [each.seconds for each in reports[1:]]
    rest = [each["total"] - each["tokenize"] - each["write"] for each in rounds]
    shares = [part / each["tokenize"] for part, each in zip(rest, rounds, strict=True)]
    conversations = report.conversations["read"]
    benchmark.extra_info.update(
        seconds={stage: median(each[stage] for each in rounds) for stage in rounds[0]},
        conversations=conversations,
        tokens=report.tokens["total"],
        rest_of_tokenizing=median(shares),
        microseconds_a_conversation=median(rest) / conversations * 1e6,
    )
    assert report.tokenizer["library"].startswith("gigatoken") == (form == "gigatoken")
