"""One decoded row → Conversation: which format a row is in, and what each format's keys mean.

Owns the table of formats. Opens no files and knows no template; what every Conversation must
satisfy is checked in nouns.py, here only what a format says on top of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as short
from typing import Any

from ._ingest import plain_messages, plain_row
from ._json import decode
from .nouns import Conversation, RowError, Source, is_list, kind

_Object = Mapping[str, Any]
_Messages = list[dict[str, Any]]

ROLES_OF_MESSAGES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def conversation(
    row: _Object, *, format: str | None = None, source: Source | None = None
) -> Conversation:
    """Turn one decoded row into a Conversation; the format is detected from its keys or forced.

    Raises RowError for a row that is none, ValueError for a format that does not exist.
    """
    if format is None or format == "messages":
        plain = plain_row(Conversation, row, source, ROLES_OF_MESSAGES)  # as most are
        if plain is not None:
            return plain
    check_format(format)
    if type(row) is not dict and not isinstance(row, Mapping):
        raise RowError("wrong type", f"the row is {kind(row)}, not an object")
    # Tables hold null where a row has no such key, so null and absent mean the same.
    fields = {key: value for key, value in row.items() if value is not None}
    needed, convert = _FORMATS[_detect(row, fields) if format is None else format]
    for key in needed:
        if key not in fields:
            raise RowError("missing field", f"the row has no {key!r}")
    messages = convert(fields)
    system = fields.get("system", "")
    if system != "":
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"] != system:
                raise RowError("ambiguous fields", "the row's system and its first message differ")
        else:
            messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, _tools(fields), source, row)


def check_format(name: str | None) -> None:
    """Raise ValueError unless `name` is a format, or None for detection."""
    if name is not None and name not in _FORMATS:
        raise ValueError(f"unknown format {name!r}; there are {', '.join(FORMATS)}")


def _detect(row: _Object, fields: _Object) -> str:
    for name, (needed, _) in _FORMATS.items():
        for key in needed:
            if key not in fields:
                break
        else:
            return name
    keys = [short(key) if key in fields else f"{short(key)} (null)" for key in row]
    shown = ", ".join(keys[:20]) + (", ..." if len(keys) > 20 else "")
    raise RowError(
        "unknown format", f"the row's keys are {shown}" if keys else "the row has no keys"
    )


def _from_messages(fields: _Object) -> _Messages:
    return _messages(fields, "messages")


def _from_sharegpt(fields: _Object) -> _Messages:
    plain = plain_messages(fields["conversations"], "from", "value", _SHAREGPT_ROLES)
    return plain or [
        _message(item, number) if "role" in item else _sharegpt_message(item, number)
        for number, item in enumerate(_objects(fields, "conversations"))
    ]


def _from_linksoul(fields: _Object) -> _Messages:
    system = {"role": "system", "content": fields["instruction"]}
    return [system] * (system["content"] != "") + _from_sharegpt(fields)


def _from_firefly(fields: _Object) -> _Messages:
    messages = []
    for number, item in enumerate(_objects(fields, "conversation")):
        if "role" in item:
            messages.append(_message(item, number))
            continue
        if item.get("human") is None and item.get("assistant") is None:
            raise RowError("missing field", f"message {number} has no 'human' and no 'assistant'")
        if item.get("human") is not None:
            messages.append({"role": "user", "content": item["human"]})
        if item.get("assistant") is not None:
            answer = {"role": "assistant", "content": item["assistant"]}
            messages.append(answer | _loss(item, number))
    return messages


def _from_prompt_completion(fields: _Object) -> _Messages:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
    if not (is_list(prompt) and is_list(completion)):
        raise RowError(
            "wrong type",
            f"prompt is {kind(prompt)} and completion is {kind(completion)}, "
            "not two strings or two lists",
        )
    context = _messages(fields, "prompt")
    for message in context:
        if message["role"] == "assistant":
            message.setdefault("train", False)
    return context + _messages(fields, "completion", first=len(context))


def _from_alpaca(fields: _Object) -> _Messages:
    messages: _Messages = []
    history = fields.get("history", [])
    if not is_list(history):
        raise RowError("wrong type", f"history is {kind(history)}, not a list")
    for number, pair in enumerate(history):
        if not (is_list(pair) and len(pair) == 2):
            raise RowError("wrong type", f"history {number} is {short(pair)}, not a pair")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    question = {"role": "user", "content": fields["instruction"]}
    extra = fields.get("input", fields.get("context", ""))  # Dolly calls it context
    if extra != "":
        question["input"] = extra
    answer = _one_of(fields, ("output", "response"), "the row's ")
    if answer is None:
        raise RowError("missing field", "the row has no 'output' and no 'response'")
    return [*messages, question, {"role": "assistant", "content": answer}]


# The first format whose keys a row has is its format: the more a key or a pair of keys says, the
# earlier it stands.
_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[_Object], _Messages]]] = {
    "messages": (("messages",), _from_messages),
    "linksoul": (("instruction", "conversations"), _from_linksoul),
    "sharegpt": (("conversations",), _from_sharegpt),
    "firefly": (("conversation",), _from_firefly),
    "prompt_completion": (("prompt", "completion"), _from_prompt_completion),
    "alpaca": (("instruction",), _from_alpaca),
}
FORMATS = tuple(_FORMATS)


def _objects(fields: _Object, key: str) -> Sequence[_Object]:
    items: Sequence[_Object] = fields[key]
    if not is_list(items):
        raise RowError("wrong type", f"{key} is {kind(items)}, not a list")
    if not items:
        raise RowError("empty conversation", f"{key} is an empty list")
    for number, item in enumerate(items):
        if type(item) is not dict and not isinstance(item, Mapping):
            raise RowError("wrong type", f"message {number} is {kind(item)}, not an object")
    return items


def _messages(fields: _Object, key: str, first: int = 0) -> _Messages:
    return plain_messages(fields[key], "role", "content", ROLES_OF_MESSAGES) or [
        _message(item, number) for number, item in enumerate(_objects(fields, key), first)
    ]


def _message(item: _Object, number: int) -> dict[str, Any]:
    """OpenAI's form: role and content, and what else turnpack knows of a message."""
    role = _role(item, "role", ROLES_OF_MESSAGES, number)
    content: Any = item.get("content")
    if len(item) == 2 and isinstance(content, str):
        return {"role": role, "content": content}
    message = {"role": role, "content": content, **_loss(item, number)}
    reasoning = _one_of(item, ("reasoning_content", "thinking"), f"message {number}: ")
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    calls = _one_of(item, ("tool_calls", "function_call"), f"message {number}: ")
    if calls is not None and not (is_list(calls) and not calls):
        listed = calls if item.get("tool_calls") is not None else [calls]
        message["tool_calls"] = _calls(listed, number)
    for key in ("input", "name", "tool_call_id"):
        if item.get(key) is not None:
            message[key] = item[key]
    if is_list(content):
        message["content"] = _joined(content, number)
    elif content is None and role == "assistant" and (reasoning is not None or calls):
        message["content"] = ""
    elif "content" not in item:
        raise RowError("missing field", f"message {number} ({role}) has no 'content'")
    return message


