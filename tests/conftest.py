"""Owns the fixture `impl`: tests/test_<verb>.py runs once on each implementation of its verb.

A form for an instruction set or a GPU that this machine lacks is skipped, and the skip says which.
"""

import signal

import pytest
from hypothesis import settings

import agree
import on_device
from turnpack import cuda_available

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as behind the & of a shell script
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which those that we start have too

settings.register_profile("turnpack", deadline=None)  # a busy machine is no error
settings.load_profile("turnpack")


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        verb = metafunc.module.__name__.removeprefix("test_")
        found = agree.implementations(verb)
        forms = [pytest.param(impl, id=name) for name, impl in found.items()]
        absent = []
        if verb in agree.BY_ISA:
            absent = [(f"core-{isa}", f"this machine has no {isa}") for isa in agree.ABSENT]
        if hasattr(on_device.CUDA, verb) and "cuda" not in found:
            absent.append(("cuda", f"no GPU: {cuda_available().reason}"))
        forms += [
            pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))
            for name, reason in absent
        ]
        metafunc.parametrize("impl", forms)
