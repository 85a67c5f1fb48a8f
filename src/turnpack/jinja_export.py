"""The Jinja chat template of a declared template: the same text, for vLLM, transformers and others.

Owns the export only. What it writes says with Jinja's means what rendering.py does; a property test
holds the two together. All text stands in string literals, so that no setting of the environment
that renders it (trim_blocks, lstrip_blocks) touches it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .nouns import Segment
from .patterns import Field, Pattern
from .rendering import END_OF_RESULT, END_OF_THINK, RESULT, THINK

if TYPE_CHECKING:
    from .declaration import Template

_SYSTEM_FIRST = "messages[0]['role'] == 'system'"
_CONTENT = "message['content']"
# An answer may have none: OpenAI's form has null where there are only tool calls.
_ANSWER = f"({_CONTENT} or '')"


def export(template: Template, *, bos: bool) -> str:
    """The template in Jinja; `bos`: with the tokenizer's BOS in front."""
    return _Export(template).export(bos)


class _Export:
    def __init__(self, template: Template) -> None:
        self.template = template
        self.patterns = template.patterns
        self.lines: list[str] = []
        self.depth = 0

    # -- lines ---------------------------------------------------------------------------------

    def tag(self, code: str) -> None:
        self.lines.append(f"{'    ' * self.depth}{{%- {code} %}}")

    def write(self, expression: str) -> None:
        if expression:
            self.lines.append(f"{'    ' * self.depth}{{{{- {expression} }}}}")

    def refuse(self, reason: str) -> None:
        self.write(f"raise_exception({_quoted(f'template {self.template.name} {reason}')})")

    @contextmanager
    def block(self, opening: str) -> Iterator[None]:
        self.tag(opening)
        self.depth += 1
        yield
        self.depth -= 1
        self.tag(f"end{opening.partition(' ')[0]}")

    def branch(self, code: str) -> None:
        """The next branch of the `if` that is open."""
        self.depth -= 1
        self.tag(code)
        self.depth += 1

    # -- expressions ---------------------------------------------------------------------------

    def text(self, *patterns: str, **fields: str) -> str:
        """Patterns after each other, as one expression of the fields' expressions."""
        return self.parts(tuple(p for key in patterns for p in self.patterns.get(key, ())), fields)

    def parts(self, pattern: Pattern, fields: Mapping[str, str]) -> str:
        template = self.template
        spelled = {key: getattr(template, key) for key in template.spelled}  # not the tokenizer's
        names = {
            "bos": "bos_token",
            "eos": "eos_token",
            **{key: key for key, _ in template.variables},
        }
        terms: list[str] = []
        literal = ""
        for part in (*pattern, None):
            if isinstance(part, str):
                literal += part
            elif isinstance(part, Segment):
                literal += part.text
            elif part is not None and part.name in spelled:
                literal += spelled[part.name]
            else:
                terms += [_quoted(literal)] if literal else []
                literal = ""
                if part is not None:
                    terms.append(_filtered({**names, **fields}[part.name], part))
        return " + ".join(terms)

    # -- the template --------------------------------------------------------------------------

    def export(self, bos: bool) -> str:
        template = self.template
        origin = f"turnpack template {template.name}: {template.source}".replace("#}", "")
        self.lines.append(f"{{#- {origin} #}}")
        # What ChatTemplate takes for control tokens, where no tokenizer tells.
        tokens = json.dumps([*template.markers, *template.markup], ensure_ascii=False)
        tokens = tokens.replace("#}", "\\u0023}")
        self.lines.append(f"{{#- control tokens: {tokens} #}}")
        for name, text in template.variables:
            with self.block(f"if {name} is not defined"):
                self.tag(f"set {name} = {_quoted(text)}")
        if not template.tools:
            with self.block("if tools"):
                self.refuse("has no tools")
        turns = self.take_system()
        if bos:
            self.write(self.parts((Field("bos"),), {}))
        self.write(self.text("start"))
        self.write_system()
        if template.answer_with_reasoning is not None:
            self.find_query(turns)
        with self.block(f"for message in {turns}"):
            self.write_message(turns)
        self.write_end()
        return "\n".join(self.lines)

    def take_system(self) -> str:
        """Set `system` where the template knows one; returns the name of the other messages."""
        template = self.template
        if template.gathers_system:
            chosen = "attr('role', 'equalto', 'system')"
            self.tag(f"set system = messages | select{chosen} | map(attribute='content') | list")
            self.tag(f"set turns = messages | reject{chosen} | list")
            return "turns"
        if not template.has_system:
            with self.block(f"if {_SYSTEM_FIRST}"):
                self.refuse("has no system message")
            return "messages"
        if self.system_is_a_turn():
            return "messages"
        with self.block(f"if {_SYSTEM_FIRST}"):
            self.set_system("messages[0]['content']")
            self.tag("set turns = messages[1:]")
            self.branch("else")
            default, with_input = template.default_system, template.default_system_with_input
            if with_input is not None:
                with self.block("if messages[0]['input']"):
                    self.set_system(_quoted(with_input))
                    self.branch("else")
                    self.set_system(None if default is None else _quoted(default))
            else:
                self.set_system(None if default is None else _quoted(default))
            self.tag("set turns = messages")
        return "turns"

    def system_is_a_turn(self) -> bool:
        """Whether nothing but its place tells the first system message from a later one."""
        template = self.template
        return not (
            template.gathers_system
            or template.alternates
            or template.tools
            or template.system_later is not None
            or template.default_system is not None
        )

    def set_system(self, text: str | None) -> None:
        """Set `system` to the system text, or to what is folded into a user's."""
        if self.template.system_in_user is not None:
            text = "''" if text is None else self.text("system_in_user", system=text)
        self.tag(f"set system = {'none' if text is None else text}")

    def write_system(self) -> None:
        template = self.template
        if template.system is None or self.system_is_a_turn():
            return
        if template.gathers_system:
            with self.block("if system"):
                self.write(self.text("system", system="system | join('\\n\\n')"))
        elif template.tools:
            with self.block("if tools"):
                self.write_tools()
                if template.default_system is None:
                    self.branch("elif system is not none")
                else:
                    self.branch("else")
                self.write(self.text("system", system="system"))
        elif template.default_system is None:
            with self.block("if system is not none"):
                self.write(self.text("system", system="system"))
        else:
            self.write(self.text("system", system="system"))

    def write_tools(self) -> None:
        """The system text and the tools behind it, in the place of `{system}`."""
        before, after = _around("system", self.patterns["system"])
        head, foot = _around("tools", self.patterns["block"])
        self.write(self.parts(before, {}))
        if self.template.default_system is None:
            with self.block("if system is not none"):
                self.write("system + '\\n\\n'")
        else:
            self.write("system + '\\n\\n'")
        self.write(self.parts(head, {}))
        with self.block("for tool in tools"):
            self.write("('' if loop.first else '\\n') + (tool | tojson)")
        self.write(self.parts((*foot, *after), {}))

    def find_query(self, turns: str) -> None:
        """Set `last.query`: where the user asks something for the last time."""
        self.tag(f"set last = namespace(query={turns} | length - 1)")
        with self.block(f"for message in {turns}"):
            result = f"startswith({_quoted(RESULT)}) and {_CONTENT}.endswith"
            result = f"{_CONTENT}.{result}({_quoted(END_OF_RESULT)})"
            with self.block(f"if message['role'] == 'user' and not ({result})"):
                self.tag("set last.query = loop.index0")

    def write_message(self, turns: str) -> None:
        template = self.template
        if template.alternates:
            expected = "('user' if loop.index0 % 2 == 0 else 'assistant')"
            with self.block(f"if message['role'] != {expected}"):
                self.refuse("needs user and assistant in turn")
        with self.block("if message['role'] == 'user'"):
            self.write_user()
            self.branch("elif message['role'] == 'assistant'")
            self.write_answer()
            if template.alternates:
                return
            if template.system is not None and not template.gathers_system:
                self.branch("elif message['role'] == 'system'")
                key = "system" if template.system_later is None else "system_later"
                self.write(self.text(key, system=_CONTENT))
            if template.tools:
                self.branch("elif message['role'] == 'tool'")
                self.write_result(turns)
            self.branch("else")
            start = _quoted(f"template {template.name} has no ")
            self.write(f"raise_exception({start} + message['role'])")

    def write_user(self) -> None:
        template = self.template
        if template.user_with_input is not None:
            with self.block("if message['input']"):
                fields = {"user": _CONTENT, "input": "message['input']"}
                self.write(self.text("user_with_input", **fields))
                self.branch("else")
                self.write(self.text("user", user=_CONTENT))
            return
        self.tag(f"set user = {_CONTENT} + ('\\n' + message['input'] if message['input'] else '')")
        if template.system_in_user is not None:
            # Turns alternate here: the last user's is the last one or the last but one.
            here = "loop.revindex <= 2" if template.system_in_last_user else "loop.first"
            with self.block(f"if {here}"):
                self.tag("set user = system + user")
        self.write(self.text("user", user="user"))

    def write_answer(self) -> None:
        template = self.template
        if not template.tools:
            with self.block("if message['tool_calls']"):
                self.refuse("has no tools")
        if template.answer_with_reasoning is not None:
            self.write(self.text("cue"))
            self.write_reasoned()
        elif template.tools:
            self.tag(f"set content = {_ANSWER}")
            self.write(self.text("cue", "answer", answer="content"))
        else:
            self.write(self.text("cue", "answer", "stop", "tail", answer=_CONTENT))
            return
        if template.tools:
            with self.block("for call in message['tool_calls'] or []"):
                with self.block("if content or not loop.first"):
                    self.write("'\\n'")
                self.tag("set call = call['function'] or call")
                self.tag("set arguments = call['arguments']")
                with self.block("if arguments is not string"):
                    self.tag("set arguments = arguments | tojson")
                self.write(self.text("call", name="call['name']", arguments="arguments"))
        self.write(self.text("stop", "tail"))

    def write_reasoned(self) -> None:
        """Set `content` and write it, with the reasoning where it belongs."""
        end = _quoted(END_OF_THINK)
        self.tag(f"set content = {_ANSWER}")
        self.tag("set reasoning = ''")
        with self.block("if message['reasoning_content'] is string"):
            self.tag("set reasoning = message['reasoning_content']")
            self.branch(f"elif {end} in content")
            before = f"content.split({end})[0].rstrip('\\n')"
            self.tag(f"set reasoning = {before}.split({_quoted(THINK)})[-1].lstrip('\\n')")
            self.tag(f"set content = content.split({end})[-1].lstrip('\\n')")
        with self.block("if loop.index0 > last.query and (loop.last or reasoning)"):
            fields = {"reasoning": "reasoning", "answer": "content"}
            self.write(self.text("answer_with_reasoning", **fields))
            self.branch("else")
            self.write(self.text("answer", answer="content"))

    def write_result(self, turns: str) -> None:
        before, after = _around("results", self.patterns["results"])
        other = "['role'] != 'tool'"
        with self.block(f"if loop.first or {turns}[loop.index0 - 1]{other}"):
            self.write(self.parts(before, {}))
            self.branch("else")
            self.write("'\\n'")
        self.write(self.text("result", result=_CONTENT))
        with self.block(f"if loop.last or {turns}[loop.index0 + 1]{other}"):
            self.write(self.parts(after, {}))

    def write_end(self) -> None:
        cue, finish = self.text("cue"), self.text("finish")
        if not (cue or finish or self.template.alternates):
            return
        with self.block("if add_generation_prompt"):
            if self.template.alternates:
                with self.block("if messages[-1]['role'] != 'user'"):
                    self.refuse("prompts for an answer after a user's message only")
            self.write(cue)
            if finish:
                self.branch("else")
                self.write(finish)


def _around(field: str, pattern: Pattern) -> tuple[Pattern, Pattern]:
    """What a pattern writes before and after a field."""
    at = next(i for i, p in enumerate(pattern) if isinstance(p, Field) and p.name == field)
    return pattern[:at], pattern[at + 1 :]


def _filtered(term: str, field: Field) -> str:
    if field.method == "strip" and field.chars is None:
        return f"{term} | trim"
    if field.method:
        return f"{term}.{field.method}({'' if field.chars is None else _quoted(field.chars)})"
    return term


def _quoted(text: str) -> str:
    """A string literal of Jinja, which escapes as JSON does."""
    quoted = json.dumps(text, ensure_ascii=False)
    if "'" in text:
        return quoted
    return "'" + quoted[1:-1].replace('\\"', '"') + "'"
