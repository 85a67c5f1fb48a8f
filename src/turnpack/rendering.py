"""Rendering: how a declared template writes one conversation, and which of it are targets.

Owns the rules of order: what opens a conversation, where the system text goes, when reasoning is
written, how calls and results stand. Knows no template by name, no tokenizer and no ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .nouns import Message, Rendered, RowError, Segment
from .patterns import Pattern, Value, splitter, stripped

if TYPE_CHECKING:
    from .declaration import Template

# How chat data spells an answer's reasoning within its text.
THINK, END_OF_THINK = "<think>", "</think>"
# A user's message that is one of these is a tool's result, in data that has no role for it.
RESULT, END_OF_RESULT = "<tool_response>", "</tool_response>"


class Rendering:
    """One conversation on its way to segments."""

    __slots__ = ("everything", "for_inference", "messages", "patterns", "template", "trained")

    def __init__(
        self, template: Template, messages: Sequence[Message], for_inference: bool, train_on: str
    ) -> None:
        self.template = template
        self.patterns = template.spelled_patterns
        self.messages = messages
        self.for_inference = for_inference
        self.everything = train_on == "all" and not for_inference
        answers = [number for number, m in enumerate(messages) if m["role"] == "assistant"]
        if train_on == "last":
            answers = answers[-1:]
        self.trained = {
            number
            for number in ([] if for_inference else answers)
            if loss_weight(messages[number]) is not None
        }

    def render(self, tools: Sequence[Mapping[str, object]] | None) -> Rendered:
        """The segments, and what the template could not do."""
        template, patterns, messages = self.template, self.patterns, self.messages
        writer = Writer()
        notes = dict.fromkeys(template.notes)
        own = 1.0 if self.everything else None  # the weight of what belongs to no message
        writer.write(patterns["start"], own)
        first, folded, fold_at = self._open(writer, tools, own)
        query = self._last_query() if template.answer_with_reasoning is not None else 0
        trained = self.trained
        stops, finish = patterns["stop"], patterns["finish"]
        last = len(messages) - 1
        for number in range(first, last + 1):
            message = messages[number]
            role = message["role"]
            loss = loss_weight(message)
            weight = loss if self.everything else None
            if role == "user":
                self._question(writer, message, weight, folded if number == fold_at else ())
            elif role == "assistant":
                writer.write(patterns["cue"], weight)
                learned = loss if number in trained else weight
                dropped = self._answer(writer, number, learned, number > query)
                if dropped:
                    notes[dropped] = None
                writer.write(patterns["stop"], learned)
                if number in trained and not stops and not (finish and number == last):
                    notes["no stop token"] = None
                writer.write(patterns["tail"], weight)
            elif role == "tool":
                self._result(writer, number, weight)
            elif not template.gathers_system:
                later = patterns.get("system_later", patterns.get("system", ()))
                writer.write(later, weight, {"system": message["content"]})
        if self.for_inference:
            writer.write(patterns["cue"], own)
        elif stops:
            writer.write(finish, own)
        else:  # what closes the conversation is the stop token of its last answer
            learns = self.everything or last in trained
            writer.write(finish, loss_weight(messages[last]) if learns else None)
        if self._rewritten(fold_at):
            notes["prompt differs"] = None
        return Rendered(writer.close(), tuple(notes))

    # -- what opens the conversation -----------------------------------------------------------

    def _open(
        self, writer: Writer, tools: Sequence[Mapping[str, object]] | None, own: float | None
    ) -> tuple[int, list[Segment], int]:
        """Write the system text and the tools, or fold the text.

        Returns the number of the next message, the folded text, and whose it becomes part of.
        """
        template, messages = self.template, self.messages
        first, weight = 0, own
        texts: list[list[Segment]] = []  # an empty line goes between them
        if template.gathers_system:
            texts = [
                [_ordinary(m["content"], loss_weight(m) if self.everything else None)]
                for m in messages
                if m["role"] == "system"
            ]
        elif messages[0]["role"] == "system":
            first = 1
            weight = loss_weight(messages[0]) if self.everything else None
            texts = [[_ordinary(messages[0]["content"], weight)]]
        default = template.default_system
        if messages[0].get("input") and template.default_system_with_input is not None:
            default = template.default_system_with_input
        if not texts and default is not None:
            texts = [[_ordinary(default, own)]]
        if tools:
            block = Writer()
            listed = "\n".join(_json(tool, "tools") for tool in tools)
            block.write(self.patterns["block"], own, {"tools": listed})
            texts.append(block.close())
        if not texts:
            return first, [], -1
        between = _ordinary("\n\n", own)
        text = [segment for each in texts for segment in (between, *each)][1:]
        if template.system_in_user is None:
            writer.write(self.patterns["system"], weight, {"system": text})
            return first, [], -1
        folded = Writer()
        folded.write(self.patterns["system_in_user"], weight, {"system": text})
        users = [number for number, m in enumerate(messages) if m["role"] == "user"]
        at = users[-1 if template.system_in_last_user else 0] if users else -1
        return first, folded.close(), at

    def _rewritten(self, fold_at: int) -> bool:
        """Whether an answer that is trained on had another prompt before a later message came."""
        template = self.template
        until = fold_at if template.system_in_last_user else -1
        if template.gathers_system:
            systems = [number for number, m in enumerate(self.messages) if m["role"] == "system"]
            until = max(systems, default=-1)
        return bool(self.trained) and min(self.trained) < until

    # -- questions, answers, calls and results -------------------------------------------------

    def _question(
        self,
        writer: Writer,
        message: Message,
        weight: float | None,
        folded: Sequence[Segment],
    ) -> None:
        text: Value = message["content"]
        extra = message.get("input") or ""
        pattern = self.patterns["user"]
        if extra:
            if "user_with_input" in self.patterns:
                pattern = self.patterns["user_with_input"]
            else:
                text = f"{text}\n{extra}"
        if folded:
            text = [*folded, _ordinary(text, weight)]
        writer.write(pattern, weight, {"user": text, "input": extra})

    def _answer(
        self, writer: Writer, number: int, weight: float | None, current: bool
    ) -> str | None:
        """Write an answer without its stop token; returns a warning where some of it is dropped."""
        template, message = self.template, self.messages[number]
        recognised = template.recognised
        content: str = message["content"]
        reasoning = message.get("reasoning_content")
        warning = None
        if template.answer_with_reasoning is None:
            writer.write(
                self.patterns["answer"], weight, {"answer": own_text(content, weight, recognised)}
            )
            if reasoning:
                warning = f"template {template.name} does not write reasoning_content"
        else:
            if reasoning is None:
                reasoning, content = split_reasoning(content)
            last = number == len(self.messages) - 1
            pattern = "answer"
            if current and (last or reasoning):
                pattern = "answer_with_reasoning"
            elif reasoning:
                warning = f"template {template.name} drops the reasoning of earlier answers"
            elif not current and number in self.trained:
                warning = f"template {template.name} writes earlier answers without reasoning"
            texts = {"reasoning": reasoning, "answer": content}
            values = {key: own_text(text, weight, recognised) for key, text in texts.items()}
            writer.write(self.patterns[pattern], weight, values)
        for index, call in enumerate(message.get("tool_calls") or ()):
            if index or content:
                writer.text("\n", weight)
            name, arguments = _call(call, number)
            values = {
                "name": own_text(name, weight, recognised),
                "arguments": own_text(arguments, weight, recognised),
            }
            writer.write(self.patterns["call"], weight, values)
        return warning

    def _result(self, writer: Writer, number: int, weight: float | None) -> None:
        """Write a tool's result, and with the first of several what goes around all of them."""
        messages = self.messages
        if number and messages[number - 1]["role"] == "tool":
            return
        results = Writer()
        while number < len(messages) and messages[number]["role"] == "tool":
            own = loss_weight(messages[number]) if self.everything else None
            if results.started:
                results.text("\n", own)
            results.write(self.patterns["result"], own, {"result": messages[number]["content"]})
            number += 1
        writer.write(self.patterns["results"], weight, {"results": results.close()})

    def _last_query(self) -> int:
        """The number of the last message in which the user asks something."""
        for number in range(len(self.messages) - 1, -1, -1):
            if asks(self.messages[number]):
                return number
        return len(self.messages) - 1


