"""Bad inputs through the command line: every line of the table in bad_inputs.py."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import at_hand
import bad_inputs
from bad_inputs import CASES, Bad
from turnpack.cli import main


@pytest.fixture(scope="module")
def tiny():
    return str(at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>"))


def cases():
    for case in CASES:
        marks = [pytest.mark.soak] if case.soak else []
        yield pytest.param(case, id=case.name, marks=marks)


def like(pattern, text):
    """Whether a text is as a pattern of the table says."""
    parts = [re.escape(part) for part in pattern.split("…")]
    return re.fullmatch(".*".join(parts), text, re.DOTALL) is not None


@contextlib.contextmanager
def within(seconds):
    """Fail where something takes longer than that."""

    def late(*_):
        pytest.fail(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Runs the command line in a process of its own, and says on stdout's last line what memory it took.
MEASURED = """
import resource, sys
from turnpack.cli import main
code = main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def run(arguments, case, folder, capfd):
    """Exit code and stderr of the command line."""
    if case.memory is None:
        with within(case.seconds), (case.around or contextlib.nullcontext)(folder):
            code = main(arguments)
        return code, capfd.readouterr().err
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True,
        text=True,
        timeout=case.seconds,
    )
    assert int(done.stdout.splitlines()[-1]) < case.memory
    return done.returncode, done.stderr


@pytest.mark.parametrize("case", [*cases()])
@pytest.mark.filterwarnings("always")
def test_bad_input(case: Bad, tiny, tmp_path, capfd):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    made = case.make(folder)
    files = [str(path) for path in (made if isinstance(made, list) else [made])]
    options = {"tokenizer": tiny, "template": "chatml", "max_length": "200", "output": output}
    options |= {k: v(folder) if callable(v) else v for k, v in case.options.items()}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    before = sorted(tmp_path.rglob("*"))
    code, said = run(["prepare", *files, *words], case, folder, capfd)

    assert code == case.code, said
    error = case.error
    if code == 1 and error is None:
        error = f"nothing to pack: … read, … rejected, see {output}/rejects.jsonl"
    expected = [("warning", case.warning)] * (case.warning is not None)
    expected += [("error", error)] * (error is not None)
    told = said.splitlines()
    assert len(told) == len(expected), said
    for line, (kind, pattern) in zip(told, expected, strict=True):
        assert like(f"turnpack: {kind}: {pattern}", line)
        assert not re.search("[\x00-\x1f\x7f-\x9f]", line)

    if code == 2:
        assert sorted(tmp_path.rglob("*")) == before  # nothing is left, and nothing is lost
        return
    report = json.loads((output / "report.json").read_bytes())
    counts = report["conversations"]
    if case.packed >= 0:
        assert counts["packed"] == case.packed
    assert counts["read"] == counts["packed"] + counts["rejected"]
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_bytes().splitlines()]
    assert len(rejects) == counts["rejected"] == len(case.rejects)
    for reject, (place, reason, detail) in zip(rejects, case.rejects, strict=True):
        # A name that is no UTF-8 is spelled out, with the reject's own backslashes.
        assert reject["file"] in [f.encode("utf-8", "backslashreplace").decode() for f in files]
        assert reject.get("line", reject.get("index")) == place
        assert reject["reason"] == reason
        assert like(detail, reject["detail"])
        assert "row" in reject
    assert main(["verify", str(output)]) == 0
    if case.check is not None:
        case.check(output)

    if case.rejects and case.around is None and case.memory is None:
        capfd.readouterr()
        strict = ["prepare", *files, *words, "--strict"]
        was = sorted(tmp_path.rglob("*"))
        assert main(strict) == 1
        line = capfd.readouterr().err.splitlines()[-1]
        _, reason, detail = case.rejects[0]
        assert like(f"turnpack: error: …: {reason}{': ' * bool(detail)}{detail}", line)
        assert sorted(tmp_path.rglob("*")) == was


def test_names_are_used_once():
    names = [case.name for case in CASES]
    assert sorted({*names}) == sorted(names)
    assert len(names) >= 40


def test_the_documentation_is_that_of_the_table():
    assert bad_inputs.DOCS.read_text(encoding="utf-8") == bad_inputs.document(), (
        "run `python tests/bad_inputs.py`"
    )


def test_a_full_stdout_is_one_line(tiny, tmp_path):
    """What a shell does with `> /dev/full`."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(bad_inputs.GOOD)
    words = [
        "prepare",
        str(path),
        "--tokenizer",
        tiny,
        "--template",
        "chatml",
        "--max-length",
        "200",
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "turnpack.cli", *words, "--output", str(tmp_path / "out")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "turnpack: error: [Errno 28] No space left on device\n"
