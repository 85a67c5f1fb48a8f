"""Replay: what one rendering has shown, as a function that renders other conversations faster.

Owns the translation of a laid out text into Python. The function asks every question that the
rendering asked (see provenance.py); where one has another answer it returns None, and the
conversation is rendered by its template. Knows no template and no message.

The code is written from quoted constants, field names and names of string methods that stand in
provenance.py; nothing of a template or a conversation is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .nouns import Segment
from .provenance import CHANGES, QUESTIONS, SPLITS, STRIPS, Traced, Value, structure
from .rendering import Writer, own_text

# A piece of what is written: its kind, its text, its weight (None where it is no target). Kinds are
# "control" (a token), "text" (ordinary) and "own" (an assistant's, in which some tokens are
# recognised).
Item = tuple[str, str, "float | None"]
Messages = Sequence[Mapping[str, Any]]
# (messages, tools, own) → what it was compiled for, or None.
Program = Callable[..., Any]
# What must hold: (question, value, arguments) → answer.
Guards = Mapping[tuple[str, Value, tuple[Any, ...]], Any]


def write(items: Sequence[Item], recognised: tuple[str, ...]) -> list[Segment]:
    """The segments of what is written."""
    writer = Writer()
    for kind, text, weight in items:
        if kind == "control":
            writer.control(Segment(text, False, True), weight)
        elif kind == "own":
            value = own_text(str.__str__(text), weight, recognised)
            if isinstance(value, str):
                writer.text(value, weight)
            else:
                writer.append(value)
        else:
            writer.text(str.__str__(text), weight)
    return writer.close()


def compile_program(
    guards: Guards, items: Sequence[Item], recognised: tuple[str, ...], functions: Mapping[str, Any]
) -> Program:
    """The function that renders a conversation as `items` were rendered, or returns None.

    `guards`: as of a Trace. `functions`: the template's own, `to_json` and `strftime_now`. Values
    may be those of one message alone, which the function then takes as a third argument, `own`:
    ("own", key, ...) is own[key]...
    """
    return _Compiler(recognised, functions).compile(guards, items)


def compile_texts(guards: Guards, pieces: Sequence[str], functions: Mapping[str, Any]) -> Program:
    """The function that returns the texts of the conversation's pieces, or None."""
    return _Compiler((), functions).compile_texts(guards, pieces)


_TABLES = {"get": "messages", "tools": "tools", "own": "own"}
_METHODS = {"replace", *CHANGES, *SPLITS, *STRIPS}


