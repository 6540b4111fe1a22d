"""A model on the engine, called as users call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmkit import GenerationParams, Request
from llmkit.errors import LLMKitError, ParameterError
from llmkit_transformers import TransformersLLM

TASKS = ["hello", "how are you today my friend", "x", "the capital of France is", "bonjour " * 12]
SEEDED = {"max_tokens": 12, "temperature": 1.1, "top_p": 0.95}


@pytest.fixture(scope="module")
def without_engine(model_folder: Callable[..., Path]) -> Any:
    with TransformersLLM(str(model_folder()), engine=False) as llm:
        yield llm


def test_engine_info_names_the_route_and_the_reason(
    llm: TransformersLLM, without_engine: TransformersLLM, loaded: Callable[..., TransformersLLM]
) -> None:
    assert (llm.engine_info.route, llm.engine_info.reason) == ("engine", "")
    assert (without_engine.engine_info.route, without_engine.engine_info.reason) == ("generate", "it was turned off")
    assert "0 times" in loaded("gptj").engine_info.reason
    assert "encoder-decoder" in loaded("t5").engine_info.reason


def test_greedy_texts_are_the_same_on_both_routes(llm: TransformersLLM, without_engine: TransformersLLM) -> None:
    assert llm.batch_run(TASKS, max_tokens=16) == [without_engine.run(task, max_tokens=16) for task in TASKS]


def test_seeded_texts_are_the_same_alone_in_a_batch_in_threads_and_tasks(llm: TransformersLLM) -> None:
    seeds = list(range(len(TASKS)))
    alone = [llm.run(task, seed=seed, **SEEDED) for task, seed in zip(TASKS, seeds, strict=True)]

    async def together() -> list[str]:
        calls = (llm.arun(task, seed=seed, **SEEDED) for task, seed in zip(TASKS, seeds, strict=True))
        return list(await asyncio.gather(*calls))

    with ThreadPoolExecutor(5) as threads:
        in_threads = list(
            threads.map(lambda pair: llm.run(pair[0], seed=pair[1], **SEEDED), zip(TASKS, seeds, strict=True))
        )
    assert llm.batch_run(TASKS, seed=seeds, **SEEDED) == alone
    assert llm.batch_run(TASKS[::-1], seed=seeds[::-1], **SEEDED)[::-1] == alone
    assert in_threads == alone
    assert asyncio.run(together()) == alone
    assert len(set(alone)) > 1


def test_a_seeded_choice_does_not_depend_on_how_many_there_are(llm: TransformersLLM) -> None:
    three = llm.complete("hello", seed=4, n=3, **SEEDED).choices
    one = llm.complete("hello", seed=4, **SEEDED).choices
    assert three[0].token_ids == one[0].token_ids
    assert len({choice.token_ids for choice in three}) > 1


@pytest.mark.parametrize("n", [3, 5])
def test_more_choices_than_run_at_once_are_those_of_a_larger_engine(
    llm: TransformersLLM, model_folder: Callable[..., Path], n: int
) -> None:
    """They run in parts on the engine, so they have its bits."""
    wish: dict[str, Any] = {**SEEDED, "seed": 7, "n": n, "logprobs": 1}
    expected = llm.complete("hello", **wish)
    with TransformersLLM(str(model_folder()), batch_size=2) as small:
        found = small.complete("hello", **wish)
        assert found.fingerprint == expected.fingerprint
        assert found.choices == expected.choices
        assert found.usage == expected.usage
        assert {chunk.choice for chunk in small.chunks([Request("hello", GenerationParams(n=n, max_tokens=2))])} == {
            *range(n)
        }


@pytest.mark.filterwarnings("ignore::llmkit.errors.ContextWarning")
def test_a_seeded_chat_of_ten_turns_gives_the_same_bits_replayed_cold(model_folder: Callable[..., Path]) -> None:
    params = {"max_tokens": 3, "temperature": 0.9, "seed": 11}
    with TransformersLLM(str(model_folder())) as llm:
        answers = [llm.chat(f"hi {turn % 3}", **params) for turn in range(10)]
        history = list(llm.history)
        figures = llm.track_resource_utilization().engine
        assert figures is not None
        assert (figures.hit_requests, figures.started_requests) == (9, 10)
        assert figures.hit_tokens > 9
    with TransformersLLM(str(model_folder())) as cold:
        replayed = [cold.chat(f"hi {turn % 3}", history=history[: 2 * turn], **params) for turn in range(9, 0, -1)]
    assert replayed[::-1] == answers[1:]


def test_every_row_of_a_batch_keeps_to_its_own_parameters(llm: TransformersLLM) -> None:
    each = [
        GenerationParams(max_tokens=4),
        GenerationParams(max_tokens=9, temperature=1.5, seed=3),
        GenerationParams(max_tokens=7, top_k=2, seed=5, repetition_penalty=1.7),
        GenerationParams(max_tokens=9, frequency_penalty=1.5, presence_penalty=0.5),
    ]
    together = llm.complete_batch([Request("hello", params) for params in each])
    alone = [llm.complete_batch([Request("hello", params)])[0] for params in each]
    assert [c.choices[0].token_ids for c in together] == [c.choices[0].token_ids for c in alone]
    assert [c.usage.completion_tokens for c in together] == [4, 9, 7, 9] or any(
        c.choices[0].finish_reason == "stop" for c in together
    )


def test_leaving_a_stream_frees_its_sequence(llm: TransformersLLM) -> None:
    stream = llm.stream("hello", max_tokens=100)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    llm.run("x", max_tokens=1)  # a later request goes through the same thread
    figures = llm.track_resource_utilization().engine
    assert figures is not None
    assert figures.live_bytes == figures.running_sequences == 0


def test_a_request_that_can_never_fit_its_memory_is_refused_with_the_figures(model_folder: Callable[..., Path]) -> None:
    with (
        TransformersLLM(str(model_folder()), kv_cache_bytes=20_000) as llm,
        pytest.raises(LLMKitError, match=r"20,?000"),
    ):
        llm.run("hello " * 20, max_tokens=60)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_an_impossible_budget_is_refused_before_loading(value: Any) -> None:
    with pytest.raises(ParameterError, match="kv_cache_bytes must be an integer >= 1"):
        TransformersLLM("/no/such/model", kv_cache_bytes=value)


def test_a_budget_for_an_engine_that_is_turned_off_is_refused() -> None:
    with pytest.raises(ParameterError, match="kv_cache_bytes is the engine's budget, got 1000 with engine=False"):
        TransformersLLM("/no/such/model", engine=False, kv_cache_bytes=1000)


@pytest.mark.parametrize("name", ["engine", "local_files_only", "trust_remote_code"])
def test_a_switch_is_true_or_false(name: str) -> None:
    switch: dict[str, Any] = {name: "no"}
    with pytest.raises(ParameterError, match=f"{name} must be True or False, got 'no'"):
        TransformersLLM("/no/such/model", **switch)
