"""Owns the fixture `impl`: tests/test_<verb>.py runs once on each implementation of its verb.

A form for an instruction set that this machine lacks is skipped, and the skip says which.
"""

import pytest

import agree


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        verb = metafunc.module.__name__.removeprefix("test_")
        found = agree.implementations(verb)
        forms = [pytest.param(impl, id=name) for name, impl in found.items()]
        if verb in agree.BY_ISA:
            forms += [
                pytest.param(
                    None,
                    id=f"core-{isa}",
                    marks=pytest.mark.skip(reason=f"this machine has no {isa}"),
                )
                for isa in agree.ABSENT
            ]
        metafunc.parametrize("impl", forms)
