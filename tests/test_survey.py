"""The survey: what it counts is what a plain loop counts, and what it picks is there."""

import re
import tracemalloc
from collections import Counter, defaultdict
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shown import drawn_bins, write_bins
from turnpack import bins, kernels, survey
from turnpack.reading import NoTokenizer, Reader
from turnpack.survey import Hashes, lower_bound, runs, strategies

STOP, PLAIN = 0, range(1, 50)


class Numbers(NoTokenizer):
    """Ids as text; 0 is a control token, which 8 9 8 spell."""

    eos = "<0> "

    def decode(self, ids):
        text = "".join("<0> " if token == STOP else f"{token} " for token in ids)
        return re.sub(r"\b8 9 8 ", "<0> ", text)

    def control_id(self, text):
        return STOP if text == "<0> " else None

    def encode_batch(self, texts, continues):
        assert texts == ["<0> "]
        return np.array([8, 9, 8], np.int32), np.array([0, 3])


def surveyed(tmp_path, made, files=3, **options):
    """Survey of bins in several files, of several row groups."""
    for number in range(files):
        write_bins(tmp_path / f"data/train-{number:05}.parquet", made[number::files], group=3)
    found = survey.survey(bins.files(tmp_path), Reader(Numbers()), 200, **options)
    return found, [row for number in range(files) for b in made[number::files] for row in b]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tokens", [1 << 20, 60])
def test_counts_are_those_of_a_loop(tmp_path, monkeypatch, seed, tokens):
    monkeypatch.setattr(bins, "TOKENS", tokens)
    made = drawn_bins(np.random.default_rng(seed), 60, vocabulary=10)
    found, rows = surveyed(tmp_path, made)

    turns = defaultdict(Counter)
    unstopped = spelled = masked = 0
    endings, sources, seen = Counter(), defaultdict(Counter), Counter()
    for ids, targets, source in rows:
        seen[tuple(ids)] += 1
        spelled += any(ids[i : i + 3] == [8, 9, 8] for i in range(len(ids)))
        masked += not any(targets)
        counted = sources[source.rpartition(":")[0]]
        counted.update(rows=1, tokens=len(ids), targets=sum(targets))
        place = turn = prompt = 0
        for target, run in groupby(targets):
            length = len(list(run))
            place += length
            if target:
                turns[turn].update(rows=1, tokens=prompt + length, targets=length)
                turn, prompt, last = turn + 1, 0, ids[place - 1]
            else:
                prompt = length
        if turn:
            endings[last] += 1
            unstopped += last != STOP

    def plain(count):
        return {"rows": count.rows, "tokens": count.tokens, "targets": count.targets}

    assert found.bins == len(made)
    assert plain(found.total) == {
        "rows": len(rows),
        "tokens": sum(len(ids) for ids, _, _ in rows),
        "targets": sum(sum(targets) for _, targets, _ in rows),
    }
    assert {name: plain(count) for name, count in found.sources.items()} == sources
    assert [plain(count) for count in found.turns] == [turns[turn] for turn in sorted(turns)]
    lengths = Counter(len(ids) for ids, _, _ in rows)
    assert {n: c for n, c in enumerate(found.histogram().tolist()) if c} == lengths
    assert (found.masked, found.unstopped) == (masked, unstopped)
    often = sorted(endings, key=lambda last: (-endings[last], last))[:8]
    assert found.endings == {Numbers().decode([last]): endings[last] for last in often}
    if "<0> " in found.spelled or spelled:
        assert found.spelled == {"<0> ": spelled}
    assert (found.duplicates, found.thinned) == (len(rows) - len(seen), 1)


def test_turns_behind_the_last_counted_one_count_with_it(tmp_path):
    ids = [1] * 100
    found, _ = surveyed(tmp_path, [[(ids, [i % 2 == 1 for i in range(100)], "a:1")]], files=1)
    assert len(found.turns) == survey.TURNS
    assert sum(turn.targets for turn in found.turns) == 50
    assert found.turns[-1].rows == 50 - survey.TURNS + 1


def test_sources_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SOURCES", 2)
    made = [[([1, 2], [False, True], f"file{i}.json[3]")] for i in range(5)]
    found, _ = surveyed(tmp_path, made, files=1)
    assert {name: count.rows for name, count in found.sources.items()} == {
        survey.OTHERS: 3,
        "file0.json": 1,
        "file1.json": 1,
    }


