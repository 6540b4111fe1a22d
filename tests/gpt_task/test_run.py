"""A GPT task from its JSON to its response, on a plug-in that is found and loaded like any other."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest

import llmkit
from llmkit.errors import (
    ContextLengthExceeded,
    ModelClosed,
    ModelDownloadError,
    TaskArgsInvalid,
    TaskExecutionError,
    UnknownBackend,
    UnsupportedParameter,
)
from llmkit.gpt_task import GPTTaskStreamChunk, ModelCache, default_cache, run_task


def task(content: str = "What is the capital of France?", model: str = "scripted:m", **changes: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **changes}


@pytest.fixture
def cache() -> ModelCache:
    return ModelCache()


def streamed(request: Any, cache: ModelCache) -> list[GPTTaskStreamChunk]:
    chunks: list[GPTTaskStreamChunk] = []
    assert run_task(request, stream_callback=chunks.append, cache=cache) is None
    return chunks


# --- the response ---------------------------------------------------------------------------------------------------


def test_a_json_task_gives_the_documented_response(plugin: ModuleType, cache: ModelCache) -> None:
    response = run_task(json.dumps(task()), cache=cache)
    assert response.model_dump(mode="json") == {
        "model": "scripted:m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "\n\nParis is the capital."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13},
    }


def test_the_limit_of_new_tokens_ends_with_length(plugin: ModuleType, cache: ModelCache) -> None:
    response = run_task(task(generation_config={"max_new_tokens": 3}), cache=cache)
    assert (response.choices[0].message.content, response.choices[0].finish_reason) == ("\n\nParis", "length")
    assert response.usage.completion_tokens == 3


def test_stop_strings_end_with_stop(plugin: ModuleType, cache: ModelCache) -> None:
    response = run_task(task(generation_config={"stop_strings": ["is the"]}), cache=cache)
    assert (response.choices[0].message.content, response.choices[0].finish_reason) == ("\n\nParis ", "stop")


def test_there_are_as_many_choices_as_asked_for_and_usage_counts_all(plugin: ModuleType, cache: ModelCache) -> None:
    config = {"do_sample": True, "num_return_sequences": 6, "temperature": 2.0}
    response = run_task(task(generation_config=config, seed=3), cache=cache)
    contents = [choice.message.content for choice in response.choices]
    assert [choice.index for choice in response.choices] == list(range(6))
    assert len(set(contents)) == 3
    n_tokens = {"\n\nParis is the capital.": 7, "It is Paris.": 4, "Paris, héllo 😀!": 4}
    assert response.usage.completion_tokens == sum(n_tokens[content] for content in contents)


def test_the_same_task_gives_the_same_response_whatever_ran_before(plugin: ModuleType, cache: ModelCache) -> None:
    sampled = task(generation_config={"do_sample": True, "num_return_sequences": 4, "temperature": 1.5}, seed=11)
    first = run_task(sampled, cache=cache)
    run_task(task("something else"), cache=cache)
    assert run_task(sampled, cache=cache) == first == run_task(sampled, cache=ModelCache())


def test_temperature_zero_is_greedy_even_where_sampling_is_asked_for(plugin: ModuleType, cache: ModelCache) -> None:
    greedy = run_task(task(generation_config={"do_sample": False}), cache=cache)
    for seed in range(8):
        assert run_task(task(generation_config={"do_sample": True, "temperature": 0}, seed=seed), cache=cache) == greedy


def test_the_package_exports_run_task(plugin: ModuleType, cache: ModelCache) -> None:
    assert llmkit.run_task is run_task


# --- the stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_joined_deltas_are_the_content_and_the_last_usage_is_the_whole(
    plugin: ModuleType, cache: ModelCache, seed: int
) -> None:
    config = {"do_sample": True, "num_return_sequences": 3, "stop_strings": ["capital"], "max_new_tokens": 6}
    request = task(generation_config=config, seed=seed)
    response, chunks = run_task(request, cache=cache), streamed(request, cache)
    for choice in response.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(piece.delta.content for piece in own) == choice.message.content
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert own[-1].delta.content == ""
    assert chunks[-1].usage == response.usage


def test_usage_in_a_stream_only_grows(plugin: ModuleType, cache: ModelCache) -> None:
    counts = [chunk.usage.completion_tokens or 0 for chunk in streamed(task(), cache)]
    assert counts == sorted(counts)
    assert counts[0] == 1


def test_text_comes_before_the_generation_has_ended(plugin: ModuleType, cache: ModelCache) -> None:
    first = streamed(task(), cache)[0]
    assert (first.choices[0].delta.content, first.choices[0].finish_reason) == ("\n", None)


def test_a_callback_that_raises_ends_the_generation_with_its_own_error(plugin: ModuleType, cache: ModelCache) -> None:
    class Enough(Exception):
        pass

    seen: list[GPTTaskStreamChunk] = []

    def callback(chunk: GPTTaskStreamChunk) -> None:
        seen.append(chunk)
        raise Enough

    # Keeping the error keeps its frames: the model must not wait for them to go.
    with pytest.raises(Enough) as caught:
        run_task(task(), stream_callback=callback, cache=cache)
    assert len(seen) == 1
    assert caught.value.__cause__ is None
    run_task(task(model="scripted:other"), cache=cache)
    with pytest.raises(ModelClosed):
        plugin.LOADED[0].run("x")


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_model_is_kept_for_the_next_task(plugin: ModuleType, cache: ModelCache) -> None:
    for _ in range(3):
        run_task(task(), cache=cache)
    assert len(plugin.LOADED) == 1


@pytest.mark.parametrize(
    "other", [{"dtype": "float16"}, {"quantize_bits": 8}, {"model": "scripted:m@v2"}, {"model": "scripted:n"}]
)
def test_dtype_bits_revision_and_name_make_another_model(plugin: ModuleType, other: dict[str, Any]) -> None:
    cache = ModelCache(max_models=2)
    for changes in ({}, other, {}, other):
        run_task(task(**changes), cache=cache)
    assert len(plugin.LOADED) == 2


def test_seed_and_generation_config_make_no_other_model(plugin: ModuleType, cache: ModelCache) -> None:
    run_task(task(), cache=cache)
    run_task(task("hi", seed=5, generation_config={"max_new_tokens": 1}), cache=cache)
    assert len(plugin.LOADED) == 1


def test_dtype_and_bits_reach_the_backend_only_where_they_are_set(plugin: ModuleType, cache: ModelCache) -> None:
    run_task(task(dtype="bfloat16", quantize_bits=4), cache=cache)
    run_task(task(dtype="auto"), cache=cache)
    assert plugin.OPTIONS == [{"dtype": "bfloat16", "quantize_bits": 4}, {"dtype": None, "quantize_bits": None}]


def test_tasks_at_the_same_time_share_one_model(plugin: ModuleType, cache: ModelCache) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda seed: run_task(task(seed=seed), cache=cache), range(32)))
    assert len({response.model_dump_json() for response in responses}) == 1
    assert len(plugin.LOADED) == 1


def test_without_a_cache_the_process_keeps_one(plugin: ModuleType) -> None:
    try:
        run_task(task())
        run_task(task())
        assert (len(plugin.LOADED), len(default_cache)) == (1, 1)
    finally:
        default_cache.clear()


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [task(generation_config={"top_p": 2}), task(""), {**task(), "messages": []}, task(sede=1), "{", b"\xff"]
)
def test_a_malformed_task_is_refused_before_anything_loads(plugin: ModuleType, cache: ModelCache, bad: Any) -> None:
    with pytest.raises(TaskArgsInvalid):
        run_task(bad, cache=cache)
    assert plugin.LOADED == []


def test_a_model_that_cannot_be_had_is_a_model_error(plugin: ModuleType, cache: ModelCache) -> None:
    with pytest.raises(ModelDownloadError, match="the hub could not be reached"):
        run_task(task(model="scripted:unreachable"), cache=cache)


@pytest.mark.parametrize(
    ("request_", "cause", "words"),
    [
        (task("fail"), KeyError, "deep down"),
        (task("word " * 70), ContextLengthExceeded, "the limit of 64"),
        (task(generation_config={"top_k": 5}), UnsupportedParameter, "top_k"),
        (task(model="nope:m"), UnknownBackend, "no backend is named 'nope'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_any_other_failure_is_named_and_keeps_its_cause(
    plugin: ModuleType, cache: ModelCache, request_: Any, cause: type[Exception], words: str, stream: bool
) -> None:
    with pytest.raises(TaskExecutionError, match=words) as caught:
        run_task(request_, stream_callback=print if stream else None, cache=cache)
    assert isinstance(caught.value.__cause__, cause)
    assert cause.__name__ in str(caught.value)


@pytest.mark.parametrize("content", ["out of memory", "host out of memory"])
def test_running_out_of_memory_is_passed_on_as_it_is(plugin: ModuleType, cache: ModelCache, content: str) -> None:
    with pytest.raises((plugin.OutOfMemoryError, MemoryError), match="no room"):
        run_task(task(content), cache=cache)