def _sharegpt_message(item: _Object, number: int) -> dict[str, Any]:
    if item.get("from") == "function_call":
        value = item.get("value")
        if isinstance(value, str):
            value = _decoded(value, f"message {number}: function_call")
        calls = _calls(value if is_list(value) else [value], number)
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        return message | _loss(item, number)
    role = _role(item, "from", _SHAREGPT_ROLES, number)
    if "value" not in item:
        raise RowError("missing field", f"message {number} ({role}) has no 'value'")
    content = item["value"]
    if is_list(content):
        content = _joined(content, number)
    message = {"role": role, "content": content}
    return message if len(item) == 2 else message | _loss(item, number)


def _role(item: _Object, key: str, roles: Mapping[str, str], number: int) -> str:
    name = item.get(key)
    if isinstance(name, str):
        if name not in roles:
            raise RowError("unknown role", f"message {number} has role {short(name)}")
        return roles[name]
    if key not in item:
        raise RowError("missing field", f"message {number} has no {key!r}")
    raise RowError("wrong type", f"message {number}: {key} is {kind(name)}, not a string")


def _loss(item: _Object, number: int) -> dict[str, Any]:
    marks = {}
    train = _one_of(item, ("train", "loss"), f"message {number}: ")
    if train is not None:
        if not isinstance(train, bool):
            name = "train" if item.get("train") is not None else "loss"
            raise RowError(
                "wrong type", f"message {number}: {name} is {kind(train)}, not a boolean"
            )
        marks["train"] = train
    if item.get("weight") is not None:
        marks["weight"] = item["weight"]
    return marks