_NOTHING: Mapping[str, Value] = {}


class Writer:
    """Puts segments together: control tokens one by one, ordinary text in runs of one weight."""

    __slots__ = ("_run", "_segments", "_weight")

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._run: list[str] = []
        self._weight: float | None = None  # of the run; None where it is no target

    @property
    def started(self) -> bool:
        """Whether anything was written."""
        return bool(self._run or self._segments)

    def write(
        self, pattern: Pattern, weight: float | None, values: Mapping[str, Value] = _NOTHING
    ) -> None:
        """Write a pattern with its fields filled."""
        for part in pattern:
            if isinstance(part, str):
                self.text(part, weight)
            elif isinstance(part, Segment):
                self.control(part, weight)
            else:
                value = values[part.name]
                if part.method:
                    value = stripped(value, part)
                if isinstance(value, str):
                    self.text(value, weight)
                else:
                    self.append(value)

    def text(self, text: str, weight: float | None) -> None:
        """Write ordinary text."""
        if text:
            if weight != self._weight:
                if self._run:
                    self._end_run()
                self._weight = weight
            self._run.append(text)

    def control(self, segment: Segment, weight: float | None) -> None:
        """Write a control token, given as no target; one of weight 0 never becomes one."""
        if self._run:
            self._end_run()
        if weight is None or not segment.weight:
            self._segments.append(Segment(segment.text, False, True))
        else:
            self._segments.append(_segment(segment.text, weight, control=True))

    def append(self, segments: Sequence[Segment]) -> None:
        """Write segments with the weights that they have."""
        for segment in segments:
            weight = segment.weight if segment.target else None
            if segment.control:
                self.control(segment._replace(target=False, weight=1.0), weight)
            else:
                self.text(segment.text, weight)

    def _end_run(self) -> None:
        self._segments.append(_ordinary("".join(self._run), self._weight))
        self._run = []

    def close(self) -> list[Segment]:
        """All that was written."""
        if self._run:
            self._end_run()
        return self._segments


