"""Recipes: of every source it is known what became of each row, and the order is a fair shuffle."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import at_hand
from test_prepare import BAD, bins, data_bytes, documents, tree
from test_resume import interrupt
from turnpack import duplicates, fates, job, recipe, selection, shuffle, tokenizers
from turnpack.cli import main
from turnpack.draws import Draws
from turnpack.encode import Encoder
from turnpack.nouns import Tokens
from turnpack.prepare import OptionError, prepare, prepare_recipe
from turnpack.rows import Rows
from turnpack.shuffle import Shuffled

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder():
    return at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def backend(folder):
    return tokenizers.load(folder)


def chat(number, answers=1, name=""):
    messages = []
    for turn in range(answers):
        question = f"Question {name}{number}.{turn} " + "why? " * (number % 23)
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "Fine, 好的 👍🏽 " * (1 + number % 3)},
        ]
    return orjson.dumps({"messages": messages})


@pytest.fixture
def write(tmp_path):
    """Write a recipe and files of rows beside it."""

    def written(text, **files):
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
        path = tmp_path / "recipe.toml"
        path.write_text(f'template = "chatml"\nmax_length = 300\n{text}', encoding="utf-8")
        return path

    return written


@pytest.fixture
def run(write, backend, tmp_path):
    def done(text, *, to="out", files=None, **options):
        path = write(text, **(files or {}))
        return prepare_recipe(path, output=tmp_path / to, **{"tokenizer": backend, **options})

    return done


def lengths_of(backend, rows):
    encoder = Encoder(backend, "chatml", max_length=300)
    return [len(encoder([json.loads(row)]).input_ids) for row in rows]


def copies(directory, name):
    """How often each line of a file is in the bins."""
    found = Counter(source for source, _, _ in documents(directory))
    return {
        int(source.rpartition(":")[2]): number
        for source, number in found.items()
        if Path(source.rpartition(":")[0]).stem == name
    }


# -- weight and cap --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.5, 2.5, 0.001, 1.0, 3, 0.333])
def test_a_weight_by_rows_is_exact(run, tmp_path, weight, monkeypatch):
    monkeypatch.setattr(selection, "GROUP", 128)
    source = f'[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = {weight}'
    report = run(source, files={"a": [chat(n) for n in range(1000)]})
    found = copies(tmp_path / "out", "a")
    assert sum(found.values()) == report.sources[0]["packed"] == math.floor(1000 * weight + 0.5)
    assert {*found.values()} <= {math.floor(weight), math.ceil(weight)}
    assert len(found) == report.sources[0]["kept"] == 1000 - report.sources[0]["sampled_out"]


def test_which_rows_are_left_out_is_drawn_by_lot(run, tmp_path):
    files = {"a": [chat(n) for n in range(1000)]}
    chosen = []
    for seed in (1, 1, 2):
        run(f'seed = {seed}\n[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = 0.5', files=files)
        chosen.append({*copies(tmp_path / "out", "a")})
    assert chosen[0] == chosen[1]
    # Two independent halves share half of each other: 250 with a standard deviation of 7.9.
    assert abs(len(chosen[0] & chosen[2]) - 250) < 40
    # Of all pairs of neighbours a quarter is chosen both; every other row would be none.
    for lines in chosen:
        both = sum(line + 1 in lines for line in lines)
        assert abs(both - 250) < 50


@pytest.mark.parametrize("weight", [0.5, 1.7, 2.0, 0.07])
def test_a_weight_by_tokens_is_exact_within_a_row(run, tmp_path, backend, weight, monkeypatch):
    monkeypatch.setattr(selection, "GROUP", 100)
    rows = [chat(n * 7 % 23) for n in range(777)]
    source = f'[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = {weight}\nby = "tokens"'
    report = run(source, files={"a": rows})
    lengths = lengths_of(backend, rows)
    packed = sum(lengths[line - 1] * n for line, n in copies(tmp_path / "out", "a").items())
    assert report.sources[0]["tokens"]["packed"] == packed
    assert abs(packed - Fraction(str(weight)) * sum(lengths)) <= max(lengths)


@pytest.mark.parametrize("shuffled", ["true", "false"])
def test_a_cap_is_drawn_by_lot(run, tmp_path, backend, shuffled, monkeypatch):
    monkeypatch.setattr(selection, "GROUP", 50)
    rows = [chat(n) for n in range(600)]
    lengths = lengths_of(backend, rows)
    text = f'shuffle = {shuffled}\n[[sources]]\nname = "a"\nfiles = "a.jsonl"\n'
    chosen = []
    for seed in (1, 2):
        report = run(text + "cap = { rows = 200 }", files={"a": rows}, seed=seed)
        chosen.append(copies(tmp_path / "out", "a"))
        assert {*chosen[-1].values()} == {1}
        assert len(chosen[-1]) == report.sources[0]["kept"] == 200
        assert report.sources[0]["sampled_out"] == 400
        first = sum(line <= 300 for line in chosen[-1])
        assert abs(first - 100) < 40
    assert chosen[0] != chosen[1]
    run(text + "weight = 1.5\ncap = { tokens = 9000, rows = 500 }", files={"a": rows})
    found = copies(tmp_path / "out", "a")
    tokens = sum(lengths[line - 1] * number for line, number in found.items())
    assert 9000 - 2 * max(lengths) < tokens <= 9000
    assert {*found.values()} == {1, 2}


def test_a_cap_above_all_changes_nothing(run, tmp_path):
    rows = [chat(n) for n in range(50)]
    text = '[[sources]]\nname = "a"\nfiles = "a.jsonl"\n'
    run(text, files={"a": rows}, to="without")
    run(text + "cap = { rows = 50 }", files={"a": rows}, to="with")
    assert data_bytes(tmp_path / "with") == data_bytes(tmp_path / "without")


# -- filters and duplicates ------------------------------------------------------------------------


def test_filters_are_counted_by_bound(run, tmp_path, backend):
    rows = [chat(n, answers=1 + n % 3) for n in range(90)]
    encoder = Encoder(backend, "chatml", max_length=300)
    expected, reasons = [], Counter()
    for line, row in enumerate(rows, 1):
        tokens = encoder([json.loads(row)])
        share = tokens.loss_mask.sum() / len(tokens.input_ids)
        if len(tokens.input_ids) > 150:
            reasons["max_tokens"] += 1
        elif share < 0.2:
            reasons["min_trained"] += 1
        elif (line - 1) % 3 == 0:
            reasons["min_turns"] += 1
        else:
            expected.append(line)
    assert all(reasons.values())
    assert len(reasons) == 3
    report = run(
        '[[sources]]\nname = "a"\nfiles = "a.jsonl"\n'
        "filters = { max_tokens = 150, min_trained = 0.2, min_turns = 2 }",
        files={"a": rows},
    )
    assert sorted(copies(tmp_path / "out", "a")) == expected
    assert report.sources[0]["filtered_by"] == reasons
    assert report.conversations["filtered"] == sum(reasons.values())


def test_duplicates_are_listed_with_both_places(run, tmp_path):
    turns = [{"content": "a", "role": "user"}, {"content": "b", "role": "assistant"}]
    other_order = orjson.dumps({"messages": turns})
    same = b'{"prompt": "a", "completion": "b"}'
    with_tools = orjson.dumps({"messages": turns, "tools": [{"name": "f"}]})
    files = {
        "a": [chat(1), chat(2), chat(1), BAD[0], other_order],
        "b": [chat(3), chat(2), same, with_tools],
    }
    text = "".join(f'[[sources]]\nname = "{n.upper()}"\nfiles = "{n}.jsonl"\n' for n in "ab")
    for how, expected in {
        "across": [("A", 3, "A", 1), ("B", 2, "A", 2), ("B", 3, "A", 5)],
        "within": [("A", 3, "A", 1)],
        "keep": None,
    }.items():
        report = run(f'duplicates = "{how}"\n' + text, files=files)
        listed = tmp_path / "out/duplicates.jsonl"
        assert listed.exists() == (expected is not None)
        if expected is None:
            assert report.conversations["duplicates"] == 0
            continue
        told = [json.loads(line) for line in listed.read_text().splitlines()]
        places = [(d["source"], d["line"], d["first"]["source"], d["first"]["line"]) for d in told]
        assert places == expected
        for one in told:
            for place in (one, one["first"]):
                assert place["file"] == str(tmp_path / f"{place['source'].lower()}.jsonl")
        assert [source["duplicates"] for source in report.sources] == [
            sum(place[0] == name for place in expected) for name in "AB"
        ]
        assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_duplicate_of_what_was_filtered_stays(run, tmp_path):
    row = chat(5)
    text = (
        'duplicates = "across"\n'
        '[[sources]]\nname = "a"\nfiles = "a.jsonl"\nfilters = { max_tokens = 1 }\n'
        '[[sources]]\nname = "b"\nfiles = "b.jsonl"\n'
    )
    report = run(text, files={"a": [row], "b": [row]})
    assert [source["kept"] for source in report.sources] == [0, 1]


# -- conservation ----------------------------------------------------------------------------------

ROWS = [chat(n, answers=1 + n % 3) for n in range(12)]


@st.composite
def recipes(draw):
    """A list of sources: the rows of each, and its keys."""
    sources = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.lists(st.sampled_from([*ROWS, *BAD]), max_size=40))
        keys = {}
        if draw(st.booleans()):
            keys["weight"] = draw(st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.25, 2.0, 3.7]))
            keys["by"] = draw(st.sampled_from(["rows", "tokens"]))
        if draw(st.booleans()):
            keys["filters"] = {"max_tokens": draw(st.integers(1, 300)), "min_turns": 1}
        if draw(st.booleans()):
            keys["cap"] = {draw(st.sampled_from(["rows", "tokens"])): draw(st.integers(1, 500))}
        sources.append((rows, keys))
    options = {
        "duplicates": draw(st.sampled_from(["keep", "within", "across"])),
        "shuffle": draw(st.booleans()),
        "validation": draw(st.sampled_from([0.0, 0.3])),
        "truncate": draw(st.sampled_from(["right", "split"])),
        "strategy": draw(st.sampled_from(["stream", "in_order", "none", "best_fit"])),
    }
    return sources, options, draw(st.integers(0, 3))


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(recipes())
def test_no_row_and_no_token_is_lost(tmp_path, write, backend, monkeypatch, recipe):
    sources, options, seed = recipe
    monkeypatch.setattr(job, "CHUNK", 7)
    monkeypatch.setattr(selection, "GROUP", 8)
    monkeypatch.setattr(shuffle, "DEALT_TOKENS", 300)
    monkeypatch.setattr(shuffle, "SORTED_TOKENS", 100)
    text = "".join(f"{key} = {toml(value)}\n" for key, value in options.items())
    for number, (_, keys) in enumerate(sources):
        keys = {"name": f"s{number}", "files": f"s{number}.jsonl", **keys}
        text += "[[sources]]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in keys.items())
    path = write(text, **{f"s{n}": rows for n, (rows, _) in enumerate(sources)})
    path.write_text(path.read_text().replace("max_length = 300", "max_length = 60"))
    report = prepare_recipe(path, tokenizer=backend, output=tmp_path / "out", seed=seed)

    encoder = Encoder(backend, "chatml", max_length=60, truncate=options["truncate"])
    packed = Counter()
    for source, ids, _ in documents(tmp_path / "out"):
        packed[source] += len(ids)
    seen = set()
    for number, (rows, keys) in enumerate(sources):
        told, counts, tokens, kept = report.sources[number], Counter(), Counter(), []
        for line, row in enumerate(rows, 1):
            rejects = []
            size = 0 if row == BAD[2] else len(encoder([json.loads(row)], rejects).input_ids)
            key = (row, number) if options["duplicates"] == "within" else row
            if row == BAD[2] or rejects:
                fate = "rejected"
            elif size > keys.get("filters", {}).get("max_tokens", math.inf):
                fate = "filtered"
            elif options["duplicates"] != "keep" and key in seen:
                fate = "duplicates"
            else:
                seen.add(key)
                there = packed[f"{tmp_path / f's{number}.jsonl'}:{line}"]
                assert there % size == 0
                fate = "kept" if there else "sampled_out"
                kept.append((size, there // size))
                tokens["packed"] += there
            counts[fate] += 1
            tokens[fate] += size
        fates = ("rejected", "filtered", "duplicates", "sampled_out", "kept")
        assert told["read"] == len(rows) == sum(told[fate] for fate in fates)
        for fate in fates:
            assert told[fate] == counts[fate]
            assert fate == "rejected" or told["tokens"][fate] == tokens[fate]
        assert told["packed"] == sum(times for _, times in kept)
        assert told["tokens"]["packed"] == tokens["packed"]
        weight, cap = Fraction(str(keys.get("weight", 1))), keys.get("cap", {})
        if not cap:
            by_tokens = keys.get("by") == "tokens"
            cost = [size if by_tokens else 1 for size, _ in kept]
            given = sum(c * times for c, (_, times) in zip(cost, kept, strict=True))
            assert abs(given - weight * sum(cost)) <= max(cost, default=0)
            assert all(math.floor(weight) <= times <= math.ceil(weight) for _, times in kept)
        assert told["packed"] <= cap.get("rows", math.inf)
        assert told["tokens"]["packed"] <= cap.get("tokens", math.inf)
    assert report.tokens["total"] == sum(s["tokens"]["packed"] for s in report.sources)


def test_a_lost_row_is_a_bug(run, monkeypatch):
    files = {"a": [chat(n) for n in range(9)]}
    text = '[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = 0.5'
    real = fates.Fates.add

    def forgetful(self, fate, *arguments):
        if fate != "sampled_out":
            real(self, fate, *arguments)

    monkeypatch.setattr(fates.Fates, "add", forgetful)
    with pytest.raises(RuntimeError, match=r"rows of .*a\.jsonl were lost, this is a bug"):
        run(text, files=files)


# -- the same bytes --------------------------------------------------------------------------------

ALL = """
duplicates = "across"
validation = 0.2
shard_tokens = 4000
window = 64
[[sources]]
name = "a"
files = "a.jsonl"
weight = 0.5
system = "Be brief."
[[sources]]
name = "b"
files = ["b.jsonl", "a.jsonl"]
weight = 2.5
by = "tokens"
truncate = "split"
[[sources]]
name = "c"
files = "c*.jsonl"
filters = { max_tokens = 90 }
cap = { tokens = 5000, rows = 200 }
weight = 1.5
"""
FILES = {
    "a": [chat(n) for n in range(300)],
    "b": [*(chat(n % 150) for n in range(250)), *BAD, *(chat(n, 2, "b") for n in range(60))],
    "c": [chat(n, name="c") for n in range(250)],
    "c2": [chat(n, name="d") for n in range(50)],
}


@pytest.mark.parametrize("shuffled", ["false", *at_hand.thorough("true")])
def test_workers_and_chunks_change_no_byte(run, tmp_path, folder, shuffled, monkeypatch):
    text = f"shuffle = {shuffled}\n" + ALL
    # Where the bins are not all held, a run may be gone on with behind certain chunks only: there
    # files end.
    chunks = (50, 50, 33) if shuffled == "true" else (50, 50)
    monkeypatch.setattr(selection, "GROUP", 64)
    for to, chunk, workers in zip("xyz", chunks, (1, 2, 1), strict=False):
        monkeypatch.setattr(job, "CHUNK", chunk)
        if to == "z":
            monkeypatch.setattr(shuffle, "DEALT_TOKENS", 500)
            monkeypatch.setattr(shuffle, "SORTED_TOKENS", 100)
        run(text, files=FILES, to=to, tokenizer=folder, workers=workers, tokenizer_backend="hf")
    kept = ("data/", "duplicates.jsonl", "rejects.jsonl", "report.json", "manifest.json")
    first, *others = (
        {name: content for name, content in tree(tmp_path / to).items() if name.startswith(kept)}
        for to, _ in zip("xyz", chunks, strict=False)
    )
    assert len(first) > 8
    for other in others:
        assert other == first


def test_a_source_alone_is_as_its_files(run, tmp_path, backend):
    text = 'shuffle = false\n[[sources]]\nname = "all"\nfiles = ["a.jsonl", "b.jsonl"]\n'
    run(text, files=FILES)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    options = {"tokenizer": backend, "template": "chatml", "max_length": 300}
    prepare(files, output=tmp_path / "plain", **options)
    assert data_bytes(tmp_path / "plain") == data_bytes(tmp_path / "out")


@pytest.mark.parametrize("shuffled", ["false", *at_hand.thorough("true")])
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_stopped_run_goes_on_to_the_same_bytes(write, tmp_path, folder, how, shuffled):
    text = f'shuffle = {shuffled}\ntokenizer = "{folder}"\ntokenizer_backend = "hf"\n' + ALL
    path = write(text, **FILES)
    # Rows are dealt to files up to the 4000th change of the disk or so (not every Python makes all
    # of them where they are counted), and sorted behind it.
    moments = [60, 1500, 3000, 5500, 7500] if shuffled == "true" else [20, 150, 300, 460]
    options = {
        "how": how,
        "moments": moments,
        "folder": str(tmp_path),
        "recipe": str(path),
        "chunk": 50,
        "group": 64,
        "dealt": 600,
        "sorted": 300,
        "workers": 1,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/stopped.py"), json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    stopped = [one for one in told if one["status"] != 0]
    assert len(stopped) == len(moments)
    assert all((one["resumed"], one["same"]) == (0, True) for one in told)
    assert len({one["entries"] for one in stopped}) >= 3
    if shuffled == "true":
        sorting = [any("sorting/" in name for name in one["left"]) for one in stopped]
        assert sorting == [False, False, False, True, True]


def test_a_run_goes_on_in_the_midst_of_a_capped_source(write, tmp_path, folder, monkeypatch):
    """Where the source holds all that it is given, and no block is ever filled."""
    monkeypatch.setattr(job, "CHUNK", 50)
    text = (
        'shuffle = false\ntokenizer_backend = "hf"\nshard_tokens = 4000\n'
        '[[sources]]\nname = "a"\nfiles = "a.jsonl"\ncap = { rows = 20 }\n'
        '[[sources]]\nname = "b"\nfiles = "b.jsonl"\n'
    )
    path = write(text, a=[chat(n) for n in range(600)], b=FILES["c"])
    run = partial(prepare_recipe, path, tokenizer=folder)
    run(output=tmp_path / "whole")
    interrupt(monkeypatch, 2, run, output=tmp_path / "out")
    told = []
    run(output=tmp_path / "out", resume=True, progress=told.append)
    assert 50 < told[0].rows <= 600
    assert data_bytes(tmp_path / "out") == data_bytes(tmp_path / "whole")


def test_another_recipe_does_not_go_on(run, tmp_path):
    text = '[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = {}'
    run(text.format(2), files={"a": [chat(1)]})
    with pytest.raises(OptionError, match=r"options.recipe.sources.a.weight was 2.0, now 3.0"):
        run(text.format(3), resume=True)
    before = data_bytes(tmp_path / "out")
    report = run(text.format(2), resume=True)
    assert data_bytes(tmp_path / "out") == before
    assert report.sources[0]["packed"] == 2


# -- the shuffle -----------------------------------------------------------------------------------


class Listed:
    """A Binning that makes no bins and remembers the order of the rows."""

    holds_all = False

    def __init__(self):
        self.order = []

    def add(self, rows):
        self.order += rows.files.tolist()
        return iter(())

    def flush(self):
        return iter(())


def numbered(first, last):
    """Rows of one or two tokens whose file is their number."""
    lengths = 1 + np.arange(first, last) % 2
    ids = np.arange(lengths.sum(), dtype=np.int32)
    offsets = np.append(0, np.cumsum(lengths))
    tokens = Tokens(ids, np.zeros(len(ids), np.uint8), offsets)
    names = pa.array([str(n) for n in range(first, last)], pa.large_string())
    return Rows.of(tokens, names, np.arange(first, last, dtype=np.int32))


def order(folder, number, seed, part=5):
    listed = Listed()
    shuffled = Shuffled(listed, folder, folder / "scratch", "train", seed)
    for first in range(0, number, part):
        assert list(shuffled.add(numbered(first, min(number, first + part)))) == []
    assert list(shuffled.flush()) == []
    return listed.order


def test_every_order_is_equally_likely(tmp_path):
    """Chi-square of the orders of 4 rows and of the places of 20; the seeds are fixed."""
    seeds = 4800
    orders = Counter(tuple(order(tmp_path, 4, seed)) for seed in range(seeds))
    expected = seeds / 24
    assert {*orders} == {*itertools.permutations(range(4))}
    assert sum((n - expected) ** 2 / expected for n in orders.values()) < 49.7  # p = 0.001, 23 df
    places = np.zeros((20, 20))
    for seed in range(1000):
        places[np.arange(20), order(tmp_path, 20, seed)] += 1
    assert ((places - 50) ** 2 / 50).sum() < 448.0  # p = 0.001, 19 * 19 df


def test_the_order_does_not_depend_on_the_memory(tmp_path, monkeypatch):
    alone = order(tmp_path, 900, 3)
    assert sorted(alone) == [*range(900)]
    assert alone != sorted(alone)
    monkeypatch.setattr(shuffle, "DEALT_TOKENS", 100)
    assert order(tmp_path, 900, 3, part=7) == alone
    monkeypatch.setattr(shuffle, "SORTED_TOKENS", 4)
    assert order(tmp_path, 900, 3) == alone


def test_the_draws_are_the_same_for_ever():
    draws = Draws(0, "shuffle train")
    assert [int(n) for n in draws.take(0, 3)] == DRAWN
    assert draws.take(2, 5).tolist() == draws.take(0, 7).tolist()[2:]
    assert Draws(1, "shuffle train").take(0, 3).tolist() != DRAWN
    assert Draws(0, "shuffle validation").take(0, 3).tolist() != DRAWN


DRAWN = [2490234990834194053, 6813994640137846861, 12882171532744597565]


@pytest.mark.parametrize("strategy", ["stream", "best_fit"])
def test_rows_of_the_same_length_are_shuffled_too(run, tmp_path, strategy):
    """Nothing but their order tells them apart, and that must not be the order of the sources."""
    files = {name: [chat(0)] * 200 for name in "ab"}
    text = "".join(f'[[sources]]\nname = "{n}"\nfiles = "{n}.jsonl"\n' for n in "ab")
    run(f'strategy = "{strategy}"\ncapacity = 2000\n' + text, files=files)
    mixed = [len({Path(s).stem for s in row["source"]}) for row in bins(tmp_path / "out")]
    assert sum(mixed) > 1.5 * len(mixed)


def test_copies_of_a_conversation_are_dealt_independently(run, tmp_path):
    """Of 1,000 conversations three times, in 60 rows' distance at most by chance."""
    text = 'strategy = "none"\n[[sources]]\nname = "a"\nfiles = "a.jsonl"\nweight = 3'
    run(text, files={"a": [chat(n) for n in range(1000)]})
    places = {}
    for place, row in enumerate(bins(tmp_path / "out")):
        places.setdefault(row["source"][0], []).append(place)
    near = sum(b - a <= 10 for found in places.values() for a, b in itertools.pairwise(found))
    # Of 3,000 pairs of copies each is that near with a chance of 2 * 10 / 2999.
    assert near < 45