def test_duplicates_of_many_rows_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "ROWS", 256)
    random = np.random.default_rng(3)
    rows = [
        (random.integers(1, 50, 12).tolist(), [False] + [True] * 11, "a:1") for _ in range(2000)
    ]
    found, _ = surveyed(tmp_path, [[row, row] for row in rows])
    assert found.thinned >= 16
    assert 1000 < found.duplicates < 3000


def test_what_is_picked_is_what_it_is_picked_for(tmp_path):
    random = np.random.default_rng(5)
    made = drawn_bins(random, 300, longest=60)
    made[7] = [([1, 2, 3], [False] * 3, "masked:1")]
    made[11] = [([1, 2, 8, 9, 8, STOP], [False, True, True, True, True, True], "spelled:1")]
    found, rows = surveyed(tmp_path, made, files=1, cut=True)
    by_kind = defaultdict(list)
    for item in found.picked:
        row = item.row
        assert (row.input_ids.tolist(), row.targets.tolist(), row.source) == rows[row.number]
        for kind in item.kinds:
            by_kind[kind].append(item)
    assert set(by_kind) == {*survey.KINDS} - {"tools"}
    lengths = sorted(len(ids) for ids, _, _ in rows)
    assert sorted(len(item.row.input_ids) for item in by_kind["longest"]) == lengths[-4:]
    assert sorted(len(item.row.input_ids) for item in by_kind["shortest"]) == lengths[:4]
    assert len(by_kind["random"]) == survey.KINDS["random"]
    assert all(item.row.input_ids[item.row.targets][-1] != STOP for item in by_kind["truncated"])
    assert all(len(runs_of(item.row)) > 1 for item in by_kind["multi-turn"])
    notes = {note for item in by_kind["warning"] for note in item.notes}
    assert {"no token of this row is a target", "ordinary text spells a control token"} <= notes
    assert any(note.endswith("rows of the same tokens") for note in notes)
    assert [bar.number for bar in found.picture] == sorted({bar.number for bar in found.picture})
    assert len(found.picture) == 40
    for bar in found.picture:
        assert bar.lengths.tolist() == [len(ids) for ids, _, _ in made[bar.number]]
        assert bar.targets.tolist() == [t for _, targets, _ in made[bar.number] for t in targets]


def runs_of(row):
    return [None for target, _ in groupby(row.targets.tolist()) if target]


def test_the_sample_is_decided_by_the_seed(tmp_path):
    made = drawn_bins(np.random.default_rng(6), 300)
    picks = [
        [item.row.number for item in surveyed(tmp_path, made, seed=seed)[0].picked]
        for seed in (0, 0, 1)
    ]
    assert picks[0] == picks[1] != picks[2]


class WithTools(Numbers):
    def control_id(self, text):
        return 5 if text == "<tool_call>" else super().control_id(text)


class SaysTools(Numbers):
    def decode(self, ids):
        return "".join("<tools>" if token == 5 else f"{token} " for token in ids)


@pytest.mark.parametrize("backend", [WithTools(), SaysTools()])
def test_rows_with_tools_are_known_by_token_or_by_text(tmp_path, backend):
    made = [[([1, 5 if i % 9 == 0 else 2, 3], [False, False, True], "a:1")] for i in range(50)]
    write_bins(tmp_path / "data/train-0.parquet", made)
    found = survey.survey(bins.files(tmp_path), Reader(backend), 200)
    tools = [item.row for item in found.picked if "tools" in item.kinds]
    assert len(tools) == 6
    assert all(5 in row.input_ids for row in tools)


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "TOKENS", 4000)
    monkeypatch.setattr(survey, "ROWS", 256)
    random = np.random.default_rng(9)
    peaks = []
    for count in (1500, 12_000):
        folder = tmp_path / str(count)
        made = drawn_bins(random, 500)
        write_bins(folder / "data/train-0.parquet", made * (count // 500), group=100)
        tracemalloc.start()
        survey.survey(bins.files(folder), Reader(Numbers()), 200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_splits_are_counted_apart(tmp_path):
    made = drawn_bins(np.random.default_rng(10), 20)
    write_bins(tmp_path / "data/train-0.parquet", made[:15])
    write_bins(tmp_path / "data/validation-0.parquet", made[15:])
    found = survey.survey(bins.files(tmp_path), Reader(Numbers()), 200)
    assert found.bins_of == {"train": 15, "validation": 5}
    apart = [[len(ids) for b in part for ids, _, _ in b] for part in (made[:15], made[15:])]
    assert [counts.tolist() for counts in found.lengths.values()] == [
        np.bincount(lengths).tolist() for lengths in apart
    ]
    best = next(need for need in strategies(found, "other") if need.name == "best_fit")
    assert best.bins == sum(kernels.plan(lengths, 200).num_bins for lengths in apart)


def test_a_set_without_bins_is_surveyed():
    found = survey.survey([], Reader(Numbers()), 100)
    assert (found.bins, found.total.rows, found.picked, found.turns) == (0, 0, [], [])
    assert found.histogram().sum() == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), max_size=8))
