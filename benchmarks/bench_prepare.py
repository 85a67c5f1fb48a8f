"""Owns the benchmark of the whole job: chat files to Parquet bins, ChatML under Qwen's tokenizer.

Loading is excluded. Every row of ../shared/data where that is there, else of examples/sample.
`extra_info` has the medians of each stage's seconds, of the tokenizer alone on the same texts, and
of what a conversation costs besides tokenizing and writing.
"""

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

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
# The stages that are neither tokenizing nor writing.
REST = ("read", "render", "plan", "pack")


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
    options = {"template": "chatml", "max_length": 4096, "page": False}
    return prepare(FILES, tokenizer=backend, output=output, **options)


def calls(backend, output):
    """The calls of the tokenizer in a run, as its arguments."""
    made = []
    encode = backend.encode_batch

    def recorded(*arguments):
        made.append(arguments)
        return encode(*arguments)

    backend.encode_batch = recorded
    run(backend, output)
    del backend.encode_batch
    return made


@pytest.mark.parametrize("form", FORMS)
def test_prepare(benchmark, backends, equal_bins, form, tmp_path):
    benchmark.group = "prepare"
    backend = backends[form]
    texts = calls(backend, tmp_path / "bins")
    reports, alone = [], []

    def job():
        reports.append(run(backend, tmp_path / "bins"))

    def tokenized():
        """The tokenizer with nothing beside it, in turns with the job."""
        begun = perf_counter()
        for arguments in texts:
            backend.encode_batch(*arguments)
        alone.append(perf_counter() - begun)

    benchmark.pedantic(job, setup=tokenized, rounds=5, warmup_rounds=1, iterations=1)
    report, rounds = reports[0], [each.seconds for each in reports[1:]]
    rest = [sum(each[stage] for stage in REST) for each in rounds]
    conversations = report.conversations["read"]
    benchmark.extra_info.update(
        seconds={stage: median(each[stage] for each in rounds) for stage in rounds[0]},
        conversations=conversations,
        tokens=report.tokens["total"],
        tokenizing_alone=median(alone),
        rest_of_tokenizing=median(rest) / median(alone),
        microseconds_a_conversation=median(rest) / conversations * 1e6,
    )
    assert report.tokenizer["library"].startswith("gigatoken") == (form == "gigatoken")
