"""The calls in a model's text: found, read, and checked against the tools' schemas.

It knows the form that most chat templates teach, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; a backend
whose model has another reads it itself and has its calls checked here all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from llmkit.errors import did_you_mean
from llmkit.structured.json_schema import json_problem
from llmkit.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's text, taken apart.

    Attributes:
        content: the text without the calls.
        calls: the calls, in their order, not checked yet.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()


def read_answer(text: str) -> Answer:
    """The calls in a text, and the text around them. A call that is no JSON is one with an error."""
    content: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0:
        content.append(text[at:start])
        call, at = _read_call(text, start + len(_OPEN))
        calls.append(call)
    if not calls:
        return Answer(text)
    return Answer("".join([*content, text[at:]]).strip(), tuple(calls))


def _read_call(text: str, start: int) -> tuple[ToolCall, int]:
    """The call that begins here, and where the text goes on after it."""
    body = text[start:].lstrip()
    try:
        # The value's own end is looked for, since a string in it may hold the closing tag.
        value, length = json.JSONDecoder().raw_decode(body)
        end = len(text) - len(body) + length
        after = text[end:].lstrip()
        return as_call(value), len(text) - len(after.removeprefix(_CLOSE))
    except ValueError as error:
        end = text.find(_CLOSE, start)
        return ToolCall("", {}, error=f"the call is not JSON: {error}"), len(text) if end < 0 else end + len(_CLOSE)


def as_call(value: object) -> ToolCall:
    """A call from its parsed JSON; the arguments may be JSON in a string, and may be called parameters."""
    outer = cast("Mapping[str, Any]", value if isinstance(value, Mapping) else {})
    inner = outer.get("function")
    fields = cast("Mapping[str, Any]", inner if isinstance(inner, Mapping) else outer)
    name = fields.get("name")
    if not isinstance(name, str):
        return ToolCall("", {}, error=f"a call must be an object with a name and arguments, got {value!r}")
    arguments: Any = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            return ToolCall(name, {}, error=f"the arguments are not JSON: {error}")
    if not isinstance(arguments, Mapping):
        return ToolCall(name, {}, error=f"the arguments must be an object, got {arguments!r}")
    return ToolCall(name, dict(cast("Mapping[str, Any]", arguments)), str(outer.get("id") or ""))


def checked_call(call: ToolCall, tools: Sequence[Mapping[str, Any]], source: str) -> ToolCall:
    """The call with an id, and with an error where it does not fit the tools.

    Args:
        call: as it was read.
        tools: the schemas that the model was given.
        source: what the call comes from; equal sources give equal ids, different ones different ids.
    """
    error = call.error or _problem(call, tools)
    call_id = call.id or hashlib.sha256(source.encode()).hexdigest()[:9]
    return replace(call, id=call_id, error=error)


def _problem(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> str | None:
    by_name: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = cast("Mapping[str, Any]", tool.get("function", tool))
        by_name[str(function.get("name"))] = function
    if call.name not in by_name:
        return f"no tool is named {call.name!r}{did_you_mean(call.name, by_name)}"
    parameters = by_name[call.name].get("parameters", {})
    problem = json_problem(json.dumps(parameters), dict(call.arguments))
    return problem and f"the arguments do not fit: {problem}"
