"""Owns the fixture `impl`: tests/test_<verb>.py runs once on each implementation of its verb."""

import agree


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        verb = metafunc.module.__name__.removeprefix("test_")
        found = agree.implementations(verb)
        metafunc.parametrize("impl", list(found.values()), ids=list(found))
