"""What other systems lack or refuse is not asked of them; see elsewhere.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import at_hand
from chats import one_of_many
from stopped import tree
from turnpack import system
from turnpack.cli import main

ROOT = Path(__file__).parents[1]
OTHERS = ["darwin", "win32"]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux plays the others")


@pytest.fixture(scope="module")
def folder():
    return str(at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>"))


@pytest.fixture
def command(tmp_path, folder):
    """Of a run with every format and a bad row, without its output."""
    chats = tmp_path / "chats.jsonl"
    with chats.open("wb") as file:
        for number in range(60):
            file.write(orjson.dumps({"messages": one_of_many(number)}) + b"\n")
    return [
        *("prepare", str(chats), "--tokenizer", folder, "--template", "chatml"),
        *("--max-length", "300", "--sink", "numpy", "--sink", "megatron", "--tokenizer-backend"),
        *("hf", "--output"),
    ]


def elsewhere(which, *arguments):
    script = Path(__file__).with_name("elsewhere.py")
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", str(script), which, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@on_linux
@pytest.mark.parametrize("which", OTHERS)
def test_an_output_is_the_same_anywhere(command, tmp_path, which):
    out, here = tmp_path / "out", tmp_path / "here"
    assert main([*command, str(here)]) == 0
    for options in ([], ["--seed", "1"], ["--workers", "2"]):  # each replaces the one before
        done = elsewhere(which, *command, str(out), *options)
        assert (done.returncode, done.stderr) == (0, "")
    assert tree(out) == tree(here)
    done = elsewhere(which, "verify", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert elsewhere(which, "preview", str(out), "--html", str(tmp_path / "a.html")).stderr == ""
    assert main(["preview", str(out), "--html", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@on_linux
@pytest.mark.parametrize("which", OTHERS)
def test_two_runs_exclude_each_other_anywhere(command, tmp_path, which):
    hidden = tmp_path / "out/.turnpack"
    hidden.mkdir(parents=True)
    with (hidden / "lock").open("wb") as lock:
        lock.write(b"process 17")
        lock.flush()
        system.lock(lock.fileno())
        done = elsewhere(which, *command, str(tmp_path / "out"))
        assert done.returncode == 2
        assert "process 17 is writing there" in done.stderr
        assert hidden.exists()
    # What a run that was killed leaves holds up nobody.
    done = elsewhere(which, *command, str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert not hidden.exists()


@on_linux
@pytest.mark.parametrize("which", OTHERS)
def test_a_stopped_run_leaves_nothing_anywhere(command, tmp_path, which):
    done = elsewhere(which, *command, str(tmp_path / "new/out"), "--strict")
    assert done.returncode == 1
    assert not (tmp_path / "new").exists()


def test_no_other_module_asks_for_the_system():
    asks = re.compile(r"sys\.platform|os\.name\b|\bfcntl\b|\bmsvcrt\b|hasattr\(os,")
    found = {
        path.name for path in (ROOT / "src").rglob("*.py") if asks.search(path.read_text("utf-8"))
    }
    assert found == {"system.py"}


def test_a_job_runs_here(command, tmp_path):
    assert main([*command, str(tmp_path / "out")]) == 0
    assert main([*command, str(tmp_path / "out"), "--seed", "1", "--workers", "2"]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out/.turnpack").exists()


def test_a_lock_goes_with_the_file(tmp_path):
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert system.try_lock(one.fileno())
        assert not system.try_lock(other.fileno())
        one.close()
        assert system.try_lock(other.fileno())


def test_there_is_a_processor():
    assert 1 <= system.processors() <= os.cpu_count()
