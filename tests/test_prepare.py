"""The offline job: everything read is packed or rejected, once, and a directory is whole or not."""

import errno
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import at_hand
from turnpack import job, kernels, output, pipeline, records, shards, tokenizers
from turnpack import prepare as whole_job
from turnpack.cli import main
from turnpack.encode import Encoder
from turnpack.nouns import Reject, RowError
from turnpack.prepare import OptionError, prepare
from turnpack.templates import ChatTemplate, get_template

BAD = [
    b'{"messages": [{"role": "user", "content": "only a question"}]}',
    b'{"messages": [{"role": "bot", "content": "x"}, {"role": "user", "content": "y"}]}',
    b'{"messages": [',
    b'{"messages": []}',
]


def good(number, answer="Fine, and you? 好的 👍🏽"):
    messages = [
        {"role": "user", "content": f"Question {number} " + "why? " * (number % 40)},
        {"role": "assistant", "content": answer},
    ]
    return orjson.dumps({"messages": messages})


def die(rows, exact):
    os._exit(9)


def sleep(rows, exact):
    time.sleep(100)


@pytest.fixture(scope="module")
def folder():
    return at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>")


@pytest.fixture
def chats(tmp_path):
    """60 good rows and 4 bad ones in a JSONL, 2 rows in a JSON file of another format."""
    lines = [good(number) for number in range(60)]
    for place, line in zip((0, 7, 30, 63), BAD, strict=True):
        lines.insert(place, line)
    first = tmp_path / "chats.jsonl"
    first.write_bytes(b"\n".join(lines) + b"\n")
    second = tmp_path / "alpaca.json"
    second.write_text(
        json.dumps([{"instruction": f"Say {n}", "input": "", "output": str(n)} for n in (1, 2)])
    )
    return [str(first), str(second)]


@pytest.fixture
def run(chats, folder, tmp_path):
    def prepared(files=chats, to="out", **options):
        defaults = {"tokenizer": folder, "template": "chatml", "max_length": 300}
        return prepare(files, output=tmp_path / to, **{**defaults, **options})

    return prepared