# -- what a recipe may say -------------------------------------------------------------------------

SOURCE = '[[sources]]\nname = "a"\nfiles = "a.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are no [[sources]]"),
        ("sources = 3", "sources = 3 is not a list of tables, each under [[sources]]"),
        ("colour = 1\n" + SOURCE, "colour = 1: there is no such key; there are template, "),
        ("seed = true\n" + SOURCE, "seed = True is not an integer"),
        ("shuffle = 1\n" + SOURCE, "shuffle = 1 is not true or false"),
        ('duplicates = "no"\n' + SOURCE, "duplicates = 'no' is not one of keep, within, across"),
        ("validation = nan\n" + SOURCE, "validation = nan is not a number"),
        (SOURCE + "weight = -1", "source 'a': weight = -1 is not a number greater than 0"),
        (SOURCE + "weight = 0", "source 'a': weight = 0 is not a number greater than 0"),
        (SOURCE + "weight = nan", "source 'a': weight = nan is not a number greater than 0"),
        (SOURCE + "weight = inf", "source 'a': weight = inf is not a number greater than 0"),
        (SOURCE + 'weight = "2"', "source 'a': weight = '2' is not a number greater than 0"),
        (SOURCE + 'by = "bytes"', "source 'a': by = 'bytes' is not one of rows, tokens"),
        (SOURCE + "weigth = 2", "source 'a': weigth = 2: there is no such key"),
        (SOURCE + "cap = 5", "source 'a': cap = 5 is not a table"),
        (SOURCE + "cap = { rows = 0 }", "source 'a': cap: rows = 0 is not an integer, at least 1"),
        (SOURCE + "filters = { min_words = 1 }", "filters: min_words = 1: there is no such key"),
        (SOURCE + "filters = { max_trained = 2 }", "max_trained = 2 is not a number from 0 to 1"),
        (
            SOURCE + "filters = { min_tokens = 9, max_tokens = 8 }",
            "source 'a': filters: min_tokens = 9 is more than the most, 8",
        ),
        ('[[sources]]\nfiles = "a.jsonl"', "source 1: name is missing"),
        ('[[sources]]\nname = "b"', "source 'b': files is missing"),
        ('[[sources]]\nname = "b"\nfiles = []', "source 'b': files = [] names no file"),
        (
            '[[sources]]\nname = "b"\nfiles = ["a.jsonl", "no*.jsonl"]',
            "source 'b': files = 'no*.jsonl': there is no such file",
        ),
        (SOURCE + SOURCE, "source 'a': name = 'a' is another source's too"),
        (SOURCE + 'template = "nope"', "source 'a': unknown template 'nope'"),
        (SOURCE + 'format = "xml"', "source 'a': unknown format 'xml'"),
        ("capacity = 3\n" + SOURCE, "capacity 3 is less than max_length 300"),
        ("shuffle = yes", "recipe.toml: "),
    ],
)
def test_a_bad_recipe_is_one_clear_error(run, tmp_path, text, message):
    with pytest.raises(OptionError) as caught:
        run(text, files={"a": [chat(1)]})
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'recipe.toml'}: ")
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_said(write, tmp_path):
    path = write(SOURCE, a=[chat(1)])
    with pytest.raises(OptionError, match=r"recipe.toml: tokenizer is missing"):
        prepare_recipe(path, output=tmp_path / "out")
    with pytest.raises(TypeError, match="colour is no option of a recipe"):
        prepare_recipe(path, output=tmp_path / "out", colour=1)
    with pytest.raises(FileNotFoundError):
        prepare_recipe(tmp_path / "nope.toml")


