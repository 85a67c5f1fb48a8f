"""Messages as a chat template sees them: plain as transformers hands them over, or traced.

Owns what of a conversation becomes a text that is traced, and what is told by its shape: roles,
keys and numbers, about which no question is asked. Knows no template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .jinja_render import Message
from .nouns import Conversation, RowError
from .nouns import Message as PlainMessage
from .provenance import Data, Items, Origin, Value, single, wrapped

# Names under which templates read reasoning; the first is the one that others stand for.
REASONING = ("reasoning_content", "thinking", "reasoning")


class How(NamedTuple):
    """How a conversation is rendered."""

    for_inference: bool
    train_on: str
    variables: tuple[tuple[str, Any], ...]


def check_messages(messages: Any, tools: Any) -> None:
    """Raise RowError where messages are none; an answer may have no text, or parts of text."""
    try:
        Conversation(messages, tools)
    except RowError:
        if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
            raise
        Conversation([_with_text(message) for message in messages], tools)


def _with_text(message: PlainMessage) -> PlainMessage:
    content = message.get("content")
    if content is None and message.get("role") == "assistant":
        return {**message, "content": ""}
    if isinstance(content, Sequence) and not isinstance(content, str):
        found = [part.get("text") for part in content if isinstance(part, Mapping)]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) == len(content):
            return {**message, "content": "".join(texts)}
    return message


def plain_message(message: PlainMessage, folds: bool) -> dict[str, Any]:
    """A message as transformers hands it to a template: without what is null.

    `folds`: the template does not read Alpaca's `input`, so it follows the user's text.
    """
    if len(message) == 2 and message.get("content") is not None:
        return dict(message)
    made = {key: value for key, value in message.items() if value is not None}
    if folds and made.get("input"):
        made["content"] = f"{made['content']}\n{made['input']}"
    return _with_reasoning(made)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def traced_message(number: int, message: PlainMessage, folds: bool) -> Message:
    """The same, every text of it traced."""
    made: dict[str, Any] = {}
    for key, value in message.items():
        if value is None:
            continue
        if key == "role":
            made[key] = value
        elif type(value) is str:
            made[key] = single(value, (number, key), ("get", number, key))
        elif key == "tool_calls":
            origin, path = (number, key), ("get", number, key)
            calls = [_traced_call(call, origin, (*path, n)) for n, call in enumerate(value)]
            made[key] = Items(calls, value, origin, path)
        else:
            made[key] = wrapped(value, (number, key))
    if folds and made.get("input"):  # a traced text, so that it is known to have been asked
        made["content"] = made["content"] + "\n" + made["input"]
    return Message(number, _with_reasoning(made))


def _traced_call(call: Mapping[str, Any], origin: Origin, path: Value) -> Data:
    made: dict[str, Any] = {}
    for key, value in call.items():
        here = (*path, key)
        if type(value) is str:
            made[key] = single(value, origin, here)
        elif key == "function" and isinstance(value, Mapping):
            made[key] = _traced_call(value, origin, here)
        elif isinstance(value, Mapping):
            made[key] = Data(value, origin, here)
        else:
            made[key] = wrapped(value, origin)
    return Data.known(call, origin, path, made)


def shape_of(how: How, messages: Sequence[PlainMessage], tools: Any) -> Any:
    """All of a conversation that no question is asked about: roles, keys, numbers.

    None where there is more than that, so that no program can be kept for it.
    """
    kinds: list[Any] = []
    try:
        for message in messages:
            for first in message:  # noqa: B007 - the quickest way to the first key
                break
            if len(message) == 2 and first == "role":
                role, content = message["role"], message["content"]
                if not type(role) is type(content) is str:
                    return None
                if not content.isascii():
                    content.encode()
                kinds.append(role)
            else:
                kinds.append(_fields(message))
        if how.variables:
            named = tuple((key, _constant(value)) for key, value in how.variables)
            how = how._replace(variables=named)
    except (AttributeError, KeyError, TypeError, UnicodeError):
        return None  # what is wrong with it, if anything, is said elsewhere
    if tools is not None and type(tools) is not list:
        return None
    return how, tuple(kinds), None if tools is None else len(tools)


def kinds_of(shape: Any) -> tuple[Any, ...]:
    """Of each message of a shape, all that no question is asked about."""
    kinds: tuple[Any, ...] = shape[1]
    return kinds


def way_of(shape: Any) -> Any:
    """All of a shape but its messages."""
    return shape[0], shape[2]


def learns_answers(shape: Any) -> bool:
    """Whether the targets of a shape are all of its answers."""
    how: How = shape[0]
    return how.train_on == "assistant" and not how.for_inference


def _fields(message: Mapping[str, Any]) -> tuple[Any, ...]:
    parts: list[Any] = []
    for key, value in message.items():
        if key == "role":
            parts.append((key, _constant(value)))
        elif type(value) is str:
            value.encode()
            parts.append(key)
        elif key == "tool_calls" and type(value) is list:
            parts.append((key, *map(_fields, value)))
        elif key == "function" and isinstance(value, Mapping):
            parts.append((key, _fields(value)))
        elif isinstance(value, Mapping) and key == "arguments":
            parts.append((key, "object"))
        else:
            parts.append((key, _constant(value)))
    return tuple(parts)


def _constant(value: Any) -> tuple[str, str]:
    """A value that is no text, so that 1, 1.0 and True are different; a container is refused."""
    if value is None or type(value) in (str, bool, int, float):
        return type(value).__name__, repr(value)
    raise TypeError("more than texts and numbers")
