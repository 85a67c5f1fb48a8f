"""The command line: what it prints, its exit codes, one line for what a person gets wrong."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import at_hand
import turnpack
from turnpack import prepare as job
from turnpack.cli import main

GOOD = {
    "messages": [
        {"role": "user", "content": "你好 👋🏽 \x1b[31m"},
        {"role": "assistant", "content": "Hello!\n\tIndented"},
    ]
}
BAD = {"messages": [{"role": "bot\x1b[2J", "content": "x"}]}


@pytest.fixture(scope="module")
def folder():
    return str(at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>"))


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, BAD, GOOD)))
    return str(path)


@pytest.fixture
def arguments(chats, folder, tmp_path):
    encoding = ["--tokenizer", folder, "--template", "chatml", "--max-length", "200"]
    return ["prepare", chats, *encoding, "--output", str(tmp_path / "out")]


def instead(arguments, **options):
    """The arguments with other values; None leaves an option out."""
    changed = list(arguments)
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if flag in changed:
            at = changed.index(flag)
            del changed[at : at + 2]
        if value is not None:
            changed += [flag, str(value)]
    return changed


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", "import sys; from turnpack.cli import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def one_error(capsys, code, arguments):
    """Run, and return the one line that is on stderr."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("turnpack: error: ")
    assert not re.search("[\x00-\x1f\x7f-\x9f]", line)
    return line.removeprefix("turnpack: error: ")


# -- prepare --------------------------------------------------------------------------------------


def test_prepare_ends_with_a_short_table(capsys, arguments, tmp_path):
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [re.split("  +", line.strip(), maxsplit=1) for line in captured.out.splitlines()[:-1]]
    text = dict(lines)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert text["rows read"] == "3"
    assert text["rejected"] == text["unknown role"] == "1"
    assert text["tokens"] == str(report["tokens"]["total"])
    assert text["trained on"].endswith(f"({report['tokens']['share']:.1%})")
    assert text["bins"] == f"{report['bins']} of 200 tokens"
    assert "tokenize" in text["seconds"]
    last = captured.out.splitlines()[-1]
    assert str(tmp_path / "out/data") in last
    assert str(tmp_path / "out/report.html") in last


SINKS = ["--sink", "numpy", "--sink", "megatron"]


