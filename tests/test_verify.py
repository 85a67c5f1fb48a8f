"""`turnpack verify`: what is not as it was written is found, and nothing else is complained of."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import at_hand
import turnpack.shards
from turnpack import output
from turnpack.cli import main
from turnpack.prepare import prepare
from turnpack.sinks import parquet_schema
from turnpack.torch import PackedDataset
from turnpack.verify import Totals, verify


def prepared(chats, out, **options):
    """What `prepare` makes of chats with a tiny tokenizer."""
    tokenizer = at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>")
    prepare(chats, tokenizer=tokenizer, template="chatml", max_length=300, output=out, **options)
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An output of some shards, with arrays, a reject and weights."""
    folder = tmp_path_factory.mktemp("written")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}? " + "why " * (number % 7)},
                {"role": "assistant", "content": "Because. " * (number % 5 + 1), "weight": 0.5},
            ]
        }
        for number in range(90)
    ]
    chats = folder / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turnpack.shards, "GROUP_TOKENS", 400)
        return prepared(chats, folder / "out", sinks=["numpy"], shard_tokens=1500)


@pytest.fixture
def out(written, tmp_path):
    """A copy, whose files have the times of the first."""
    return shutil.copytree(written, tmp_path / "out")


def lines(capsys, directory, code=1):
    assert main(["verify", str(directory)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def error(capsys, directory):
    assert main(["verify", str(directory)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("turnpack: error: ")


def shards(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.glob("data/*"))


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def listed(directory, name):
    (entry,) = [entry for entry in manifest(directory)["files"] if entry["path"] == name]
    return entry


def tell(directory, change, name=None):
    """Change the manifest, or what it says of one file."""
    said = manifest(directory)
    if name is None:
        change(said)
    else:
        change(next(entry for entry in said["files"] if entry["path"] == name))
    (directory / "manifest.json").write_text(json.dumps(said))


def stand_by(directory, name):
    """Make the manifest give a file's size and checksum as they are now."""
    content = (directory / name).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    tell(directory, lambda entry: entry.update(bytes=len(content), sha256=sha256), name)


# -- what is in order -----------------------------------------------------------------------------


def test_an_output_as_it_was_written(out, capsys):
    report = json.loads((out / "report.json").read_text())
    files, tokens = len(manifest(out)["files"]), report["tokens"]["total"]
    assert len(shards(out)) > 3
    assert lines(capsys, out, 0) == [
        f"as written: {files} files, {report['bins']} bins, {tokens:,} tokens"
    ]
    assert main(["verify", str(out)]) == 0


def test_an_output_of_no_bins(tmp_path, capsys):
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": []}\n')
    out = prepared(chats, tmp_path / "out")
    assert lines(capsys, out, 0)[0].endswith(" 0 bins, 0 tokens")


def test_a_loaders_cache_is_no_problem(out, capsys):
    shutil.rmtree(out / "numpy")
    said = manifest(out)
    said["files"] = [e for e in said["files"] if not e["path"].startswith("numpy/")]
    (out / "manifest.json").write_text(json.dumps(said))
    PackedDataset(out)
    assert (out / "numpy/train/input_ids.npy").exists()
    lines(capsys, out, 0)
    (out / "numpy/notes.txt").touch()
    assert lines(capsys, out) == ["numpy/notes.txt is not in manifest.json"]


def test_arrays_beside_copied_files(out, capsys):
    """A copy has other times; that makes no loader decode it anew."""
    for name in shards(out):
        os.utime(out / name, ns=(1, time.time_ns()))
    before = (out / "numpy/train/input_ids.npy").stat().st_mtime_ns
    PackedDataset(out)
    assert (out / "numpy/train/input_ids.npy").stat().st_mtime_ns == before
    lines(capsys, out, 0)


def test_files_beside_the_output_are_ones_own(out, capsys):
    (out / "notes.txt").touch()
    (out / ".turnpack-x").mkdir()
    lines(capsys, out, 0)


# -- damage ---------------------------------------------------------------------------------------


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_one_bit_of_any_file(written, data):
    names = sorted(entry["path"] for entry in manifest(written)["files"])
    name = data.draw(st.sampled_from(["manifest.json", *names]))
    path = written / name
    whole = path.read_bytes()
    # What a loader may write anew has no checksum that counts.
    begin = whole.find(b"numpy/train/index.json") if name == "manifest.json" else -1
    counts = [at for at in range(len(whole)) if begin < 0 or not begin < at < begin + 200]
    if not whole or name == "numpy/train/index.json":
        return
    at = data.draw(st.sampled_from(counts))
    bit = data.draw(st.integers(0, 7))
    try:
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        code = main(["verify", str(written)])
        assert code == 1 or (name == "manifest.json" and code == 2)
    finally:
        path.write_bytes(whole)


def test_each_kind_of_damage_is_one_line(out, capsys):
    first, second, third, *_ = shards(out)
    os.unlink(out / first)
    with (out / second).open("r+b") as file:
        file.truncate(100)
    content = bytearray((out / third).read_bytes())
    content[-9] ^= 4
    (out / third).write_bytes(content)
    shutil.copy(out / "report.html", out / "rejects.jsonl")
    (out / "data/train-9.parquet").touch()
    (out / "tokenizer/more").mkdir()
    (out / "tokenizer/more/x").touch()
    size = listed(out, second)["bytes"]
    assert lines(capsys, out) == [
        f"{first} is missing",
        f"{second} has 100 bytes, not {size}",
        f"{third} has been changed: its checksum is another",
        "rejects.jsonl holds what belongs into report.html",
        "data/train-9.parquet is not in manifest.json",
        "tokenizer/more/x is not in manifest.json",
    ]


def test_two_files_that_are_swapped(out, capsys):
    first, second, *_ = shards(out)
    (out / first).rename(out / "x")
    (out / second).rename(out / first)
    (out / "x").rename(out / second)
    assert lines(capsys, out) == [
        f"{first} holds what belongs into {second}",
        f"{second} holds what belongs into {first}",
    ]


def test_a_file_that_cannot_be_read(out, capsys, monkeypatch):
    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("turnpack.verify.sha256", failing)
    found = lines(capsys, out)
    assert len(found) == len(manifest(out)["files"])
    assert all(line.endswith(" cannot be read: Input/output error") for line in found)


# -- manifests that are none, and hostile ones ----------------------------------------------------


def test_a_directory_that_is_no_output(tmp_path, capsys):
    for directory in (tmp_path, tmp_path / "none"):
        assert error(capsys, directory) == (
            f"{directory} holds no manifest.json: it is not what `turnpack prepare` writes"
        )
    (tmp_path / "file").touch()
    assert "holds no manifest.json" in error(capsys, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "is not turnpack's"),
        ('{"files": []}', "is not turnpack's"),
        ('{"turnpack": 1, "files": []}', "is not turnpack's"),
        ('{"turnpack": "1"}', "has no list of files"),
        ('{"turnpack": "1", "files": {}}', "has no list of files"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, capsys, text, message):
    (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
    assert message in error(capsys, tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_manifest_that_is_no_file(written, tmp_path, capsys, kind):
    path = tmp_path / "manifest.json"
    if kind == "link":
        path.symlink_to(written / "manifest.json")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert error(capsys, tmp_path) == f"{path} is no regular file"


SHA = "0" * 64


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "is 3, not an object"),
        ({}, "has the path None"),
        ({"path": ""}, "has the path ''"),
        ({"path": ["data"]}, "has the path ['data']"),
        ({"path": "../secret"}, "has the path '../secret', which is none inside the directory"),
        ({"path": "data/../../secret"}, "which is none inside the directory"),
        ({"path": "/etc/passwd"}, "which is none inside the directory"),
        ({"path": "data//x"}, "which is none inside the directory"),
        ({"path": "./data"}, "which is none inside the directory"),
        ({"path": "."}, "which is none inside the directory"),
        ({"path": "a\0b"}, "which is none inside the directory"),
        ({"path": "manifest.json"}, "is manifest.json itself"),
        ({"path": "x", "sha256": SHA}, "says of x that bytes is None"),
        ({"path": "x", "bytes": -1, "sha256": SHA}, "says of x that bytes is -1"),
        ({"path": "x", "bytes": True, "sha256": SHA}, "says of x that bytes is True"),
        ({"path": "x", "bytes": 1.0, "sha256": SHA}, "says of x that bytes is 1.0"),
        ({"path": "x", "bytes": 1}, "says of x that sha256 is None"),
        ({"path": "x", "bytes": 1, "sha256": "0" * 63}, "says of x that sha256 is '0"),
        ({"path": "x", "bytes": 1, "sha256": SHA, "rows": "1"}, "says of x that rows is '1'"),
        ({"path": "data/x.parquet", "bytes": 1, "sha256": SHA}, "x.parquet that rows is None"),
        ({"path": "rejects.jsonl", "bytes": 1, "sha256": SHA}, "lists rejects.jsonl twice"),
        ({"path": "\x1b[2J", "bytes": "\x1b", "sha256": SHA}, "says of ⟨U+001B⟩[2J that bytes is"),
    ],
)
def test_an_entry_that_is_none(out, capsys, entry, message):
    number = len(manifest(out)["files"])
    tell(out, lambda said: said["files"].append(entry))
    (line,) = lines(capsys, out)
    assert line.startswith(f"manifest.json: entry {number} ")
    assert message in line


@pytest.mark.parametrize("outside", ["file", "folder", "pipe"])
def test_nothing_outside_is_opened(out, tmp_path, capsys, outside):
    """A link is not followed, even where what it leads to has the right checksum."""
    first = shards(out)[0]
    if outside == "file":
        (out / first).rename(tmp_path / "elsewhere")
        (out / first).symlink_to(tmp_path / "elsewhere")
        assert lines(capsys, out) == [f"{first} is a symbolic link"]
    elif outside == "folder":
        (out / "data").rename(tmp_path / "elsewhere")
        (out / "data").symlink_to(tmp_path / "elsewhere")
        assert lines(capsys, out) == [
            *(f"{name} lies behind data, a link" for name in shards(out)),
            "data is not in manifest.json",
        ]
    else:
        (out / first).unlink()
        os.mkfifo(out / first)
        assert lines(capsys, out) == [f"{first} is no regular file"]


def test_a_name_that_is_too_long(out, capsys):
    entry = {"path": "x" * 5000, "bytes": 1, "sha256": SHA}
    tell(out, lambda said: said["files"].append(entry))
    (line,) = lines(capsys, out)
    assert line.endswith("cannot be read: File name too long")


# -- numbers that disagree although every checksum is right ----------------------------------------


@pytest.mark.parametrize("key", ["rows", "tokens"])
def test_the_manifests_numbers(out, capsys, key):
    first = shards(out)[0]
    there = listed(out, first)[key]
    tell(out, lambda entry: entry.update({key: there + 1}), first)
    assert lines(capsys, out) == [
        f"{first} has {there} {key}, but manifest.json says {there + 1}",
        "report.json and manifest.json say different things of the files in data",
    ]


def test_the_reports_numbers(out, capsys):
    report = json.loads((out / "report.json").read_text())
    before = json.loads(json.dumps(report))
    report["bins"] += 1
    report["rows"] = None
    report["tokens"]["total"] = True
    del report["tokens"]["trained"]
    report["capacity"] = 10
    report["turnpack"] = "0.0.0"
    (out / "report.json").write_text(json.dumps(report))
    stand_by(out, "report.json")
    longest = max(len(row) for name in shards(out) for row in pq.read_table(out / name)[0])
    tokens = before["tokens"]
    assert lines(capsys, out) == [
        f"report.json is of turnpack '0.0.0', manifest.json of '{before['turnpack']}'",
        f"report.json says {report['bins']} bins, but there are {before['bins']}",
        f"report.json says None rows, but there are {before['rows']}",
        f"report.json says True tokens, but there are {tokens['total']}",
        f"report.json says None trained tokens, but there are {tokens['trained']}",
        f"a bin has {longest} tokens, but report.json says 10 at the most",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "report.json is not JSON"), ("[]", "report.json is [], not an object")],
)
def test_a_report_that_is_none(out, capsys, text, message):
    (out / "report.json").write_text(text)
    stand_by(out, "report.json")
    (line,) = lines(capsys, out)
    assert line.startswith(message)


def test_a_report_of_wrong_types(out, capsys):
    (out / "report.json").write_text('{"files": 3, "tokens": [], "bins": {}}')
    stand_by(out, "report.json")
    found = lines(capsys, out)
    assert "report.json says None tokens, but there are" in "\n".join(found)


def test_a_report_that_is_not_listed(out, capsys):
    tell(out, lambda said: said["files"].remove(listed(out, "report.json")))
    assert lines(capsys, out) == [
        "report.json is not in manifest.json",
        "manifest.json lists no report.json",
    ]


def rewritten(directory, name, change):
    """Change the bins of a Parquet file, and let the manifest stand by it."""
    rows = pq.read_table(directory / name).to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, parquet_schema("loss_weights" in rows[0]))
    pq.write_table(table, directory / name)
    stand_by(directory, name)
    report = json.loads((directory / "report.json").read_text())
    for file in report["files"]:
        if file["path"] == name:
            file["bytes"] = (directory / name).stat().st_size
    (directory / "report.json").write_text(json.dumps(report))
    stand_by(directory, "report.json")