class _Compiler:
    def __init__(self, recognised: tuple[str, ...], functions: Mapping[str, Any]) -> None:
        self.recognised = recognised
        self.names: dict[str, Any] = {
            "Segment": Segment,
            "new": tuple.__new__,
            "write": self.write,
            "structure": structure,
            **functions,
        }
        self.lines: list[str] = []
        self.known: dict[Value, str] = {}

    def constant(self, value: Any) -> str:
        if type(value) in (str, int, bool, type(None)):
            return repr(value)  # a literal of Python that says exactly this
        name = f"k{len(self.names)}"
        self.names[name] = value
        return name

    def value(self, value: Value) -> str:
        """The name of the variable that holds a value; it is computed where it has none yet."""
        if value not in self.known:
            code = self.code(value)
            self.known[value] = name = f"v{len(self.known)}"
            self.lines.append(f"{name} = {code}")
        return self.known[value]

    def code(self, value: Value) -> str:
        if value == ("tools",):
            return "tools"
        kind, first, *rest = value
        if kind == "constant":
            return self.constant(first)
        if kind in _TABLES:
            return _TABLES[kind] + "".join(f"[{self.constant(key)}]" for key in (first, *rest))
        if kind == "call":
            if first not in _METHODS:
                raise ValueError(f"no string method {first!r}")
            return f"{self.value(rest[0])}.{first}(*{self.constant(rest[1])})"
        if kind == "item":
            key = rest[0]
            key = slice(*key[1:]) if isinstance(key, tuple) else key
            return f"{self.value(first)}[{self.constant(key)}]"
        if kind == "json":
            args, kwargs = rest[0]
            options = f"*{self.constant(args)}, **{self.constant(dict(kwargs))}"
            return f"to_json({self.value(first)}, {options})"
        raise ValueError(f"no value of kind {kind!r}")

    def question(self, name: str, value: Value, arguments: tuple[Any, ...]) -> str:
        if name == "strftime_now":
            return f"strftime_now(*{self.constant(arguments)})"
        subject = self.value(value)
        if name == "same":
            return f"{subject} == {self.value(arguments)}"
        if name == "structure":
            return f"structure({subject})"
        if name == "bool":
            return f"bool({subject})"
        if name == "__len__":
            return f"len({subject})"
        first = self.constant(arguments[0]) if arguments else ""
        operators = {
            "__eq__": f"{subject} == {first}",
            "__contains__": f"{first} in {subject}",
            "__in__": f"{subject} in {first}",
            "longer": f"len({subject}) > {first}",
        }
        if name in operators:
            return operators[name]
        if name not in QUESTIONS:
            raise ValueError(f"no question {name!r}")
        return f"{subject}.{name}(*{self.constant(arguments)})"

    def ask(self, guards: Guards) -> None:
        for (name, value, arguments), answer in guards.items():
            asked = self.question(name, value, arguments)
            if answer is True or answer is False:
                self.lines.append(f"if {'not ' * answer}({asked}): return None")
            else:
                self.lines.append(f"if {asked} != {self.constant(answer)}: return None")

    def finish(self) -> Program:
        body = "\n        ".join(self.lines)
        source = (
            "def program(messages, tools, own=None):\n"
            f"    try:\n        {body}\n"
            "    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):\n"
            "        return None  # a question makes no sense for this conversation\n"
        )
        exec(compile(source, "<replay>", "exec"), self.names)  # see the top of the file
        program: Program = self.names["program"]
        return program

    def compile_texts(self, guards: Guards, pieces: Sequence[str]) -> Program:
        self.ask(guards)
        texts = [self.value(_value(piece)) for piece in pieces if type(piece) is Traced]
        self.lines.append(f"return [{', '.join(texts)}]")
        return self.finish()

    def compile(self, guards: Guards, items: Sequence[Item]) -> Program:
        self.ask(guards)
        runs = _runs(items)
        # Runs that could be empty, and texts in which a token could be recognised, are written
        # piece by piece.
        unusual: list[str] = []
        firsts = _first_characters(self.recognised)
        for run in runs:
            names = [self.value(_value(text)) for _, text, _ in run if type(text) is Traced]
            if len(names) == len(run):
                unusual.append(f"not ({' or '.join(names)})")
            for kind, text, _ in run:
                if kind == "own" and self.recognised:
                    name = self.value(_value(text))
                    if firsts is None:
                        unusual.append(f"recognises({name})")
                    else:
                        unusual += [f"{self.constant(char)} in {name}" for char in firsts]
        if unusual:
            if firsts is None:
                tokens = "|".join(map(re.escape, self.recognised))
                self.names["recognises"] = re.compile(tokens).search
            # None stands where a text of the conversation is filled in.
            template = self.constant(
                [(kind, None if type(text) is Traced else text, w) for kind, text, w in items]
            )
            traced = [text for _, text, _ in items if type(text) is Traced]
            texts = "".join(f"{self.value(_value(text))}, " for text in traced)
            self.lines.append(f"if {' or '.join(unusual)}: return write({template}, ({texts}))")
        self.lines.append(f"return [{', '.join(map(self.segment, runs))}]")
        return self.finish()

    def segment(self, run: list[Item]) -> str:
        kind, _, weight = run[0]
        marks = (weight is not None, kind == "control", 1.0 if weight is None else weight)
        if all(type(text) is not Traced for _, text, _ in run):
            return self.constant(Segment("".join(text for _, text, _ in run), *marks))
        texts = [
            self.value(_value(text)) if type(text) is Traced else self.constant(text)
            for _, text, _ in run
        ]
        target, control, scale = map(self.constant, marks)
        return f"new(Segment, ({' + '.join(texts)}, {target}, {control}, {scale}))"

    def write(
        self, items: Sequence[tuple[str, str | None, float | None]], texts: Sequence[str]
    ) -> list[Segment]:
        left = iter(texts)
        filled = [
            (kind, next(left) if text is None else text, weight) for kind, text, weight in items
        ]
        return write(filled, self.recognised)


def _runs(items: Sequence[Item]) -> list[list[Item]]:
    """What is written, by segment: ordinary text of one weight is one."""
    runs: list[list[Item]] = []
    for item in items:
        kind, _, weight = item
        if (
            runs
            and kind != "control"
            and runs[-1][-1][0] != "control"
            and runs[-1][-1][2] == weight
        ):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _value(text: str) -> Value:
    """How a text of the conversation is computed."""
    assert type(text) is Traced
    if text._value is None:
        raise ValueError("a text that cannot be computed again")
    return text._value


def _first_characters(tokens: Sequence[str]) -> list[str] | None:
    """What tokens begin with, if it is no letter and there are few of them."""
    firsts = sorted({token[0] for token in tokens})
    return firsts if len(firsts) <= 2 and not "".join(firsts).isalnum() else None
