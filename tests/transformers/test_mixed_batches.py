"""Requests of every kind in one batch, each as if alone; and calls made at once, which share their steps."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmkit import GenerationParams, Request
from llmkit_transformers import TransformersLLM
from tests.transformers.conftest import ForwardCounter

COMMON = "the capital of France is "
KINDS = {
    "greedy": GenerationParams(max_tokens=9, seed=0),
    "temperature": GenerationParams(max_tokens=12, temperature=1.7, seed=1),
    "top_k": GenerationParams(max_tokens=7, top_k=3, seed=2),
    "top_p": GenerationParams(max_tokens=11, top_p=0.7, temperature=1.3, seed=3),
    "min_p": GenerationParams(max_tokens=8, min_p=0.1, seed=4),
    "typical_p": GenerationParams(max_tokens=10, typical_p=0.6, seed=5),
    "repetition_penalty": GenerationParams(max_tokens=12, repetition_penalty=1.8, seed=6),
    "frequency_penalty": GenerationParams(max_tokens=12, frequency_penalty=1.5, temperature=1.0, seed=7),
    "presence_penalty": GenerationParams(max_tokens=12, presence_penalty=1.5, seed=8),
    "stop": GenerationParams(max_tokens=20, stop=["e", "a"], temperature=1.5, seed=9),
    "eos": GenerationParams(max_tokens=20, eos_token_id=[*range(4, 120)], seed=10),
    "max_length": GenerationParams(max_length=40, temperature=1.2, seed=11),
    "n": GenerationParams(max_tokens=6, n=3, temperature=1.4, seed=12),
    "logprobs": GenerationParams(max_tokens=6, logprobs=4, temperature=1.4, top_k=6, seed=13),
    "logprobs of choices": GenerationParams(max_tokens=5, logprobs=0, n=2, do_sample=True, seed=14),
    "other seed": GenerationParams(max_tokens=12, temperature=1.7, seed=15),
}


def test_every_request_of_a_mixed_batch_equals_its_lone_run(llm: TransformersLLM) -> None:
    requests = [
        Request(COMMON * (at % 3) + "hello " * (at % 5 + 1), params) for at, params in enumerate(KINDS.values())
    ]
    alone = [llm.complete_batch([request])[0] for request in requests]
    for order in (range(len(requests)), random.Random(1).sample(range(len(requests)), len(requests))):
        together = llm.complete_batch([requests[at] for at in order])
        for at, completion in zip(order, together, strict=True):
            kind = list(KINDS)[at]
            assert completion.choices == alone[at].choices, kind
            assert completion.usage == alone[at].usage, kind
            assert completion.params == alone[at].params, kind


def steps(llm: TransformersLLM) -> int:
    figures = llm.track_resource_utilization().engine
    assert figures is not None
    return figures.steps


@pytest.mark.parametrize("way", ["tasks", "threads", "batch"])
def test_calls_made_at_once_share_their_steps(llm: TransformersLLM, forwards: ForwardCounter, way: str) -> None:
    """Sixteen texts of twelve tokens take 192 steps in turn, and little more than twelve together."""
    tasks, params = [f"hello {n}" for n in range(16)], {"max_tokens": 12, "eos_token_id": []}
    alone = [llm.run(task, seed=1, **params) for task in tasks]
    before = steps(llm)

    async def in_tasks() -> list[str]:
        return list(await asyncio.gather(*(llm.arun(task, seed=1, **params) for task in tasks)))

    if way == "tasks":
        texts = asyncio.run(in_tasks())
    elif way == "threads":
        forwards.gate.clear()  # until all have come, so that a slow machine does not decide
        with ThreadPoolExecutor(16) as threads:
            calls = [threads.submit(llm.run, task, seed=1, **params) for task in tasks]
            assert forwards.first.wait(10)
            while len(llm._routes._engine._calls._open) < 16:  # pyright: ignore[reportOptionalMemberAccess]
                pass
            forwards.gate.set()
            texts = [call.result(30) for call in calls]
    else:
        texts = llm.batch_run(tasks, seed=1, **params)
    assert texts == alone
    assert 12 <= steps(llm) - before <= 30


def test_a_stream_and_an_async_stream_yield_the_pieces_of_the_text(llm: TransformersLLM) -> None:
    params = {"max_tokens": 30, "eos_token_id": [], "temperature": 1.3, "seed": 4}
    whole = llm.run("hello", **params)

    async def pieces() -> list[str]:
        return [piece async for piece in llm.astream("hello", **params)]

    for got in (list(llm.stream("hello", **params)), asyncio.run(pieces())):
        assert "".join(got) == whole
        assert len(got) > 10
