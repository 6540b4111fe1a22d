"""Another model in the same object while calls run: they end cleanly, or say why they cannot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmkit import Request
from llmkit.errors import GenerationError, ModelClosed
from llmkit_transformers import TransformersLLM
from tests.transformers.conftest import ForwardCounter

SOON_S = 20
LONG: dict[str, Any] = {"max_tokens": 40, "eos_token_id": []}


@pytest.fixture(params=[True, False], ids=["engine", "generate"])
def changing(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> Iterator[TransformersLLM]:
    with TransformersLLM(str(model_folder()), engine=request.param) as llm:
        yield llm


def test_running_calls_end_cleanly_before_the_old_model_goes(
    changing: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    expected = changing.run("hello", **LONG)
    counter = ForwardCounter(changing)
    counter.gate.clear()

    async def arun() -> str:
        return await changing.arun("hello", **LONG)

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(changing.run, "hello", **LONG), threads.submit(asyncio.run, arun())]
        assert counter.first.wait(SOON_S)
        time.sleep(0.05)
        replacing = threads.submit(changing.set_model_name, str(model_folder("qwen3")))
        time.sleep(0.05)
        counter.gate.set()
        assert [call.result(SOON_S) for call in calls] == [expected, expected]
        replacing.result(SOON_S)
    assert changing.model.config.model_type == "qwen3"
    assert changing.run("hello", max_tokens=2)


def test_a_stream_that_is_open_in_the_same_thread_goes_on_with_its_own_model(
    changing: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    expected = changing.run("hello", **LONG)
    stream = changing.stream("hello", **LONG)
    begun = next(stream)
    changing.model_name = str(model_folder("qwen3"))
    assert begun + "".join(stream) == expected


def test_a_call_that_begins_with_one_model_never_runs_on_another(
    changing: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    stream, pieces = changing.stream("hello"), changing.astream("hello")
    changing.model_name = str(model_folder("qwen3"))
    with pytest.raises(GenerationError, match="the model was replaced by"):
        next(stream)

    async def first() -> str:
        return await anext(pieces)

    assert isinstance(asyncio.run(first()), str)  # an async stream begins with its first piece


def test_the_threads_of_the_old_model_end(changing: TransformersLLM, model_folder: Callable[..., Path]) -> None:
    before = threading.active_count()
    for family in ("qwen3", "llama", "qwen3"):
        changing.model_name = str(model_folder(family))
        changing.run("hello", max_tokens=1)
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "generate"])
def test_a_batch_that_is_longer_than_a_queue_ends_on_the_model_that_it_began_with(
    model_folder: Callable[..., Path], engine: bool
) -> None:
    tasks = [f"hello {n}" for n in range(24)]
    with TransformersLLM(str(model_folder()), engine=engine, batch_size=2, max_waiting=1) as llm:
        expected = llm.batch_run(tasks, **LONG)
        before = threading.active_count()
        counter = ForwardCounter(llm)
        counter.gate.clear()
        with ThreadPoolExecutor(2) as threads:
            batch = threads.submit(llm.batch_run, tasks, **LONG)
            assert counter.first.wait(SOON_S)
            replacing = threads.submit(llm.set_model_name, str(model_folder("qwen3")))
            time.sleep(0.05)
            counter.gate.set()
            assert batch.result(SOON_S * 3) == expected
            replacing.result(SOON_S)
        assert llm.model.config.model_type == "qwen3"
        assert threading.active_count() <= before + 1


def test_a_seeded_call_does_not_name_the_model_that_came_meanwhile(
    changing: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    old = changing.fingerprint
    assert changing.complete("hello", seed=1, **LONG).fingerprint == old
    counter = ForwardCounter(changing)
    counter.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(changing.complete, "hello", seed=1, **LONG)
        assert counter.first.wait(SOON_S)
        replacing = threads.submit(changing.set_model_name, str(model_folder("qwen3")))
        while changing.model.config.model_type != "qwen3":
            time.sleep(0.01)
        counter.gate.set()
        assert call.result(SOON_S).fingerprint is None
        replacing.result(SOON_S)
    assert changing.complete("hello", seed=1, max_tokens=2).fingerprint == changing.fingerprint != old


def test_models_that_are_set_at_the_same_time_take_turns(model_folder: Callable[..., Path]) -> None:
    folders = [str(model_folder(family)) for family in ("llama", "qwen3", "llama", "qwen3")]
    before = threading.active_count()
    with TransformersLLM(folders[0]) as llm:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(llm.set_model_name, folders))
        assert llm.model.config.model_type == ("llama" if llm.model_name == folders[0] else "qwen3")
        assert llm.run("hello", max_tokens=1)
    assert threading.active_count() <= before


def test_close_ends_the_model_before_as_well_and_a_stream_of_it_keeps_what_was_generated(
    changing: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    expected = changing.run("hello", **LONG)
    stream = changing.stream("hello", **LONG)
    begun = next(stream)
    before = changing._routes
    changing.model_name = str(model_folder("qwen3"))
    changing.close()
    with pytest.raises(ModelClosed):
        list(before.chunks([Request("hello", prompt_ids=(5, 6))]))
    assert begun + "".join(stream) == expected