def test_every_option_arrives(capsys, arguments, tmp_path):
    options = {
        "capacity": "300",
        "strategy": "in_order",
        "truncate": "turns",
        "train_on": "last",
        "boundary": "whole",
        "seed": "7",
        "system": "Be nice.",
        "window": "50",
        "validation": "0.5",
        "shard_tokens": "1000",
        "format": "messages",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "tokenizer_backend": "hf",
    }
    assert main([*instead(arguments, **options), "--workers", "1", "--resume", *SINKS]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    numbers = {"capacity": 300, "seed": 7, "max_length": 200, "window": 50, "shard_tokens": 1000}
    numbers["validation"] = 0.5
    flags = {"strict": False, "sinks": ["megatron", "numpy"], "page": True}
    assert report["options"] == {**options, **numbers, **flags}


def test_workers_from_the_command_line(arguments, tmp_path):
    done = command(*instead(arguments, workers=2))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out/manifest.json").exists()


def test_strict_names_the_first_bad_row(capsys, arguments, tmp_path, chats):
    line = one_error(capsys, 1, [*arguments, "--strict"])
    assert line == f"{chats}:2: unknown role: message 0 has role 'bot\\x1b[2J'"
    assert not (tmp_path / "out").exists()


def test_nothing_to_pack_is_exit_code_1(capsys, arguments, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(BAD) + "\n")
    arguments[1] = str(path)
    line = one_error(capsys, 1, arguments)
    assert line == f"nothing to pack: 1 read, 1 rejected, see {tmp_path}/out/rejects.jsonl"
    path.write_text("")
    assert one_error(capsys, 1, arguments) == "nothing to pack: the input has no rows"


def test_a_missing_marker_is_one_warning(arguments, tmp_path):
    tokenizer = json.loads((tmp_path.parent / arguments[3] / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        if token["content"] == "<|im_start|>":
            token["content"] = "<|other|>"
    (tmp_path / "t").mkdir()
    (tmp_path / "t/tokenizer.json").write_text(json.dumps(tokenizer))
    done = command(*instead(arguments, tokenizer=tmp_path / "t"))
    assert done.returncode == 0
    assert done.stderr == (
        "turnpack: warning: template chatml: the tokenizer has no token <|im_start|>: "
        "written as text\n"
    )


# -- what a person gets wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "nope"}, r"unknown template 'nope'; there are: alpaca, .*chatml.*"),
        ({"template": None}, r"Missing option '--template'\."),
        ({"output": None}, r"Missing option '--output'\."),
        ({"max_length": "0"}, r"max_length must be at least 1, not 0"),
        ({"max_length": "-5"}, r"max_length must be at least 1, not -5"),
        ({"max_length": "many"}, r"Invalid value for '--max-length': 'many' is not .* integer\."),
        ({"capacity": "10"}, r"capacity 10 is less than max_length 200"),
        ({"strategy": "best"}, r"strategy must be one of stream, .*none, not 'best'"),
        ({"truncate": "left"}, r"truncate must be one of right, turns, split, reject, not 'left'"),
        ({"train_on": "user"}, r"train_on must be one of assistant, last, all, not 'user'"),
        ({"boundary": "soft"}, r"boundary must be one of cut, whole, not 'soft'"),
        ({"format": "xml"}, r"unknown format 'xml'; there are .*alpaca.*"),
        ({"workers": "0"}, r"workers must be at least 1, not 0"),
        ({"seed": "-1"}, r"seed must not be negative, but is -1"),
        ({"tokenizer": "/no/such/place"}, r"tokenizer /no/such/place: no such file or folder"),
        (
            {"tokenizer": __file__},
            r".*test_cli\.py is neither a tokenizer.json nor a Sent.*: .*",
        ),
        ({"tokenizer": os.path.dirname(__file__)}, r".* holds no tokenizer: .*"),
        ({"eos_token": "<nope>", "template": "alpaca"}, r"template alpaca writes EOS '<nope>'.*"),
        ({"output": "/proc/turnpack"}, r"/proc/turnpack: .*"),
        ({"output": "/proc"}, r"/proc: .*"),
        ({"output": f"{__file__}/out"}, r".*test_cli\.py/out: Not a directory"),
        ({"output": "/dev/null"}, r"/dev/null: File exists"),
        ({"no_such_option": "1"}, r"No such option '?--no-such-option'?\.?.*"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(capsys, arguments, options, message):
    line = one_error(capsys, 2, instead(arguments, **options))
    assert re.fullmatch(message, line)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", r".*missing\.jsonl: No such file or directory"),
        ("evil\n\x1b[2J.jsonl", r".*evil ⟨U\+001B⟩\[2J\.jsonl: No such file or directory"),
        ("", r".*: Is a directory"),
        ("notes.docx", r".*notes\.docx: unknown file type.*"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(capsys, arguments, tmp_path, name, message):
    (tmp_path / "notes.docx").write_text("")
    arguments[1] = str(tmp_path / name)
    assert re.fullmatch(message, one_error(capsys, 2, arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Missing command\."),
        (["prepair"], r"No such command 'prepair'\..*"),
        (["--nope"], r"No such option '?--nope'?\.?.*"),
        (["prepare"], r"Missing argument 'FILE\.\.\.'\."),
        (["preview", __file__], r".*unknown file type; .*"),
        (["templates", "nope"], r"unknown template 'nope'; there are: .*"),
        (["templates", "chatml", "llama2"], r"Got unexpected extra argument.*"),
        (["preview"], r"Missing argument 'FILE\|DIR'\."),
        (["preview", "/no/such/dir"], r"/no/such/dir: No such file or directory"),
        (["preview", os.path.dirname(__file__)], r".*/tests holds no bins: .*"),
        (["preview", "x", "--bins", "0"], r"Invalid value for '--bins': 0 is not in the range.*"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert re.fullmatch(message, one_error(capsys, 2, arguments))


def test_a_directory_of_somebody_else_is_refused(capsys, arguments, tmp_path):
    (tmp_path / "out/data").mkdir(parents=True)
    line = one_error(capsys, 2, arguments)
    assert "holds data, but no manifest.json of turnpack" in line


def test_a_file_among_ours_that_we_did_not_write_is_refused(capsys, arguments, tmp_path):
    assert main(arguments) == 0
    own = tmp_path / "out/data/mine.jsonl"
    own.write_text("{}")
    capsys.readouterr()
    line = one_error(capsys, 2, arguments)
    assert "holds data/mine.jsonl, which turnpack did not write" in line
    assert own.read_text() == "{}"


def test_an_empty_output_is_no_directory(capsys, arguments):
    line = one_error(capsys, 2, instead(arguments, output=""))
    assert line == "output is empty, not a directory"


def test_bins_of_another_tokenizer(capsys, arguments, tmp_path):
    assert main(instead(arguments, tokenizer=at_hand.deepseek(), template="alpaca")) == 0
    capsys.readouterr()
    other = str(at_hand.mistral_v1())
    line = one_error(capsys, 2, ["preview", str(tmp_path / "out"), "--tokenizer", other])
    assert "holds no bins of this tokenizer" in line


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(arguments, closed):
    words = [sys.executable, "-m", "turnpack.cli", *arguments]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} {closed}"], capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_directory_without_permission_is_one_line(capsys, arguments, tmp_path, monkeypatch):
    make = Path.mkdir

    def refuse(path, *rest, **options):  # root, who may run this, writes anywhere
        if path.name == ".turnpack":
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *rest, **options)

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    line = one_error(capsys, 2, instead(arguments, output=tmp_path / "locked"))
    assert line == f"{tmp_path / 'locked'}: Permission denied"
    assert not (tmp_path / "locked").exists()


def test_errors_are_not_wrapped_and_not_coloured(arguments):
    name = "very-long-name-" * 12 + ".jsonl"
    done = command(
        *["prepare", name, *arguments[2:]],
        env={**os.environ, "COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"turnpack: error: {name}: No such file or directory\n"


def test_a_full_disk_is_one_line(capsys, arguments, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "write_json", full)
    assert one_error(capsys, 2, arguments) == "[Errno 28] No space left on device"


def test_a_bug_keeps_its_traceback(arguments, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(job, "write_json", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_the_run_and_leaves_nothing(arguments, tmp_path, number, workers):
    rows = tmp_path / "many.jsonl"
    rows.write_text((json.dumps(GOOD) + "\n") * 300_000)
    arguments[1] = str(rows)
    started = subprocess.Popen(
        [sys.executable, "-m", "turnpack.cli", *instead(arguments, workers=workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while started.poll() is None and not (tmp_path / "out").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(started.pid, number)
    out, err = started.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert (started.returncode, err) == (130, "turnpack: error: interrupted\n")
    else:
        assert started.returncode != 0
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_workers_end_with_a_parent_that_was_killed(arguments, tmp_path):
    rows = tmp_path / "many.jsonl"
    rows.write_text((json.dumps(GOOD) + "\n") * 300_000)
    arguments[1] = str(rows)
    started = subprocess.Popen(
        [sys.executable, "-m", "turnpack.cli", *instead(arguments, workers=2)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    while len(children.read_text().split()) < 3:  # two workers and multiprocessing's tracker
        time.sleep(0.01)
    time.sleep(1)
    started.kill()
    started.wait()
    patience = time.monotonic() + 30
    while True:
        try:
            os.killpg(started.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < patience
        time.sleep(0.05)


# -- preview, templates and the rest --------------------------------------------------------------


def test_preview_shows_bins(capsys, arguments, tmp_path, chats):
    main(arguments)
    capsys.readouterr()
    assert main(["preview", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "━━ bin 0 of train-00000.parquet" in shown
    assert f"── {chats}:1 · " in shown
    assert "‹<|im_start|>›" in shown
    text = shown.replace("│", "")
    assert "你好 👋🏽 ⟨U+001B⟩[31m‹<|im_end|>›⏎" in text
    assert "⟦Hello!⏎\n⇥Indented‹<|im_end|>›⟧⏎" in text
    assert "\x1b" not in shown
    one = next((tmp_path / "out/data").iterdir())
    assert main(["preview", str(one)]) == 0
    assert capsys.readouterr().out == shown


def test_preview_shows_as_many_bins_as_asked_for(capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "SHARD_TOKENS", 400)
    rows = tmp_path / "chats.jsonl"
    rows.write_text((json.dumps(GOOD) + "\n") * 50)
    main(arguments)
    capsys.readouterr()
    for asked, shown in ((None, 2), (1, 1), (5, 5)):
        main(["preview", str(tmp_path / "out"), *([] if asked is None else ["--bins", str(asked)])])
        assert capsys.readouterr().out.count("━━ bin ") == shown


def test_preview_of_chat_data_is_what_prepare_packs(capsys, arguments, tmp_path, chats):
    main(arguments)
    main(["preview", str(tmp_path / "out")])
    packed = capsys.readouterr().out
    assert main(["preview", chats, *arguments[2:-2], "--bins", "3"]) == 0
    shown = capsys.readouterr().out
    first = shown[shown.index("── ") : shown.index("── rejected")]
    assert first in packed
    assert f"── rejected · {chats}:2: unknown role: message 0 has role 'bot\\x1b[2J'\n" in shown
    assert shown.count("── ") == 3


def test_preview_shows_the_rows_asked_for(capsys, arguments, tmp_path):
    rows = [[("user", f"number {i}"), ("assistant", f"it is {i}")] for i in range(20)]
    chats = tmp_path / "chats.jsonl"
    lines = ({"messages": [{"role": role, "content": text} for role, text in row]} for row in rows)
    chats.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments[1] = str(chats)
    main(arguments)
    capsys.readouterr()

    def shown(*asked, of=str(tmp_path / "out")):
        code = main(["preview", of, *asked])
        text = capsys.readouterr().out
        return code, [int(n) for n in re.findall(r"^── .*\.jsonl:(\d+) · ", text, re.MULTILINE)]

    everything = shown("--bins", "99")[1]
    assert sorted(everything) == [*range(1, 21)]
    for row in (0, 7, 19):
        assert shown("--row", str(row)) == (0, [everything[row]])
    assert shown("--row", "20") == (1, [])
    assert shown("--find", "number 13") == (0, [14])
    assert len(shown("--find", "number 1")[1]) == 10
    assert len(shown("--find", "number 1", "--bins", "3")[1]) == 3
    assert shown("--find", "NUMBER 13") == (1, [])
    assert shown("--source", f"{chats}:5") == (0, [5])
    assert shown("--source", "chats.jsonl:5") == (0, [5])
    assert shown("--source", "chats.jsonl", "--bins", "99")[1] == everything
    assert shown("--source", "chats", "--bins", "99") == (1, [])
    assert shown("--source", "chats.jsonl:5", "--find", "number 5") == (1, [])
    encoding = arguments[2:-2]
    assert shown("--row", "7", *encoding, of=str(chats)) == (0, [8])
    assert shown("--find", "number 13", *encoding, of=str(chats)) == (0, [14])
    assert shown("--source", "chats.jsonl:3", *encoding, of=str(chats)) == (0, [3])
    assert shown("--row", "20", *encoding, of=str(chats)) == (1, [])


def test_preview_writes_a_page(capsys, arguments, tmp_path, chats):
    main(arguments)
    file = tmp_path / "rows.html"
    capsys.readouterr()
    assert main(["preview", str(tmp_path / "out"), "--html", str(file)]) == 0
    assert capsys.readouterr().out == f"2 rows in {file}\n"
    page = file.read_text("utf-8")
    assert all(character in page for character in "你好")
    assert "\x1b" not in page
    assert main(["preview", chats, *arguments[2:-2], "--bins", "3", "--html", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("── rejected")
    assert shown.endswith(f"2 rows in {file}\n")
    assert file.read_text("utf-8").count('"ids":') == page.count('"ids":') == 2


def test_preview_of_the_same_rows_is_the_same_text(capsys, arguments, tmp_path):
    main(arguments)
    capsys.readouterr()
    texts = []
    for _ in range(2):
        main(["preview", str(tmp_path / "out")])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert re.search(r"^[█░│·]{72}$", texts[0], re.MULTILINE)


def test_preview_of_chat_data_needs_a_tokenizer(capsys, chats):
    line = one_error(capsys, 2, ["preview", chats])
    assert line == f"{chats} is chat data: its preview needs --tokenizer and --template"


def test_preview_into_a_closed_pipe_is_quiet(arguments, tmp_path):
    main(arguments)
    shell = f"{sys.executable} -m turnpack.cli preview {tmp_path / 'out'} | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def on_a_terminal(*arguments, **environment):
    """What the command writes when its output is a terminal."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **environment}
    started = subprocess.Popen(
        [sys.executable, "-m", "turnpack.cli", *arguments],
        stdout=child,
        stderr=child,
        stdin=child,
        env=environment,
    )
    os.close(child)
    written = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not block:
            break
        written += block
    os.close(parent)
    return started.wait(), written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_bar_and_colours(arguments, tmp_path):
    code, written = on_a_terminal(*arguments)
    assert code == 0
    assert "rows/s" in written
    assert "tokens/s" in written
    code, written = on_a_terminal("preview", str(tmp_path / "out"))
    assert code == 0
    assert "\x1b[32m" in written
    assert "⟦" not in written
    code, written = on_a_terminal("preview", str(tmp_path / "out"), NO_COLOR="1")
    assert "\x1b[" not in written
    assert "⟦" in written


def test_an_error_on_a_terminal_is_not_coloured(arguments):
    code, written = on_a_terminal(*instead(arguments, template="nope"))
    assert code == 2
    assert written.count("\n") == 1
    assert "\x1b" not in written


def test_templates_are_listed_and_shown(capsys):
    assert main(["templates"]) == 0
    listed = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in listed]
    assert {"alpaca", "llama2", "chatml"} <= set(names)
    for name in names:
        assert main(["templates", name]) == 0
        shown = capsys.readouterr().out
        assert shown.splitlines()[1].startswith("source: ")
        assert "BOS: " in shown
        assert "Hello! 👋" in shown
    main(["templates", "chatml"])
    shown = capsys.readouterr().out
    assert "‹<|im_start|>›user⏎\nThanks‹<|im_end|>›⏎\n" in shown
    assert "assistant⏎\n⟦You are welcome.‹<|im_end|>›⟧⏎\n" in shown


def test_version_and_help_are_quick():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"turnpack {turnpack.__version__}\n")
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("prepare", "preview", "templates"))
    code = "import sys, turnpack.cli; print({'pyarrow', 'tokenizers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