def test_files_are_found_beside_the_recipe(write, tmp_path, monkeypatch):
    path = write(
        '[[sources]]\nname = "x"\nfiles = ["[b].jsonl", "?.jsonl", "deep/**/*.jsonl"]\n',
        **{"b": [chat(1)], "a": [chat(2)], "[b]": [chat(3)]},
    )
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/z.jsonl").write_bytes(chat(4))
    monkeypatch.chdir("/")
    (source,) = recipe.load(path).sources
    names = [str(Path(file).relative_to(tmp_path)) for file in source.files]
    assert names == ["[b].jsonl", "a.jsonl", "b.jsonl", "deep/er/z.jsonl"]


def test_a_file_in_two_sources_is_said_and_read_twice(run, tmp_path):
    text = "".join(f'[[sources]]\nname = "{name}"\nfiles = "a.jsonl"\n' for name in "xy")
    report = run(text, files={"a": [chat(1), chat(2)]})
    assert report.warnings == {f"{tmp_path / 'a.jsonl'} is in the sources x, y": 1}
    assert report.conversations["packed"] == 4
    assert [(file["source"], file["packed"]) for file in report.inputs] == [("x", 2), ("y", 2)]
    assert run('duplicates = "across"\n' + text).conversations["packed"] == 2


def test_each_source_has_its_options(run, tmp_path, backend):
    text = (
        SOURCE + 'system = "Be brief."\ntemplate = "zephyr"\nformat = "messages"\n'
        '[[sources]]\nname = "b"\nfiles = "b.jsonl"\ntrain_on = "last"\n'
    )
    alpaca = b'{"instruction": "Say 1", "input": "", "output": "1"}'
    report = run(text, files={"a": [chat(1), alpaca], "b": [chat(2, 2), alpaca]})
    assert [source["rejected"] for source in report.sources] == [1, 0]
    for source, ids, labels in documents(tmp_path / "out"):
        shown = backend.decode(ids)
        assert ("Be brief." in shown) == ("<|system|>" in shown) == ("a.jsonl" in source)
        if source.endswith("b.jsonl:1"):
            trained = backend.decode([label for label in labels if label != -100])
            assert trained.count("Fine") == 1 + 2 % 3