def test_runs_stay_within_rows(rows):
    ends = np.cumsum([0, *map(len, rows)])
    expected, at = [], 0
    for row in rows:
        for target, run in groupby(row):
            length = len(list(run))
            if target:
                expected.append((at, at + length))
            at += length
    starts, stops = runs(np.array([t for row in rows for t in row], bool), ends)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=20))
def test_hashes_are_equal_where_rows_are(rows):
    ends = np.cumsum([0, *map(len, rows)])
    values = np.array([value for row in rows for value in row], np.int32)
    found = Hashes().of(values, ends).tolist()
    for one, row in zip(found, rows, strict=True):
        for other, another in zip(found, rows, strict=True):
            assert (one == other) == (row == another)


def smallest(lengths, capacity):
    """The fewest bins, by trying."""
    best = len(lengths)

    def place(rest, fill):
        nonlocal best
        if len(fill) >= best:
            return
        if not rest:
            best = len(fill)
            return
        for i, used in enumerate(fill):
            if used + rest[0] <= capacity:
                place(rest[1:], [*fill[:i], used + rest[0], *fill[i + 1 :]])
        place(rest[1:], [*fill, rest[0]])

    place(sorted(lengths, reverse=True), [])
    return best


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), capacity=st.integers(12, 16))
def test_no_plan_needs_fewer_than_the_lower_bound(lengths, capacity):
    bound = lower_bound(np.bincount(lengths), capacity)
    assert -(-sum(lengths) // capacity) <= bound <= smallest(lengths, capacity)


def test_the_lower_bound_sees_rows_that_fit_with_none():
    assert lower_bound(np.bincount([6, 6, 6]), 10) == 3
    assert lower_bound(np.bincount([7, 6, 4, 4, 4]), 10) == 3
    assert lower_bound(np.zeros(1, np.int64), 10) == 0


def test_strategies_are_what_plans_say(tmp_path):
    made = drawn_bins(np.random.default_rng(7), 200)
    found, rows = surveyed(tmp_path, made)
    lengths = [len(ids) for ids, _, _ in rows]
    needs = {need.name: need for need in strategies(found, "best_fit")}
    assert list(needs) == ["none", "in_order", "first_fit", "best_fit", "lower bound"]
    assert needs["none"].bins == len(rows)
    assert needs["first_fit"].bins == kernels.plan(lengths, 200, strategy="first_fit").num_bins
    assert (needs["best_fit"].bins, needs["best_fit"].own) == (200, True)
    assert needs["lower bound"].bins >= -(-sum(lengths) // 200)
    streamed = strategies(found, "stream")
    assert [need.name for need in streamed if need.own] == ["stream"]
    best = next(need for need in streamed if need.name == "best_fit")
    assert best.bins == kernels.plan(lengths, 200).num_bins


def test_strategies_of_very_many_rows_are_estimated(tmp_path, monkeypatch):
    made = drawn_bins(np.random.default_rng(8), 400)
    found, _ = surveyed(tmp_path, made)
    exact = {need.name: need.bins for need in strategies(found, "stream")}
    monkeypatch.setattr(survey, "ROWS", 500)
    for need in strategies(found, "stream"):
        planned = need.name in ("in_order", "first_fit", "best_fit")
        assert need.estimated is planned
        assert need.bins == pytest.approx(exact[need.name], rel=0.1)