def asks(message: Message) -> bool:
    """Whether a message is a user's own: not a tool's result that is spelled as a user's."""
    text: str = message["content"]
    spelled = text.startswith(RESULT) and text.endswith(END_OF_RESULT)
    return message["role"] == "user" and not spelled


def own_text(text: str, weight: float | None, recognised: tuple[str, ...]) -> Value:
    """An assistant's text: it yields the tokens that the model itself must produce."""
    if not recognised:
        return text
    parts = splitter(recognised).split(text)
    if len(parts) == 1:
        return text
    return [
        _segment(part, weight, control=place % 2 == 1) for place, part in enumerate(parts) if part
    ]


def _segment(text: str, weight: float | None, *, control: bool) -> Segment:
    if weight is None:
        return Segment(text, False, control)
    return Segment(text, True, control, weight)


def _ordinary(text: Any, weight: float | None) -> Segment:
    return _segment(text, weight, control=False)


def loss_weight(message: Message) -> float | None:
    """The weight of a message's loss; None where it never is a target."""
    if len(message) == 2:  # role and content
        return 1.0
    weight = message.get("weight")
    if message.get("train") is False or weight == 0:
        return None
    return 1.0 if weight is None else float(weight)


def split_reasoning(content: str) -> tuple[str, str]:
    """Reasoning and answer of a text that holds both."""
    if END_OF_THINK not in content:
        return "", content
    reasoning = content.split(END_OF_THINK)[0].rstrip("\n").split(THINK)[-1].lstrip("\n")
    return reasoning, content.split(END_OF_THINK)[-1].lstrip("\n")


def _call(call: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Name and arguments of a call, as text."""
    function = call.get("function") or call
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or arguments is None:
        raise RowError("wrong type", f"message {number}: a tool call lacks its name or arguments")
    if not isinstance(arguments, str):
        arguments = _json(arguments, f"message {number}: arguments")
    return name, arguments


def _json(value: Any, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise RowError("invalid Unicode", f"{what}: a lone surrogate") from None
    except (TypeError, ValueError) as error:
        raise RowError("wrong type", f"{what}: {error}") from None
    return text