def test_weights_of_messages_come_along(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "DEALT_TOKENS", 200)
    monkeypatch.setattr(shuffle, "SORTED_TOKENS", 50)
    rows = [json.loads(chat(n)) for n in range(60)]
    for row in rows[::2]:
        row["messages"][1]["weight"] = 0.5
    text = SOURCE + "weight = 1.5\ncap = { rows = 70 }\n"
    report = run(text, files={"a": [orjson.dumps(row) for row in rows]})
    assert report.sources[0]["packed"] in (69, 70)
    for row in bins(tmp_path / "out"):
        ends = np.cumsum([0, *row["seq_lengths"]]).tolist()
        for source, (start, end) in zip(row["source"], itertools.pairwise(ends), strict=True):
            weight = 0.5 if int(source.rpartition(":")[2]) % 2 else 1.0
            expected = [weight * (label != -100) for label in row["labels"][start:end]]
            assert row["loss_weights"][start:end] == expected


def test_a_full_disk_under_the_duplicates_is_an_os_error(tmp_path):
    inputs = [fates.Input(0, "a", "a.jsonl", 9)]
    seen = duplicates.Duplicates("across", tmp_path, inputs, lambda told: None)
    seen._base.execute("PRAGMA max_page_count = 2")
    digests = [b"%016d" % number for number in range(1000)]
    with pytest.raises(OSError, match=r"database or disk is full.*duplicates.sqlite3"):
        any(seen._first(digest, 0, 0, 0, -1) for digest in digests)
    seen.close()


