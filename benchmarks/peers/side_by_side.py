"""Owns how forms of one job are timed: in turns, in one process, so that noise meets all alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from time import perf_counter
from typing import Any


@dataclass
class Form:
    """One way to do a job. The form is called once before it is timed, by who asserts its result.

    `run`: the job; what it returns is the time in seconds where `own_clock`. `after`: called after
    every run, untimed. `figures`: what the results say of the form besides its times; a run may
    change them. `rounds`: how often it takes its turn, where that is fewer times than the others.
    """

    name: str
    run: Callable[[], Any]
    own_clock: bool = False
    after: Callable[[], None] = lambda: None
    figures: dict[str, Any] = field(default_factory=dict)
    rounds: int | None = None


def timed(forms: Sequence[Form], rounds: int) -> dict[str, dict[str, Any]]:
    """Median and quickest round of every form in ms, and its other figures."""
    turns = {form.name: rounds if form.rounds is None else form.rounds for form in forms}
    assert all(own % 2 for own in turns.values()), "the median is one of the rounds"
    runs: dict[str, list[tuple[float, dict[str, Any]]]] = {form.name: [] for form in forms}
    for turn in range(rounds):
        for form in forms:
            if turn >= turns[form.name]:
                continue
            begun = perf_counter()
            returned = form.run()
            ended = perf_counter()
            seconds = returned if form.own_clock else ended - begun
            del returned
            runs[form.name].append((seconds, dict(form.figures)))
            form.after()
    return {name: _summary(taken) for name, taken in runs.items()}


def _summary(taken: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    """Median and minimum; the other figures are those of the median's round."""
    taken = sorted(taken, key=itemgetter(0))
    seconds, figures = taken[len(taken) // 2]
    return {
        "median_ms": round(seconds * 1e3, 4),
        "min_ms": round(taken[0][0] * 1e3, 4),
        "rounds": len(taken),
        **figures,
    }
