"""Owns the tests of how the core chooses its form: by the machine, or by TURNPACK_ISA."""

import os
import subprocess
import sys

import pytest

import agree
from turnpack import _core


def isa_in_a_process(**environment):
    return subprocess.run(
        [sys.executable, "-c", "import turnpack; print(turnpack._core.isa())"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", agree.ISAS)
def test_the_environment_chooses(isa):
    done = isa_in_a_process(TURNPACK_ISA=isa)
    if agree.has(isa):
        assert done.stdout == f"{isa}\n", done.stderr
    else:
        assert done.stderr.endswith(f"ValueError: TURNPACK_ISA: this machine has no {isa}\n")


def test_the_best_is_the_default():
    best = [isa for isa in agree.ISAS if agree.has(isa)][-1]
    assert isa_in_a_process(TURNPACK_ISA="").stdout == f"{best}\n"


def test_an_unknown_one_is_refused():
    done = isa_in_a_process(TURNPACK_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "ValueError: TURNPACK_ISA: no instruction set is called 'sse9': scalar, avx2, avx512\n"
    )


def test_a_form_is_undone():
    before = _core.isa(), _core.stream_from()
    with agree.machine("scalar", 5):
        assert (_core.isa(), _core.stream_from()) == ("scalar", 5)
    assert (_core.isa(), _core.stream_from()) == before
