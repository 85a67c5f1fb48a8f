"""A run that was stopped goes on to the very bytes of one that was not; see stopped.py."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import at_hand
from chats import one_of_many
from stopped import tree
from turnpack import fast_tokenizer, job, journal, shards
from turnpack import prepare as prepare_module
from turnpack.cli import main
from turnpack.output import HIDDEN, JOURNAL
from turnpack.prepare import OptionError, prepare

STOPPED = Path(__file__).parent / "stopped.py"


@pytest.fixture(scope="module")
def folder():
    return str(at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>"))


@pytest.fixture
def options(tmp_path, folder):
    """Of a run of many files: 400 rows, some bad, one with a weight behind many without."""
    chats = tmp_path / "chats.jsonl"
    with chats.open("wb") as file:
        for number in range(400):
            messages = one_of_many(number)
            if number == 301:
                messages[1]["weight"] = 0.5
            file.write(orjson.dumps({"messages": messages}) + b"\n")
    return {
        "files": str(chats),
        "tokenizer": folder,
        "template": "chatml",
        "max_length": 300,
        "window": 32,
        "shard_tokens": 4000,
        "validation": 0.1,
        "tokenizer_backend": "hf",
        "workers": 1,
    }


def stopped(options, tmp_path, how, moments, **others):
    """What stopped.py tells of each moment; all must have gone on to the same output."""
    asked = {**options, **others, "folder": str(tmp_path), "how": how, "moments": moments}
    done = subprocess.run(
        [sys.executable, str(STOPPED), json.dumps({"chunk": 20, **asked})],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["resumed"], each["same"]) for each in told] == [(0, True)] * len(told), told
    return told, done.stderr


@pytest.mark.parametrize("strategy", ["stream", *at_hand.thorough("best_fit", "none")])
def test_killed_while_it_changes_the_disk(options, tmp_path, strategy):
    moments = [1, 6, *range(12, 700, 61)]
    told, _ = stopped(options, tmp_path, "kill", moments, strategy=strategy)
    killed = [each for each in told if each["status"] == -9]
    assert len(killed) > 4
    assert min(each["entries"] for each in killed) == 0
    assert len({each["entries"] for each in killed}) > 3


@pytest.mark.thorough
def test_killed_while_it_makes_other_formats_and_moves(options, tmp_path):
    others = {"sinks": ["numpy", "megatron", "bridge"], "shard_tokens": 1 << 20}
    moments = [*range(8, 120, 7)]
    told, _ = stopped(options, tmp_path, "kill", moments, **others)
    assert any("moving.json" in name for each in told for name in each["left"])


@pytest.mark.parametrize("strategy", ["stream", *at_hand.thorough("best_fit")])
def test_a_disk_that_fails(options, tmp_path, strategy):
    moments = [3, *range(12, 700, 63)]
    told, errors = stopped(options, tmp_path, "fail", moments, strategy=strategy)
    failed = [each for each in told if each["status"] == 1]
    assert len(failed) > 4
    assert errors.count("OSError [Errno 28] No space left on device") >= len(failed)
    for each in failed:
        begun = [name for name in each["left"] if name.endswith(".part")]
        assert not begun or each["entries"]


@pytest.mark.thorough
def test_killed_at_random_moments(options, tmp_path):
    stopped(options, tmp_path, "time", [random.random() for _ in range(8)])


@pytest.mark.soak
def test_killed_at_many_random_moments(options, tmp_path):
    stopped(options, tmp_path, "time", [random.random() for _ in range(50)])


class Stop(BaseException):
    pass


def interrupt(monkeypatch, entries, run=prepare, **options):
    """A run that stops behind so many entries in the journal."""
    write, made = journal.Journal.write, []

    def stopping(self, *arguments):
        write(self, *arguments)
        made.append(1)
        if len(made) == entries:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", stopping)
        with pytest.raises(Stop):
            run(**options)


@pytest.fixture
def interrupted(options, tmp_path, monkeypatch):
    """A run that stops behind its third entry in the journal, and has left that."""
    monkeypatch.setattr(job, "CHUNK", 20)
    interrupt(monkeypatch, 3, output=tmp_path / "out", **options)
    return options


def test_it_goes_on_where_it_stopped(interrupted, tmp_path):
    whole = prepare(output=tmp_path / "whole", **interrupted)
    told = []
    report = prepare(output=tmp_path / "out", resume=True, progress=told.append, **interrupted)
    assert told[0].rows > 100
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert report.to_dict() == whole.to_dict()


def test_workers_may_be_others(interrupted, tmp_path):
    prepare(output=tmp_path / "whole", **interrupted)
    prepare(output=tmp_path / "out", resume=True, **{**interrupted, "workers": 2})
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"max_length": 200}, "options.max_length was 300, now 200"),
        ({"template": "llama2"}, "template.name was 'chatml', now 'llama2'"),
        ({"window": 33}, "options.window was 32, now 33"),
        ({"system": "Be nice."}, "options.system was absent, now 'Be nice.'"),
        ({"tokenizer": "qwen"}, r"tokenizer.sha256 was '\w{64}', now '\w{64}'"),
    ],
)
def test_another_run_is_refused(interrupted, tmp_path, other, difference):
    if "tokenizer" in other:
        other = {"tokenizer": str(at_hand.folder_of(at_hand.qwen(), eos_token="<|im_end|>"))}
    left = tree(tmp_path / "out")
    with pytest.raises(OptionError, match=difference):
        prepare(output=tmp_path / "out", resume=True, **{**interrupted, **other})
    assert tree(tmp_path / "out") == left


def test_a_changed_input_is_refused(interrupted, tmp_path):
    chats = Path(interrupted["files"])
    before = chats.read_bytes()
    chats.write_bytes(before + before.split(b"\n")[-2] + b"\n")
    with pytest.raises(OptionError, match=r"input\..*chats.jsonl.bytes was \d+, now \d+"):
        prepare(output=tmp_path / "out", resume=True, **interrupted)
    chats.write_bytes(before.replace(b"Question 7 ", b"Question 8 "))
    with pytest.raises(OptionError, match=r"chats.jsonl.changed_ns was 20\d\d-.*, now 20"):
        prepare(output=tmp_path / "out", resume=True, **interrupted)


@pytest.mark.parametrize("others", ["{b} {a}", "{a} {b} {b}", "{a}"])
def test_other_files_or_the_same_in_another_order_are_refused(
    options, tmp_path, monkeypatch, others
):
    chats = Path(options["files"])
    lines = chats.read_bytes().splitlines(keepends=True)
    a, b = str(chats), str(tmp_path / "b.jsonl")
    chats.write_bytes(b"".join(lines[:100]))
    Path(b).write_bytes(b"".join(lines[100:]))
    monkeypatch.setattr(job, "CHUNK", 20)
    output = tmp_path / "out"
    interrupt(monkeypatch, 3, output=output, **{**options, "files": [a, b]})
    left = tree(output)
    named = others.format(a=a, b=b).split()
    with pytest.raises(OptionError, match=r"files\[\d\] was (absent|'.*'), now (absent|'.*')$"):
        prepare(output=output, resume=True, **{**options, "files": named})
    assert tree(output) == left


def test_a_file_name_need_not_be_unicode(options, tmp_path, monkeypatch, capsys):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    os.rename(options["files"], path)
    options = {**options, "files": path}
    monkeypatch.setattr(job, "CHUNK", 20)
    prepare(output=tmp_path / "whole", **options)
    interrupt(monkeypatch, 3, output=tmp_path / "out", **options)
    prepare(output=tmp_path / "out", resume=True, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    prepare(output=tmp_path / "out", resume=True, **options)
    assert main(["verify", str(tmp_path / "out")]) == 0, capsys.readouterr().out
    with pytest.raises(OptionError, match=r"options.seed was 0, now 1"):
        prepare(output=tmp_path / "out", resume=True, **{**options, "seed": 1})


def test_stopped_again_before_the_next_reject(options, tmp_path, monkeypatch):
    """The log that the first run left is longer than the entry that the second goes on from."""
    chats = Path(options["files"])
    lines = chats.read_bytes().replace(b'"bot"', b'"assistant"').splitlines(keepends=True)
    lines[2:2] = [b"{\n"]
    chats.write_bytes(b"".join(lines))
    monkeypatch.setattr(job, "CHUNK", 20)
    prepare(output=tmp_path / "whole", **options)
    interrupt(monkeypatch, 2, output=tmp_path / "out", **options)
    with (tmp_path / "out" / HIDDEN / "new/rejects.jsonl").open("ab") as log:
        log.write(b"x" * 5000)  # of what came behind the entry
    interrupt(monkeypatch, 2, output=tmp_path / "out", resume=True, **options)
    prepare(output=tmp_path / "out", resume=True, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("number", [1, 3, 8])
def test_stopped_while_files_are_given_weights(options, tmp_path, monkeypatch, number):
    monkeypatch.setattr(job, "CHUNK", 20)
    prepare(output=tmp_path / "whole", **options)
    complete, settle, made = prepare_module.complete_weights, shards._settle, []

    def stopping(path):
        settled = settle(path)
        made.append(path)
        if len(made) == number:
            raise Stop
        return settled

    def completing(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(shards, "_settle", stopping)
            complete(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "complete_weights", completing)
        with pytest.raises(Stop):
            prepare(output=tmp_path / "out", **options)
    report = prepare(output=tmp_path / "out", resume=True, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert report.to_dict() == prepare(output=tmp_path / "whole", resume=True, **options).to_dict()


def test_texts_that_were_compared_are_not_compared_again(options, tmp_path, monkeypatch):
    pytest.importorskip("gigatoken")
    fast = {**options, "tokenizer_backend": "auto"}
    fast["tokenizer"] = str(at_hand.folder_of(at_hand.qwen(), eos_token="<|im_end|>"))
    encode = fast_tokenizer.Gigatoken.encode

    def differing(self, texts, continues):
        """Other ids for what no sample holds, and none of the first texts."""
        ids, offsets = encode(self, texts, continues)
        ids = ids.copy()
        for place, text in enumerate(texts):
            late = any(f"Question {number} " in text for number in range(200, 400))
            if late and not fast_tokenizer.sampled([text], fast_tokenizer.ONE_IN):
                ids[offsets[place]] += 1
        return ids, offsets

    monkeypatch.setattr(fast_tokenizer.Gigatoken, "encode", differing)
    monkeypatch.setattr(job, "CHUNK", 20)
    whole = prepare(output=tmp_path / "whole", **fast)
    assert "exact_because" not in whole.tokenizer
    interrupt(monkeypatch, 4, output=tmp_path / "out", **fast)
    again = prepare(output=tmp_path / "out", resume=True, **fast)
    assert again.compared == whole.compared
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_another_version_is_refused(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr("turnpack.prepare.__version__", "99")
    with pytest.raises(OptionError, match=r"turnpack was '.*', now '99'"):
        prepare(output=tmp_path / "out", resume=True, **interrupted)


def test_a_file_that_is_gone(interrupted, tmp_path):
    first = min((tmp_path / "out" / HIDDEN / "new/data").iterdir())
    first.unlink()
    with pytest.raises(OptionError, match=f"{first.name} .*is not as it was written"):
        prepare(output=tmp_path / "out", resume=True, **interrupted)


def test_without_resume_it_begins_anew(interrupted, tmp_path):
    prepare(output=tmp_path / "out", **{**interrupted, "seed": 5})
    prepare(output=tmp_path / "whole", **{**interrupted, "seed": 5})
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_there_need_be_nothing_to_resume(options, tmp_path):
    prepare(output=tmp_path / "whole", **options)
    prepare(output=tmp_path / "out", resume=True, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_complete_output_is_left_as_it_is(options, tmp_path, monkeypatch):
    report = prepare(output=tmp_path / "out", **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr(job.Job, "run", None)
    again = prepare(output=tmp_path / "out", resume=True, **options)
    assert again == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(OptionError, match=r"options.seed was 0, now 1"):
        prepare(output=tmp_path / "out", resume=True, **{**options, "seed": 1})


def test_of_two_runs_the_second_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "CHUNK", 200)
    refused = []

    def meanwhile(now):
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} is writing there"):
                prepare(output=tmp_path / "out", resume=resume, **options)
            refused.append(now)

    prepare(output=tmp_path / "out", progress=meanwhile, **options)
    prepare(output=tmp_path / "whole", **options)
    assert len(refused) >= 4
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_the_command_line_says_how_to_go_on(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "CHUNK", 20)
    arguments = ["prepare", options["files"], "--output", str(tmp_path / "out")]
    for name in ("tokenizer", "template", "max_length", "shard_tokens", "window"):
        arguments += ["--" + name.replace("_", "-"), str(options[name])]
    write = journal.Journal.write

    def stopping(self, *rest):
        write(self, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", stopping)
        assert main(arguments) == 130
    assert capsys.readouterr().err == (
        "turnpack: error: interrupted; the same command with --resume goes on\n"
    )
    assert (tmp_path / "out" / HIDDEN / JOURNAL).exists()
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--resume", "--seed", "4"]) == 2
    assert "options.seed was 0, now 4" in capsys.readouterr().err