def target(row):
    return next(cell for cell, label in enumerate(row["labels"]) if label != -100)


def another_label(rows):
    rows[2]["labels"][target(rows[2])] += 1


def lengths_that_do_not_add_up(rows):
    rows[2]["seq_lengths"][0] += 1


def labels_that_are_fewer(rows):
    rows[2]["labels"].pop()


def an_empty_document(rows):
    rows[2]["seq_lengths"].append(0)


def an_empty_bin(rows):
    rows[2].update(input_ids=[], labels=[], loss_weights=[], seq_lengths=[0])


def nothing_but_an_empty_bin(rows):
    del rows[1:]
    rows[0].update(input_ids=[], labels=[], loss_weights=[], seq_lengths=[0])


def a_trained_opening(rows):
    rows[2]["labels"][0] = rows[2]["input_ids"][0]


def a_weight_of_no_target(rows):
    rows[2]["loss_weights"][0] = 0.25


def a_weight_that_is_none(rows):
    rows[2]["loss_weights"][target(rows[2])] = float("nan")


def a_null(rows):
    rows[2]["labels"][0] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_label, r"has the label \d+ where its token is \d+"),
        (lengths_that_do_not_add_up, r"has \d+ tokens, but its documents \d+"),
        (labels_that_are_fewer, "has other lengths in labels than in input_ids"),
        (an_empty_document, "has an empty document"),
        (an_empty_bin, "has an empty document"),
        (nothing_but_an_empty_bin, "has an empty document"),
        (a_trained_opening, "has a document that opens trained"),
        (a_weight_of_no_target, "has the weight 0.25 at no target"),
        (a_weight_that_is_none, "has the weight nan at a target"),
        (a_null, "has a null in labels"),
    ],
)
def test_bins_that_are_none(out, capsys, change, message):
    first = shards(out)[0]
    rewritten(out, first, change)
    (line,) = lines(capsys, out)
    assert re.fullmatch(rf"{re.escape(str(out / first))}: bin [02] {message}", line)


