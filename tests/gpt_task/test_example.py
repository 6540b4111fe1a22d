"""The task that `make run` executes, on the real embedded model through the real loader."""

import json
from pathlib import Path

import pytest

from llmkit.gpt_task import GPTTaskResponse, GPTTaskStreamChunk, ModelCache, run_task

EXAMPLE = (Path(__file__).parents[2] / "examples" / "task.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    pytest.importorskip("llmkit_transformers", exc_type=ImportError)
    return ModelCache()


@pytest.fixture(scope="module")
def response(cache: ModelCache) -> GPTTaskResponse:
    return run_task(EXAMPLE, cache=cache)


def test_the_answer_is_true(response: GPTTaskResponse) -> None:
    assert response.choices[0].message.content == "The capital of France is Paris."
    assert response.choices[0].finish_reason == "stop"


def test_running_it_again_gives_the_same(cache: ModelCache, response: GPTTaskResponse) -> None:
    assert run_task(EXAMPLE, cache=cache) == response


def test_its_stream_joins_to_its_answer(cache: ModelCache, response: GPTTaskResponse) -> None:
    chunks: list[GPTTaskStreamChunk] = []
    run_task(EXAMPLE, stream_callback=chunks.append, cache=cache)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == response.choices[0].message.content
    assert chunks[-1].usage == response.usage


def test_sampled_choices_keep_apart_and_count_every_token(cache: ModelCache) -> None:
    config = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "num_return_sequences": 3}
    task = {**json.loads(EXAMPLE), "generation_config": config}
    plain = run_task(task, cache=cache)
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert 3 <= (plain.usage.completion_tokens or 0) <= 36
    chunks: list[GPTTaskStreamChunk] = []
    run_task(task, stream_callback=chunks.append, cache=cache)
    for choice in plain.choices:
        own = (chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index)
        assert "".join(piece.delta.content for piece in own) == choice.message.content
    assert chunks[-1].usage == plain.usage
