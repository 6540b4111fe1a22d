"""Structured output through every call, on a model whose every token is known."""

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit.errors import (
    InvalidConstraint,
    InvalidRequest,
    ParameterError,
    StructuredOutputIncomplete,
    StructuredOutputInvalid,
)
from llmkit.structured import Constraint
from llmkit.testing import ScriptedLLM, characters
from llmkit.types import Request


class Person(BaseModel):
    name: str
    age: int


TEXT = '{"name": "Ann", "age": 30}'
ANN = Person(name="Ann", age=30)


def test_complete_gives_the_object() -> None:
    completion = ScriptedLLM(TEXT).complete("x", schema=Person)
    assert (completion.parsed, completion.text) == (ANN, TEXT)


def test_every_choice_has_an_object_of_its_own() -> None:
    llm = ScriptedLLM([TEXT, '{"name": "Bob", "age": 3}'], temperature=5.0)
    choices = llm.complete("x", schema=Person, n=8, seed=0).choices
    assert {choice.parsed.name for choice in choices} == {"Ann", "Bob"}


def test_every_call_takes_a_constraint() -> None:
    llm = ScriptedLLM(TEXT)

    async def pieces() -> str:
        return "".join([piece async for piece in llm.astream("x", schema=Person)])

    texts = [
        llm.run("x", schema=Person),
        "".join(llm.stream("x", schema=Person)),
        *llm.batch_run(["x", "y"], schema=Person),
        llm.chat("x", schema=Person),
        asyncio.run(llm.arun("x", schema=Person)),
        asyncio.run(llm.acomplete("x", schema=Person)).text,
        *asyncio.run(llm.abatch_run(["x"], schema=Person)),
        asyncio.run(llm.achat("x", schema=Person)),
        asyncio.run(pieces()),
    ]
    assert texts == [TEXT] * 10
    assert {request.constraint for request in llm.requests} == {Constraint.of(schema=Person)}


def test_requests_of_one_batch_may_differ() -> None:
    requests = [Request("x", constraint=Constraint.of(schema=Person)), Request("x")]
    constrained, free = ScriptedLLM(TEXT).complete_batch(requests)
    assert (constrained.parsed, free.parsed, free.text) == (ANN, None, TEXT)


def test_a_text_whose_tokens_ran_out_says_so_when_it_is_parsed() -> None:
    completion = ScriptedLLM(TEXT, tokens=characters).complete("x", schema=Person, max_tokens=12)
    assert (completion.choices[0].finish_reason, completion.text) == ("length", TEXT[:12])
    with pytest.raises(StructuredOutputIncomplete, match="raise max_tokens"):
        _ = completion.parsed


def test_a_text_that_a_stop_string_cut_does_not_fit() -> None:
    completion = ScriptedLLM(TEXT, tokens=characters).complete("x", schema=Person, stop="Ann")
    with pytest.raises(StructuredOutputInvalid) as caught:
        _ = completion.parsed
    assert not isinstance(caught.value, StructuredOutputIncomplete)


def test_a_scripted_answer_that_does_not_fit_fails() -> None:
    with pytest.raises(StructuredOutputInvalid, match="does not match"):
        ScriptedLLM("maybe").run("x", choice=["yes", "no"])


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"schema": {"type": "objct"}}, InvalidConstraint),
        ({"choice": []}, InvalidConstraint),
        ({"regex": "a", "choice": ["a"]}, ParameterError),
        ({"regex": "a", "tools": [{"name": "f"}]}, InvalidRequest),
    ],
)
def test_what_is_malformed_is_refused_before_the_model_is_asked(asked: dict[str, Any], error: type[Exception]) -> None:
    llm = ScriptedLLM("a")
    with pytest.raises(error):
        llm.run("x", **asked)
    assert llm.requests == []


def test_compiling_does_not_block_the_event_loop() -> None:
    class Compiling(ScriptedLLM):
        def _compile(self, constraint: Constraint) -> None:
            assert compiling.wait(10)

    compiling, llm = threading.Event(), Compiling(TEXT)

    async def talk() -> str:
        answer = asyncio.create_task(llm.arun("x", schema=Person))
        await asyncio.sleep(0.02)
        compiling.set()
        return await answer

    assert asyncio.run(talk()) == TEXT
