"""A model's text taken apart into what is said and the tools that are called, as its tokenizer teaches it.

It knows a tokenizer and no model; whether a call fits its tool is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from llmkit.tools import Answer, as_call, read_answer
from llmkit.types import Choice, Request, ToolCall


def answer_of(choice: Choice, request: Request, tokenizer: Any) -> Answer:
    """The choice's calls and the text around them.

    A tokenizer with a `response_template` of its own is asked; any other model is taken to write
    `<tool_call>{...}</tool_call>`.
    """
    if getattr(tokenizer, "response_template", None) is not None:
        return _by_template(choice.token_ids, request, tokenizer)
    # Where the marks are special tokens, the plain text has lost them.
    if any(token.special and token.content == "<tool_call>" for token in tokenizer.added_tokens_decoder.values()):
        ids = [token for token in choice.token_ids if token not in request.params.eos_token_ids]
        return read_answer(tokenizer.decode(ids, skip_special_tokens=False))
    return read_answer(choice.text)


def _by_template(token_ids: Sequence[int], request: Request, tokenizer: Any) -> Answer:
    prompt = tokenizer.decode(list(request.prompt_ids or ()))
    try:
        message: Any = tokenizer.parse_response(list(token_ids), prefix=prompt, tools=list(request.tools))
    except ValueError as error:
        problem = ToolCall("", {}, error=f"the text does not have the form that the model's template asks for: {error}")
        return Answer(tokenizer.decode(list(token_ids), skip_special_tokens=True), (problem,))
    fields = cast("Mapping[str, Any]", message)
    calls = fields.get("tool_calls") or ()
    return Answer(str(fields.get("content") or ""), tuple(as_call(call) for call in calls))
