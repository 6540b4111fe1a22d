"""A GPT task on a loaded model: nothing but the task counts, and its stream is its response."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llmkit.errors import (
    TaskArgsInvalid,
)
from llmkit.testing import ScriptedLLM
from llmkit.types import Chunk, Message, Request


def gpt_task(content: str = "x", **changes: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **changes}


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


def test_the_objects_own_parameters_do_not_touch_a_gpt_task() -> None:
    llm = ScriptedLLM("one two three", max_tokens=1, system_prompt="Be brief.", stop_token="two", seed=9)
    response = llm.execute(gpt_task())
    assert response.choices[0].message.content == "one two three"
    assert llm.requests[0].prompt == (user("x"),)
    assert (llm.requests[0].params.seed, llm.requests[0].reproducible) == (0, True)


def test_a_task_for_another_model_is_refused_and_a_prefixed_name_is_not() -> None:
    llm = ScriptedLLM("yes")
    with pytest.raises(TaskArgsInvalid, match=r"asks for 'gpt2', this is 'scripted'; llmkit\.run_task"):
        llm.execute({**gpt_task(), "model": "gpt2"})
    assert llm.execute({**gpt_task(), "model": "scripted:scripted"}).model == "scripted:scripted"


class OneChunk(ScriptedLLM):
    """Gives each choice in a single chunk, text and reason together, as a backend that cannot stream does."""

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        for n in range(requests[0].params.n):
            yield Chunk(0, n, "all at once", (5, 6), "stop", prompt_tokens=3)


def test_text_and_reason_in_one_chunk_are_streamed_as_two() -> None:
    pieces = [
        chunk.choices[0]
        for chunk in OneChunk().execute(gpt_task(generation_config={"num_return_sequences": 2}), stream=True)
    ]
    assert [(p.index, p.delta.content, p.finish_reason) for p in pieces] == [
        (0, "all at once", None),
        (1, "all at once", None),
        (0, "", "stop"),
        (1, "", "stop"),
    ]
