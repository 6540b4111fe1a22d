"""Text that UTF-8 can hold: what tokenizers and servers read. A Python string, and JSON, can spell more than that.

It knows where in a request there is text, and not who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from llmkit.errors import InvalidRequest
from llmkit.params import GenerationParams
from llmkit.types import Request


def characters_problem(text: str) -> str | None:
    """What is wrong with the characters of a text; None where UTF-8 can hold them."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"must be Unicode text, got half of a surrogate pair at character {error.start}"
    return None


def check_characters(request: Request, params: GenerationParams) -> None:
    """Refuse a request that no tokenizer can read.

    Args:
        request: its prompt, tools and template arguments are looked at.
        params: its own parameters, over those of the model object; the system prompt and stop strings are looked at.

    Raises:
        InvalidRequest: half of a surrogate pair is in one of the texts; the message says where.
    """
    for name, text in _texts(request, params):
        if (problem := characters_problem(text)) is not None:
            raise InvalidRequest(f"{name} {problem}")


def _texts(request: Request, params: GenerationParams) -> Iterator[tuple[str, str]]:
    """All texts of a request, each under the name that its caller knows it by."""
    if isinstance(request.prompt, str):
        yield "the task", request.prompt
    else:
        for at, message in enumerate(request.prompt):
            yield f"messages[{at}].content", message.content
            yield from _within(f"messages[{at}].tool_calls", message.tool_calls)
    yield "system_prompt", params.system_prompt or ""
    yield from _within("stop_token", params.stop_strings)
    yield from _within("tools", request.tools)
    yield from _within("template_args", request.template_args)


def _within(name: str, value: object) -> Iterator[tuple[str, str]]:
    """The strings in a value that JSON can hold."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, object]", value).items():
            yield from _within(name, key)
            yield from _within(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(cast("list[object] | tuple[object, ...]", value)):
            yield from _within(f"{name}[{at}]", item)