# -- the command line ------------------------------------------------------------------------------


def test_the_example_is_the_advice(folder, tmp_path, capsys):
    out = tmp_path / "out"
    path = ROOT / "examples/recipe.toml"
    assert main(["prepare", str(path), "--tokenizer", str(folder), "--output", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    assert [row[0] for row in table[:5]] == [
        *("source", "instructions", "conversations", "chinese", "completions")
    ]
    report = json.loads((out / "report.json").read_text())
    packed = {source["source"]: source["packed"] for source in report["sources"]}
    kept = {source["source"]: source["kept"] for source in report["sources"]}
    assert packed["instructions"] == kept["instructions"] == 10
    assert packed["conversations"] == math.floor(2.5 * kept["conversations"] + 0.5)
    assert packed["completions"] == 4
    assert report["options"]["seed"] == 7
    assert {file.name.partition("-")[0] for file in (out / "data").iterdir()} == {
        *("train", "validation")
    }
    page = (out / "report.html").read_text()
    assert '<th scope="row"><bdi>conversations</bdi></th>' in page
    assert main(["verify", str(out)]) == 0


def test_the_command_line_comes_before_the_recipe(write, folder, tmp_path, capsys):
    path = write(f'tokenizer = "{folder}"\noutput = "bins"\nseed = 5\n' + SOURCE, a=[chat(1)])
    assert main(["prepare", str(path), "--max-length", "40"]) == 0
    assert f"bins in {tmp_path / 'bins/data'}" in capsys.readouterr().out
    report = json.loads((tmp_path / "bins/report.json").read_text())
    assert (report["options"]["max_length"], report["options"]["seed"]) == (40, 5)
    assert main(["prepare", str(path), str(tmp_path / "a.jsonl")]) == 2
    assert "a recipe is given alone" in capsys.readouterr().err
    assert main(["prepare", str(write("weight = 1\n" + SOURCE))]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"turnpack: error: {path}: weight = 1: there is no such key")
    assert said.count("\n") == 1
