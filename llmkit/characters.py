"""Text that UTF-8 can hold: what tokenizers and servers read. A Python string, and JSON, can spell more than that.

It knows where in a request there is text, and not who reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    if isinstance(request.prompt, str):
        _check("the task", request.prompt)
    else:
        for at, message in enumerate(request.prompt):
            _check(f"messages[{at}].content", message.content)
            _check(f"messages[{at}].tool_calls", message.tool_calls)
    _check("system_prompt", params.system_prompt)
    _check("stop_token", params.stop_strings)
    _check("tools", request.tools)
    _check("template_args", request.template_args)


def _check(name: str, value: object) -> None:
    """Refuse half of a surrogate pair in a value that JSON can hold, under the name that its caller knows it by."""
    if value is None:  # as most are: asked of every row of a dataset
        return
    if isinstance(value, str):
        if (problem := characters_problem(value)) is not None:
            raise InvalidRequest(f"{name} {problem}")
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(cast("list[object] | tuple[object, ...]", value)):
            _check(f"{name}[{at}]", item)
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, object]", value).items():
            _check(name, key)
            _check(f"{name}.{key}", item)