def bins(directory):
    files = sorted((directory / "data").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def documents(directory):
    """(source, ids, labels) of every row, cut out of the bins."""
    for row in bins(directory):
        ends = np.cumsum([0, *row["seq_lengths"]]).tolist()
        for source, start, end in zip(row["source"], ends[:-1], ends[1:], strict=True):
            yield source, row["input_ids"][start:end], row["labels"][start:end]


def data_bytes(directory):
    return {file.name: file.read_bytes() for file in (directory / "data").iterdir()}


def tree(directory):
    """Every path below with its content, hidden ones included."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def test_read_is_packed_and_rejected(run, tmp_path, chats):
    report = run()
    rejects = [
        json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().split("\n")[:-1]
    ]
    packed = [source for source, _, _ in documents(tmp_path / "out")]
    assert report.conversations == {"read": 66, "packed": 62, "rejected": 4}
    assert (len(set(packed)), len(packed), len(rejects)) == (62, 62, 4)
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (1, "nothing to train on"),
        (8, "unknown role"),
        (31, "invalid JSON"),
        (64, "empty conversation"),
    ]
    assert {reject["file"] for reject in rejects} == {chats[0]}
    assert rejects[1]["row"] == json.loads(BAD[1])
    assert rejects[2]["row"] == BAD[2].decode()
    assert report.rejected_by_reason == Counter(reject["reason"] for reject in rejects)
    assert [(f["file"], f["read"], f["packed"], f["rejected"]) for f in report.inputs] == [
        (chats[0], 64, 60, 4),
        (chats[1], 2, 2, 0),
    ]


def test_bins_hold_the_rows_that_the_encoder_makes(run, tmp_path, folder, chats):
    run(seed=3)
    encoder = Encoder(tokenizers.load(folder), "chatml", max_length=300)
    expected = {}
    for item in records.read(chats):
        rejects = []
        tokens = encoder([item], rejects) if not isinstance(item, Reject) else None
        if tokens is None or rejects:
            continue
        mask = tokens.loss_mask.tolist()
        ids = tokens.input_ids.tolist()
        labels = [id if target else -100 for id, target in zip(ids, mask, strict=True)]
        expected[str(item.source)] = (ids, labels)
    assert {
        source: (ids, labels) for source, ids, labels in documents(tmp_path / "out")
    } == expected


def test_the_report_counts_what_is_written(run, tmp_path):
    report = run(capacity=400)
    out = tmp_path / "out"
    assert json.loads((out / "report.json").read_text()) == report.to_dict()
    rows = bins(out)
    total = sum(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    assert report.tokens == {"total": total, "trained": trained, "share": trained / total}
    assert (report.bins, report.capacity, report.rows) == (len(rows), 400, 62)
    assert report.utilization == pytest.approx(total / (400 * len(rows)))
    assert max(len(row["input_ids"]) for row in rows) <= 400
    assert set(report.seconds) == {*job.STAGES, "page", "total"}
    assert json.loads((out / "run.json").read_text())["seconds"] == report.seconds
    assert report.template["name"] == "chatml"
    assert len(report.template["sha256"]) == len(report.tokenizer["sha256"]) == 64
    assert report.options["strategy"] == "stream"


def test_the_page_can_be_written_later(run, tmp_path, capsys):
    run(to="whole", page=True)
    run(page=False)
    assert not (tmp_path / "out/report.html").exists()
    for command in ("verify", "report", "verify"):
        assert main([command, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/report.html").stat().st_size > 1000


def test_the_manifest_lists_every_file(run, tmp_path):
    import hashlib

    run()
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    listed = {file["path"]: file for file in manifest["files"]}
    there = {name: content for name, content in tree(out).items() if content is not None}
    assert set(listed) == set(there) - {"manifest.json", "run.json"}
    for name, file in listed.items():
        assert file["bytes"] == len(there[name])
        assert file["sha256"] == hashlib.sha256(there[name]).hexdigest()
    data = listed["data/train-00000.parquet"]
    assert data["rows"] == len(bins(out))
    assert data["tokens"] == sum(len(row["input_ids"]) for row in bins(out))
    assert {name for name in os.listdir(out) if name.startswith(".")} == set()


def test_the_tokenizer_is_kept(run, tmp_path, folder):
    report = run()
    kept = tokenizers.load(tmp_path / "out/tokenizer")
    assert kept.fingerprint() == tokenizers.load(folder).fingerprint() == report.tokenizer["sha256"]


def test_workers_change_no_byte(run, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "CHUNK", 7)
    alone = run(to="one")
    together = run(to="two", workers=2)
    assert data_bytes(tmp_path / "one") == data_bytes(tmp_path / "two")
    for name in ("rejects.jsonl",):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert alone.conversations == together.conversations
    assert alone.warnings == together.warnings


def test_the_tokenizers_own_template(run, tmp_path):
    """The same bins as the named template of that text; each worker has a template of its own."""
    source = get_template("chatml").to_jinja()
    own = at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>", chat_template=source)
    named = run(to="named")
    (tmp_path / "mine.jinja").write_text(source)
    for name, template in (("auto", "auto"), ("file", str(tmp_path / "mine.jinja"))):
        report = run(to=name, tokenizer=own, template=template, workers=2)
        assert data_bytes(tmp_path / name) == data_bytes(tmp_path / "named")
        assert report.rejected_by_reason == named.rejected_by_reason
    assert report.template["name"] == "mine"
    with pytest.raises(OptionError, match="comes with no chat template"):
        run(template="auto")


def test_warnings_of_a_chat_template_are_counted(run):
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {{ '<think>' }}{% endif %}"
    )
    report = run(template=ChatTemplate(source))
    packed = report.conversations["packed"]
    assert report.warnings["no stop token"] == report.warnings["prompt differs"] == packed


def test_the_size_of_chunks_changes_no_row(run, tmp_path, monkeypatch):
    run(to="one")
    monkeypatch.setattr(job, "CHUNK", 5)
    run(to="two")
    assert data_bytes(tmp_path / "one") == data_bytes(tmp_path / "two")


def test_a_worker_that_dies_is_one_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_in_worker", die)
    with pytest.raises(ChildProcessError, match="a worker process died"):
        run(workers=2, tokenizer_backend="hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_long_rows_are_encoded_few_at_a_time(run, tmp_path, monkeypatch, kind):
    rows = [json.loads(good(number, "Fine. " * 1000)) for number in range(30)]
    path = tmp_path / f"long.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = orjson.dumps(rows) if kind == "json" else b"\n".join(map(orjson.dumps, rows))
        path.write_bytes(lines)
    monkeypatch.setattr(job, "CHUNK_BYTES", 20_000)
    told = []
    run([str(path)], progress=told.append)
    read = [0, *(now.rows for now in told if now.stage == "encode")]
    assert read[-1] == 30
    assert max(now - before for before, now in itertools.pairwise(read)) == 4


def test_workers_of_a_script_without_a_guard_are_one_error(tmp_path):
    """Each worker runs the script again, and dies before it has read what it was started with."""
    (tmp_path / "chats.jsonl").write_bytes(b"\n".join(good(number) for number in range(900)))
    tokenizer = at_hand.folder_of(at_hand.qwen(), eos_token="<|im_end|>")
    (tmp_path / "script.py").write_text(
        "import turnpack.prepare\n"
        f"turnpack.prepare.prepare('chats.jsonl', tokenizer='{tokenizer}', template='chatml',\n"
        "    max_length=300, output='out', workers=2, tokenizer_backend='hf')\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "ChildProcessError: a worker process died" in done.stderr.splitlines()[-1]


def test_workers_are_stopped_in_the_midst_of_a_chunk(run, monkeypatch):
    monkeypatch.setattr(pipeline, "_in_worker", sleep)
    begun = time.monotonic()

    def interrupt():
        while not multiprocessing.active_children():
            time.sleep(0.1)
        time.sleep(5)  # the workers have started
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(workers=2, tokenizer_backend="hf")
    assert time.monotonic() - begun < 90
    assert not multiprocessing.active_children()


def test_seeds_order_the_bins(run, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(to=name, seed=seed)
    a, b, c = (bins(tmp_path / name) for name in "abc")
    assert data_bytes(tmp_path / "a") == data_bytes(tmp_path / "b")
    assert a == b != c
    assert sorted(map(str, a)) == sorted(map(str, c))


def test_shards_and_row_groups_are_bounded(run, tmp_path, monkeypatch):
    run(to="one", strategy="best_fit")
    monkeypatch.setattr(shards, "GROUP_TOKENS", 600)
    report = run(to="many", strategy="best_fit", shard_tokens=1200)
    names = sorted(file.name for file in (tmp_path / "many/data").iterdir())
    count = len(names)
    assert count > 2
    assert names == [f"train-{number:05}.parquet" for number in range(count)]
    assert bins(tmp_path / "one") == bins(tmp_path / "many")
    for file in report.files:
        metadata = pq.read_metadata(tmp_path / "many" / file["path"])
        assert 0 < file["tokens"] <= 1200
        assert metadata.num_rows == file["bins"]
        assert metadata.num_row_groups > 1 or file["tokens"] <= 600
        assert file["bytes"] == (tmp_path / "many" / file["path"]).stat().st_size


def test_split_conversations_count_once(run, tmp_path):
    report = run(max_length=60, truncate="split")
    sources = [source for source, _, _ in documents(tmp_path / "out")]
    assert report.rows == len(sources) > len(set(sources)) == report.conversations["packed"]
    assert report.conversations["read"] == 66


def test_weights_are_written_where_there_are_any(run, tmp_path):
    row = json.loads(good(1))
    row["messages"][1]["weight"] = 0.5
    path = tmp_path / "weighted.jsonl"
    path.write_bytes(good(0) + b"\n" + json.dumps(row).encode() + b"\n")
    run([path])
    seen = set()
    for packed in bins(tmp_path / "out"):
        for label, weight in zip(packed["labels"], packed["loss_weights"], strict=True):
            seen.add((label != -100, weight))
    assert seen == {(False, 0.0), (True, 1.0), (True, 0.5)}


def test_system_bos_and_format_are_passed_on(run, tmp_path, chats):
    run(
        chats[:1],
        system="Speak like a pirate.",
        format="messages",
        template="llama2",
        eos_token="<|im_end|>",
    )
    backend = tokenizers.load(tmp_path / "out/tokenizer")
    assert backend.eos == "<|im_end|>"
    _, ids, _ = next(iter(documents(tmp_path / "out")))
    assert "<<SYS>>\nSpeak like a pirate.\n<</SYS>>" in backend.decode(ids)
    assert ids[-1] == backend.control_id("<|im_end|>")


def test_strict_stops_at_the_first_bad_row(run, tmp_path, chats, monkeypatch):
    monkeypatch.setattr(job, "CHUNK", 5)
    report = run()
    first = report.rejected_by_reason
    assert len(first) == 4
    for workers in (1, 2):
        with pytest.raises(RowError, match="nothing to train on") as caught:
            run(to="strict", strict=True, workers=workers)
        assert str(caught.value).startswith(f"{chats[0]}:1: nothing to train on")
        assert not (tmp_path / "strict").exists()


def test_nothing_to_pack_is_a_run_without_bins(run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(BAD))
    report = run([path])
    assert report.conversations == {"read": 4, "packed": 0, "rejected": 4}
    assert (report.bins, report.utilization, report.tokens["share"]) == (0, 0.0, 0.0)
    assert list((tmp_path / "out/data").iterdir()) == []
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 4
    path.write_bytes(b"")
    assert run([path]).conversations == {"read": 0, "packed": 0, "rejected": 0}


def test_progress_tells_how_far_it_is(run, monkeypatch):
    monkeypatch.setattr(job, "CHUNK", 10)
    told = []
    report = run(progress=told.append, strategy="best_fit")
    encoding = [now for now in told if now.stage == "encode"]
    writing = [now for now in told if now.stage == "write"]
    assert [now.rows for now in encoding] == [10, 20, 30, 40, 50, 60, 66]
    assert all(0 < now.done <= now.total for now in told)
    assert (writing[-1].done, writing[-1].total) == (report.tokens["total"],) * 2
    assert writing[-1].rejected == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"capacity": 100}, "capacity 100 is less than max_length 300"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"seed": -1}, "seed must not be negative, but is -1"),
        ({"strategy": "random"}, "strategy"),
        ({"truncate": "left"}, "truncate must be one of"),
        ({"format": "xml"}, "format"),
        ({"template": "nope"}, "unknown template 'nope'; there are: .*chatml"),
    ],
)
def test_bad_options_stop_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        run(**options)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_stops_before_anything_is_written(run, tmp_path, chats):
    with pytest.raises(FileNotFoundError):
        run([*chats, tmp_path / "missing.jsonl"])
    assert not (tmp_path / "out").exists()


def test_a_file_name_need_not_be_unicode(run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(path).write_bytes(b"\n".join([good(1), BAD[0]]))
    run([path])
    assert bins(tmp_path / "out")[0]["source"] == [f"{tmp_path}/\\udcff.jsonl:1"]
    spelled = f"{tmp_path}/\\udcff.jsonl"
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["inputs"][0]["file"] == spelled
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text())["file"] == spelled


# -- the directory --------------------------------------------------------------------------------


def test_an_earlier_output_is_replaced_as_a_whole(run, tmp_path, chats):
    run(shard_tokens=1200)
    (tmp_path / "out/mine.txt").write_text("a file of somebody else")
    assert len(list((tmp_path / "out/data").iterdir())) > 1
    run(chats[1:])
    assert len(list((tmp_path / "out/data").iterdir())) == 1
    assert (tmp_path / "out/mine.txt").read_text() == "a file of somebody else"
    assert (tmp_path / "out/rejects.jsonl").read_text() == ""
    assert {name for name in os.listdir(tmp_path / "out") if name.startswith(".")} == set()


@pytest.mark.parametrize("name", ["data", "tokenizer", "report.json"])
def test_what_turnpack_did_not_write_is_not_replaced(run, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out/manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(FileExistsError, match="it is not replaced"):
        run()
    assert set(tree(tmp_path / "out")) == {name, "manifest.json"}


@pytest.mark.parametrize("folder_of", ["megatron", "bridge", "data"])
def test_what_lies_among_its_files_is_not_replaced(run, tmp_path, folder_of):
    run(sinks=["megatron", "bridge"])
    (tmp_path / "out" / folder_of / "mine.txt").write_text("a file of somebody else")
    before = tree(tmp_path / "out")
    with pytest.raises(FileExistsError, match=f"holds {folder_of}/mine.txt, which turnpack did"):
        run(seed=9)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["rejects.jsonl", "data/train-00000.parquet"])
def test_what_would_be_replaced_is_no_input(run, tmp_path, name):
    run()
    before = tree(tmp_path / "out")
    with pytest.raises(OptionError, match=f"{name} is part of the output"):
        run([str(tmp_path / "out" / name)])
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize(
    "where",
    [
        "shards.ParquetSink.write",
        "shards.ParquetSink.close",
        "kernels.pack",
        "whole_job.write_json",
        "whole_job.write_manifest",
        "whole_job.write_page",
    ],
)
def test_a_failure_leaves_the_earlier_output(run, tmp_path, monkeypatch, where, error):
    run(to="out")
    before = tree(tmp_path / "out")
    owner, _, attribute = where.rpartition(".")
    first, *rest = owner.split(".")
    place = {"shards": shards, "kernels": kernels, "whole_job": whole_job}[first]
    for part in rest:
        place = getattr(place, part)

    def failing(*arguments, **options):
        raise error

    monkeypatch.setattr(place, attribute, failing)
    for to in ("out", "new/deep"):
        with pytest.raises(type(error)):
            run(to=to, seed=9)
    assert tree(tmp_path / "out") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", range(12))
def test_a_move_that_fails_is_undone(run, tmp_path, monkeypatch, number):
    run()
    before = tree(tmp_path / "out")
    calls = []
    rename = os.rename

    def failing(source, target):
        calls.append(source)
        if len(calls) == number + 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(output.os, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run(seed=9)
    assert tree(tmp_path / "out") == before


def test_a_directory_that_cannot_be_made_stops_before_any_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(job.Job, "run", None)
    with pytest.raises(NotADirectoryError):
        run(to="file/out")
    with pytest.raises(FileExistsError):
        run(to="file")


@pytest.mark.parametrize("value", ["\ud800", 1 << 70, {1: float("nan")}, b"\xff", [[]]])
def test_any_row_can_be_written_to_the_rejects(value):
    line = output.json_line({"row": value})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    json.loads(line)


# -- real data ------------------------------------------------------------------------------------


@at_hand.needs_shared
@pytest.mark.parametrize(
    ("tokenizer", "template"), [(at_hand.deepseek, "llama2"), (at_hand.mistral_v1, "alpaca")]
)
def test_real_files_of_all_formats_are_conserved(tmp_path, tokenizer, template):
    data = at_hand.SHARED / "data"
    files = sorted(path for path in data.iterdir() if path.suffix in (".json", ".jsonl"))
    held = {
        path: len(
            json.loads(path.read_text())
            if path.suffix == ".json"
            else path.read_text().rstrip("\n").split("\n")
        )
        for path in files
    }
    report = prepare(
        files, tokenizer=tokenizer(), template=template, max_length=512, output=tmp_path / "out"
    )
    out = tmp_path / "out"
    packed = Counter(
        Path(s.rpartition("[")[0] or s.rpartition(":")[0]) for s, _, _ in documents(out)
    )
    rejected = Counter(
        Path(json.loads(line)["file"])
        for line in (out / "rejects.jsonl").read_text().split("\n")[:-1]
    )
    for path, number in held.items():
        assert packed[path] + rejected[path] == number
    sources = [source for source, _, _ in documents(out)]
    assert len(sources) == len(set(sources)) == report.conversations["packed"] > 15_000
    assert report.utilization > 0.97  # sources one after the other, 0.98 with best_fit
