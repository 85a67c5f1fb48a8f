"""Compare: rows are paired by source, and what differs is counted and shown."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shown
from turnpack import compare
from turnpack.cli import main

TALKS = {
    "one": ("Say hello", "hello there"),
    "two": ("Say bye", "bye then"),
    "three": ("什么", "是 <script>alert(1)</script>"),
    "evil": (shown.TERMINAL, shown.TERMINAL),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("compare")
    changed = {**TALKS, "two": ("Say bye", "bye now"), "more": ("new", "row")}
    del changed["three"]
    inputs = {"a": TALKS, "same": TALKS, "b": changed}
    made = {}
    for name, talks in inputs.items():
        (tmp_path / name).mkdir()
        chats = shown.chats(tmp_path / name, talks, "chats.jsonl")
        made[name] = shown.prepared(tmp_path, chats, out=f"out-{name}")
    made["last"] = shown.prepared(
        tmp_path, tmp_path / "a/chats.jsonl", out="out-last", **{"train-on": "last"}
    )
    return made


def plain(said):
    return said.replace("│", "").splitlines()


def test_equal_preparations_are_equal(folders, capsys):
    assert main(["compare", str(folders["a"]), str(folders["a"])]) == 0
    assert main(["compare", str(folders["a"]), str(folders["same"])]) == 0
    said = capsys.readouterr().out
    assert said.count("  4 equal\n") == 2
    assert "other targets ·" not in said


def test_other_targets_are_told_from_other_ids(folders, capsys):
    assert main(["compare", str(folders["a"]), str(folders["last"])]) == 1
    said = capsys.readouterr().out
    assert "train_on: assistant → last" in said
    assert "  3 equal\n" in said
    assert "  1 with other targets\n" in said
    assert "  0 with other ids\n" in said
    assert "── other targets · " in said
    before, after = (line for line in plain(said) if "hello there" in line and line[0] in "-+")
    assert before.startswith("- ⟦")
    assert after.startswith("+ ")
    assert "⟦" not in after


def test_every_difference_is_counted_and_shown(folders, capsys):
    assert main(["compare", str(folders["a"]), str(folders["b"])]) == 1
    said = capsys.readouterr().out
    counts = dict(line.split(maxsplit=1)[::-1] for line in said.split("rows\n")[1].splitlines()[:6])
    assert counts.pop("of chats.jsonl") == "3"
    # The files lie in different folders; the third row is another one then.
    assert counts == {
        "equal": "1",
        "with other targets": "0",
        "with other ids": "3",
        "in A only": "0",
        "in B only": "0",
    }
    assert said.count("── other ids · ") == 3
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert main(["compare", str(folders["a"]), str(folders["b"]), "--rows", "0"]) == 1
    assert "──" not in capsys.readouterr().out


def test_rows_of_one_side_only_are_shown(folders, tmp_path, capsys):
    chats = shown.chats(tmp_path, dict(list(TALKS.items())[:2]), "chats.jsonl")
    fewer = shown.prepared(tmp_path, chats)
    assert main(["compare", str(folders["a"]), str(fewer)]) == 1
    said = capsys.readouterr().out
    assert "  2 in A only\n" in said
    assert said.count("── in A only · ") == 2
    assert any(line.startswith("- ") and "script" in line for line in plain(said))
    assert main(["compare", str(fewer), str(folders["a"])]) == 1
    assert "  2 in B only\n" in capsys.readouterr().out


def test_what_is_no_output_says_so(folders, tmp_path, capsys):
    assert main(["compare", str(folders["a"]), str(tmp_path)]) == 2
    assert main(["compare", str(tmp_path / "no"), str(folders["a"])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


ROWS = st.lists(
    st.tuples(st.sampled_from(["a:1", "a:2", "b"]), st.integers(1, 3), st.booleans()), max_size=8
)


def side_of(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({"capacity": 9}))
    bins = [[([i, i], [False, t], name)] for name, i, t in rows]
    shown.write_bins(folder / "data/train-0.parquet", bins)
    return folder


@settings(deadline=None, max_examples=60)
@given(a=ROWS, b=ROWS)
def test_pairs_are_what_a_loop_pairs(a, b, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("pairs")
    found = compare.compare(side_of(tmp_path / "a", a), side_of(tmp_path / "b", b))

    def paired(left, right, key):
        """Pairs of equal keys, of each key as many as both sides have, and what is left."""
        both = Counter(map(key, left)) & Counter(map(key, right))
        rest = []
        for side in (left, right):
            room = both.copy()
            rest.append([row for row in side if not room[key(row)] or room.subtract([key(row)])])
        return both.total(), rest

    same, (left, right) = paired(a, b, lambda row: row)
    targets, (left, right) = paired(left, right, lambda row: row[:2])
    ids, (left, right) = paired(left, right, lambda row: row[0])
    assert (found.same, len(found.targets), len(found.ids)) == (same, targets, ids)
    assert (len(found.only_before), len(found.only_after)) == (len(left), len(right))
    for one, other in found.targets.tolist():
        assert a[one][:2] == b[other][:2]
        assert a[one] != b[other]
    for one, other in found.ids.tolist():
        assert a[one][0] == b[other][0]
        assert a[one][1] != b[other][1]


def test_hashes_of_sources_are_of_the_whole_name(tmp_path):
    names = ["", "a", "aa", "b", "a", "ä"]
    rows = [(name, 1, True) for name in names]
    found = compare.side(side_of(tmp_path / "x", rows)).source
    equal = [[bool(one == other) for other in found] for one in found]
    assert equal == [[one == other for other in names] for one in names]
    assert found.dtype == np.uint64