def test_a_trained_token_less(out, capsys):
    first = shards(out)[0]

    def forget(rows):
        rows[2]["loss_weights"][target(rows[2])] = 0
        rows[2]["labels"][target(rows[2])] = -100

    rewritten(out, first, forget)
    there = json.loads((out / "report.json").read_text())["tokens"]["trained"]
    assert lines(capsys, out) == [
        f"report.json says {there} trained tokens, but there are {there - 1}"
    ]


def test_what_is_no_parquet(out, capsys):
    first = shards(out)[0]
    (out / first).write_bytes(b"PAR1 not at all PAR1")
    stand_by(out, first)
    found = lines(capsys, out)
    assert found[0].startswith(f"{first} cannot be read: ")


# -- memory ---------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_set(tmp_path):
    """What a process has at the most, of a set and of one eight times as large."""
    random = np.random.default_rng(0)

    def most(groups):
        folder = tmp_path / str(groups)
        (folder / "data").mkdir(parents=True)
        path, count = folder / "data/train-0.parquet", 256 * groups
        schema = parquet_schema(weighted=False)
        trained = 0
        with pq.ParquetWriter(path, schema) as writer:
            for _ in range(groups):
                ids = random.integers(0, 30_000, 256 * 1024, np.int32)
                labels = np.where(np.arange(len(ids)) % 1024 < 600, -100, ids).astype(np.int32)
                trained += int((labels != -100).sum())
                cells = pa.array(np.arange(0, len(ids) + 1, 1024, np.int32))
                ones = pa.array(np.arange(257, dtype=np.int32))
                lists = pa.ListArray.from_arrays
                columns = [
                    lists(cells, pa.array(ids)),
                    lists(cells, pa.array(labels)),
                    lists(ones, pa.array(np.full(256, 1024, np.int32))),
                    lists(ones, pa.array(["x"] * 256)),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        numbers = {"bins": count, "tokens": count * 1024}
        file = {"path": "data/train-0.parquet", **numbers, "bytes": path.stat().st_size}
        tokens = {"total": count * 1024, "trained": trained}
        report = {"turnpack": output.__version__, "bins": count, "rows": count, "capacity": 1024}
        (folder / "report.json").write_text(
            json.dumps({**report, "tokens": tokens, "files": [file]})
        )
        counts = {"rows": count, "tokens": count * 1024}
        output.write_manifest(folder, {"data/train-0.parquet": counts})
        code = (
            "import resource, sys; from turnpack.cli import main; status = main()\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "verify", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return int(done.stdout.split()[-1]) / 1024

    small, large = most(8), most(64)  # 16 and 128 MiB of ids and labels
    assert large < small + 40, f"{small:.0f} and {large:.0f} MiB"


def test_lines_come_as_they_are_found(out):
    """The first before the rest has been looked at."""
    first = shards(out)[0]
    (out / first).unlink()
    totals = Totals()
    assert next(verify(out, totals)) == f"{first} is missing"
    assert totals == Totals()
