"""What counts as a GPT task, what is said of everything else, and the shapes that come back."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit.errors import ParameterError, TaskArgsInvalid
from llmkit.params import GenerationParams
from llmkit.specs import SPECS, canonical_name
from llmkit.types import Choice, Chunk, Completion, Message, Timings, Usage
from llmkit.wire import GenerationConfig, GPTTask, GPTTaskResponse, GPTTaskStreamChunk

SEED_TASK = {
    "model": "gpt2",
    "messages": [{"role": "user", "content": "I want to create a chat bot. Any suggestions?"}],
    "generation_config": {
        "max_new_tokens": 30,
        "do_sample": True,
        "num_beams": 1,
        "temperature": 1.0,
        "typical_p": 1.0,
        "top_k": 20,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "num_return_sequences": 1,
    },
    "seed": 42,
    "dtype": "auto",
    "quantize_bits": 4,
}


def task(**changes: Any) -> dict[str, Any]:
    return {"model": "gpt2", "messages": [{"role": "user", "content": "hi"}], **changes}


def message(**fields: Any) -> dict[str, Any]:
    return task(messages=[fields])


def problem_of(bad: Any) -> str:
    with pytest.raises(TaskArgsInvalid) as caught:
        GPTTask.parse(bad)
    return str(caught.value)


# --- what is accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [dict, json.dumps, lambda data: json.dumps(data).encode()], ids=["dict", "str", "bytes"]
)
def test_the_documented_task_parses_from_every_form(form: Any) -> None:
    parsed = GPTTask.parse(form(SEED_TASK))
    assert (parsed.model, parsed.seed, parsed.dtype, parsed.quantize_bits) == ("gpt2", 42, "auto", 4)
    assert parsed.model_dump(mode="json", exclude_none=True) == SEED_TASK


def test_a_parsed_task_is_itself() -> None:
    parsed = GPTTask.parse(SEED_TASK)
    assert GPTTask.parse(parsed) is parsed


def test_only_model_and_messages_are_required() -> None:
    parsed = GPTTask.parse(task())
    assert (parsed.seed, parsed.dtype, parsed.quantize_bits) == (0, "auto", None)
    assert parsed.generation_config == GenerationConfig()


def test_a_task_becomes_a_self_contained_request() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    config = {"max_new_tokens": 3, "stop_strings": ["a", "b"], "min_p": 0.1}
    parsed = GPTTask.parse(
        task(generation_config=config, seed=7, tools=tools, template_args={"enable_thinking": False})
    )
    request = parsed.to_request()
    assert request.prompt == (Message("user", "hi"),)
    assert request.params == GenerationParams(max_tokens=3, stop_token=("a", "b"), min_p=0.1, seed=7)
    assert (list(request.tools), request.template_args) == (tools, {"enable_thinking": False})
    assert request.self_contained


def test_text_blocks_are_joined() -> None:
    parsed = GPTTask.parse(
        message(role="user", content=[{"type": "text", "text": "a "}, {"type": "text", "text": "b"}])
    )
    assert parsed.to_request().prompt == (Message("user", "a b"),)


def test_tool_calls_and_answers_reach_the_request() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    assert GPTTask.parse(task(messages=turns)).to_request().prompt[1:] == (
        Message("assistant", "", (call,)),
        Message("tool", "42", (), "c1"),
    )


@pytest.mark.parametrize("value", [1, 1.0])
def test_an_integer_is_a_number(value: float) -> None:
    assert GPTTask.parse(task(generation_config={"temperature": value})).generation_config.temperature == 1.0


def test_temperature_zero_with_sampling_is_a_valid_task() -> None:
    config = GPTTask.parse(task(generation_config={"temperature": 0, "do_sample": True})).generation_config
    assert (config.temperature, config.do_sample) == (0.0, True)


def test_null_means_not_set() -> None:
    names = GenerationConfig.model_fields
    assert dict(GPTTask.parse(task(generation_config=dict.fromkeys(names))).to_request().params) == {"seed": 0}


# --- what is refused, and in which words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (task(generation_config={"top_p": 2}), "generation_config.top_p: must be in (0, 1], got 2"),
        (task(generation_config={"temperature": "1"}), "generation_config.temperature: must be >= 0, got '1'"),
        (
            task(generation_config={"max_new_tokens": 0}),
            "generation_config.max_new_tokens: must be an integer >= 1, got 0",
        ),
        (task(generation_config={"max_new_tokens": 3.0}), "must be an integer >= 1, got 3.0"),
        (task(generation_config={"do_sample": 1}), "generation_config.do_sample: must be true or false, got 1"),
        (task(generation_config={"stop_strings": ["a", ""]}), "must be a non-empty string or a list of them"),
        (task(generation_config={"topp": 1}), "generation_config.topp: is not a known key; did you mean 'top_p'?"),
        (task(generation_config=None), "generation_config: must be an object, got None"),
        (
            task(generation_config={"num_beams": 2, "num_return_sequences": 3}),
            "generation_config: num_return_sequences must be <= num_beams, got 3 and 2",
        ),
        (task(sede=1), "sede: is not a known key; did you mean 'seed'?"),
        (task(seed="4"), "seed: must be an integer in [0, 2**64), got '4'"),
        (task(seed=True), "seed: must be an integer in [0, 2**64), got True"),
        (task(seed=-1), "seed: must be an integer in [0, 2**64), got -1"),
        (task(seed=None), "seed: must be an integer, got None"),
        (task(dtype="f16"), "dtype: must be 'auto', 'float16', 'bfloat16' or 'float32', got 'f16'"),
        (task(quantize_bits=5), "quantize_bits: must be 4 or 8, got 5"),
        (task(quantize_bits="4"), "quantize_bits: must be 4 or 8, got '4'"),
        (task(model=""), "model: must be a non-empty string, got ''"),
        (task(model=" "), "model: must be a non-empty string, got ' '"),
        (task(model=3), "model: must be a string, got 3"),
        ({"messages": task()["messages"]}, "model: is required"),
        ({"model": "gpt2"}, "messages: is required"),
        (task(messages=[]), "messages must not be empty"),
        (task(messages="hi"), "messages: must be a list, got 'hi'"),
        (task(messages=["hi"]), "messages[0]: must be an object, got 'hi'"),
        (message(content="hi"), "messages[0].role: is required"),
        (
            message(role="usr", content="x"),
            "messages[0].role: must be 'system', 'user', 'assistant' or 'tool', got 'usr'",
        ),
        (message(role="user"), "messages[0]: content is required"),
        (message(role="user", content=""), "at least one message must have content"),
        (message(role="user", content=3), "messages[0].content: must be a string, got 3"),
        (
            message(role="user", content="\ud800"),
            "messages[0].content: must be Unicode text, got half of a surrogate pair",
        ),
        (
            task(generation_config={"stop_strings": ["a", "\ud800"]}),
            "stop_token[1] must be Unicode text, got half of a surrogate pair at character 0",
        ),
        (task(tools=[{"name": "\ud800"}]), "tools[0].name must be Unicode text"),
        (message(role="user", content="hi", name="x"), "messages[0].name: is not a known key"),
        (message(role="user", content=[{"type": "text", "text": ""}]), "content[0].text: must be a non-empty string"),
        (
            message(role="user", content=[{"type": "text", "text": "a", "bold": 1}]),
            "content[0].bold: is not a known key",
        ),
        (message(role="user", content=[{"type": "image", "image": "x"}]), "content[0]: image blocks are not supported"),
        (message(role="user", content=[{"type": "image_url", "image_url": {}}]), "image blocks are not supported"),
        (
            message(role="user", content=[{"type": "audio", "text": "a"}]),
            "content[0].type: must be 'text', got 'audio'",
        ),
        (task(template_args={"tokenize": True}), "template_args: 'tokenize' cannot be set"),
        ([task()], "a GPT task must be an object"),
        (7, "a GPT task must be an object, got 7"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_value(bad: Any, words: str) -> None:
    problem = problem_of(bad)
    assert words in problem
    assert "\n" not in problem


def test_all_problems_are_listed() -> None:
    lines = problem_of(task(sede=1, dtype="f16", generation_config={"top_p": 2, "top_k": "x"})).splitlines()
    assert lines[0] == "4 problems:"
    assert sorted(line.partition(":")[0] for line in lines[1:]) == [
        "dtype",
        "generation_config.top_k",
        "generation_config.top_p",
        "sede",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": "a",\n  "seed": }', "at line 2, column 11"),
        ("", "at line 1, column 1"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' is given twice"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "a GPT task must be an object, got None"),
    ],
)
def test_text_that_is_no_json_task_says_where(text: str | bytes, words: str) -> None:
    assert words in problem_of(text)


def test_a_long_value_is_shown_in_part() -> None:
    assert len(problem_of(task(dtype="x" * 10_000))) < 200


def test_a_task_made_without_parse_is_still_checked_when_it_runs() -> None:
    made = GPTTask(model="a", messages=())
    assert "messages must not be empty" in problem_of(made)


NUMERIC = ("max_new_tokens", "num_beams", "temperature", "typical_p", "top_k", "top_p", "min_p", "num_return_sequences")
ANY_NUMBER = st.one_of(
    st.integers(-3, 3), st.floats(-2.5, 2.5), st.sampled_from([math.nan, math.inf, True, "1", 2**70])
)


@given(name=st.sampled_from([*NUMERIC, "repetition_penalty", "do_sample"]), value=ANY_NUMBER)
def test_a_task_takes_exactly_the_values_that_a_keyword_takes(name: str, value: Any) -> None:
    try:
        expected = SPECS[canonical_name(name)].validated(name, value)
    except ParameterError as error:
        rule = str(error).removeprefix(f"{name} ")
        assert problem_of(task(generation_config={name: value})) == f"generation_config.{name}: {rule}"
    else:
        assert getattr(GPTTask.parse(task(generation_config={name: value})).generation_config, name) == expected


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    key=st.sampled_from([*GPTTask.model_fields, "other"]),
)
def test_whatever_is_passed_is_parsed_or_refused_as_a_task(data: Any, key: str) -> None:
    for anything in (data, json.dumps(data), task(**{key: data})):
        with suppress(TaskArgsInvalid):
            assert isinstance(GPTTask.parse(anything), GPTTask)


# --- what comes back ------------------------------------------------------------------------------------------------


def completion(*choices: Choice, usage: Usage) -> Completion:
    return Completion(choices, usage, Timings(0.0, None), GenerationParams())


def dumped(shape: BaseModel) -> Any:
    return json.loads(shape.model_dump_json())


def test_a_response_has_exactly_the_documented_shape() -> None:
    answer = completion(Choice(0, "\n\nHi", "length", (1, 2)), usage=Usage(11, 30))
    assert dumped(GPTTaskResponse.of("gpt2", answer)) == {
        "model": "gpt2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "\n\nHi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 30, "total_tokens": 41},
    }


def test_a_tool_call_ends_a_task_with_stop() -> None:
    answer = completion(Choice(0, "{}", "tool_calls"), usage=Usage(1, 1))
    assert GPTTaskResponse.of("m", answer).choices[0].finish_reason == "stop"


def test_unknown_counts_stay_unknown() -> None:
    answer = completion(Choice(0, "x", "stop"), usage=Usage(3, None))
    usage = GPTTaskResponse.of("m", answer).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, None, None)


@pytest.mark.parametrize(
    ("reason", "shown"), [(None, None), ("stop", "stop"), ("length", "length"), ("tool_calls", "stop")]
)
def test_a_stream_chunk_has_the_documented_shape(reason: Any, shown: str | None) -> None:
    chunk = Chunk(0, choice=2, text="" if reason else "hi", finish_reason=reason)
    assert dumped(GPTTaskStreamChunk.of("gpt2", chunk, Usage(3, 4))) == {
        "model": "gpt2",
        "choices": [{"index": 2, "delta": {"role": "assistant", "content": chunk.text}, "finish_reason": shown}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