def _joined(parts: Sequence[Any], number: int) -> str:
    texts = []
    for place, part in enumerate(parts):
        where = f"message {number}: content part {place}"
        if not isinstance(part, Mapping):
            raise RowError("wrong type", f"{where} is {kind(part)}, not an object")
        if part.get("type") != "text":
            raise RowError("unsupported content", f"{where} has type {short(part.get('type'))}")
        if not isinstance(part.get("text"), str):
            raise RowError("wrong type", f"{where}: text is {kind(part.get('text'))}, not a string")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, number: int) -> list[dict[str, Any]]:
    if not is_list(calls):
        raise RowError("wrong type", f"message {number}: tool_calls is {kind(calls)}, not a list")
    if not calls:
        raise RowError("missing field", f"message {number} has no tool call")
    return [_call(call, f"message {number}: tool call {place}") for place, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    """One call in OpenAI's form, from that form or from a bare {name, arguments}."""
    function = call
    if isinstance(call, Mapping) and call.get("function") is not None:
        function = call["function"]
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise RowError("wrong type", f"{where} is {kind(function)}, not an object")
    if call.get("type") not in (None, "function"):
        raise RowError("unsupported content", f"{where} has type {short(call['type'])}")
    for key in ("name", "arguments"):
        if key not in function:
            raise RowError("missing field", f"{where} has no {key!r}")
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str):
        raise RowError("wrong type", f"{where}: name is {kind(name)}, not a string")
    if isinstance(arguments, str):
        arguments = _decoded(arguments, f"{where}: arguments")
    elif isinstance(arguments, Mapping):
        _check_json(arguments, f"{where}: arguments")
    if not isinstance(arguments, Mapping):
        raise RowError("wrong type", f"{where}: arguments is {kind(arguments)}, not an object")
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if call.get("id") is None else {"id": call["id"], **made}


def _tools(fields: _Object) -> list[_Object] | None:
    tools = _one_of(fields, ("tools", "functions"), "the row's ")
    if isinstance(tools, str):
        tools = _decoded(tools, "tools") if tools.strip() else None
    elif is_list(tools):
        _check_json(tools, "tools")
    if tools is None:
        return None
    if not is_list(tools):
        raise RowError("wrong type", f"tools is {kind(tools)}, not a list")
    return [_tool(tool, number) for number, tool in enumerate(tools)] or None


def _tool(tool: Any, number: int) -> _Object:
    if not isinstance(tool, Mapping):
        raise RowError("wrong type", f"tool {number} is {kind(tool)}, not an object")
    function = tool.get("function")
    if function is not None:
        if not isinstance(function, Mapping):
            raise RowError(
                "wrong type", f"tool {number}: function is {kind(function)}, not an object"
            )
        return tool
    if tool.get("name") is None:
        raise RowError("missing field", f"tool {number} has no 'function' and no 'name'")
    function = {key: value for key, value in tool.items() if key not in ("type", "function")}
    return {"type": "function", "function": function}


def _one_of(item: _Object, names: tuple[str, str], where: str) -> Any:
    """Return what stands under one of two spellings of a key; both must say the same."""
    first, second = item.get(names[0]), item.get(names[1])
    if first is not None and second is not None and first != second:
        raise RowError("ambiguous fields", f"{where}{names[0]} and {names[1]} differ")
    return second if first is None else first


def _check_json(value: Any, where: str) -> None:
    """Raise RowError for what a table may hold and JSON cannot: NaN, bytes, times."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError("wrong type", f"{where}: {error}") from None


_LONG_NUMBER = re.compile(r"\d{19}")


def _decoded(text: str, where: str) -> Any:
    try:
        value = decode(text)
    except RowError as error:
        raise RowError(error.reason, f"{where}: {error.detail}") from None
    # orjson makes floats of integers beyond 64 bits, and the model would learn to write those.
    return json.loads(text) if _LONG_NUMBER.search(text) else value
