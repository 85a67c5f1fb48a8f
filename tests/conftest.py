"""Owns the fixture `impl`: tests/test_<verb>.py runs once on each implementation of its verb.

Without a GPU, the implementation `cuda` is there too, and skipped with the reason.
"""

import pytest

import agree
import on_device
from turnpack import cuda_available


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        verb = metafunc.module.__name__.removeprefix("test_")
        found = agree.implementations(verb)
        cases = [pytest.param(impl, id=name) for name, impl in found.items()]
        if hasattr(on_device.CUDA, verb) and "cuda" not in found:
            reason = f"no GPU: {cuda_available().reason}"
            cases.append(pytest.param(None, id="cuda", marks=pytest.mark.skip(reason=reason)))
        metafunc.parametrize("impl", cases)
