"""The committed JSON schema is the code's, and agrees with it on what a task is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from llmkit.errors import TaskArgsInvalid
from llmkit.gpt_task import GPTTask, GPTTaskStreamChunk, json_schema
from llmkit.testing import ScriptedLLM
from llmkit.types import Chunk, Usage
from tools import schema as tool

SCHEMA = json.loads(tool.PATH.read_text(encoding="utf-8"))
TASK = Draft202012Validator(SCHEMA)
RESPONSE = Draft202012Validator({**SCHEMA, "$ref": "#/$defs/GPTTaskResponse"})
STREAM_CHUNK = Draft202012Validator({**SCHEMA, "$ref": "#/$defs/GPTTaskStreamChunk"})

SAMPLE_TASK = {
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
SAMPLE_RESPONSE = {
    "model": "gpt2",
    "choices": [
        {
            "finish_reason": "length",
            "message": {
                "role": "assistant",
                "content": '\n\nI have a chat bot, called "Eleanor" which was developed by my team on Skype. '
                "The only thing I will say is this",
            },
            "index": 0,
        }
    ],
    "usage": {"prompt_tokens": 11, "completion_tokens": 30, "total_tokens": 41},
}


# --- freshness ------------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_fresh() -> None:
    assert tool.main(["--check"]) is None
    assert json_schema() == SCHEMA


def test_a_stale_or_missing_schema_fails_the_check_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert "is missing; run: python -m tools.schema" in str(tool.main(["--check", "--path", str(path)]))
    path.write_text("{}")
    assert "is stale" in str(tool.main(["--check", "--path", str(path)]))
    assert tool.main(["--path", str(path)]) is None
    assert tool.main(["--check", "--path", str(path)]) is None


# --- what it says ---------------------------------------------------------------------------------------------------


def test_it_is_a_valid_schema_of_its_draft() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_documented_samples_validate() -> None:
    TASK.validate(SAMPLE_TASK)
    RESPONSE.validate(SAMPLE_RESPONSE)


def test_the_example_that_make_run_executes_validates() -> None:
    example = Path(__file__).parents[2] / "examples" / "task.json"
    TASK.validate(json.loads(example.read_text(encoding="utf-8")))


def test_real_responses_and_streams_validate() -> None:
    llm = ScriptedLLM("one two", model_name="m")
    task = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    RESPONSE.validate(llm.execute(task).model_dump(mode="json"))
    for chunk in llm.execute(task, stream=True):
        STREAM_CHUNK.validate(chunk.model_dump(mode="json"))
    STREAM_CHUNK.validate(GPTTaskStreamChunk.of("m", Chunk(0), Usage(None, None)).model_dump(mode="json"))


@pytest.mark.parametrize("missing", ["model", "choices", "usage"])
def test_a_response_without_one_of_its_parts_does_not_validate(missing: str) -> None:
    with pytest.raises(ValidationError):
        RESPONSE.validate({key: value for key, value in SAMPLE_RESPONSE.items() if key != missing})


def test_every_field_of_a_task_is_described() -> None:
    for record in ("GPTTask", "GenerationConfig"):
        for name, field in SCHEMA["$defs"][record]["properties"].items():
            assert field.get("description"), name


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(-1.5, 2.5),
    st.sampled_from([2**64, "", "a", "auto", [], [""], ["a"], {}, {"tokenize": 1}, [{"role": "user", "content": "x"}]]),
)
PLACES = [(name,) for name in SCHEMA["$defs"]["GPTTask"]["properties"]] + [
    ("generation_config", name) for name in [*SCHEMA["$defs"]["GenerationConfig"]["properties"], "unknown"]
]


def is_integral_float(value: Any) -> bool:
    """To JSON schema 3.0 is an integer; llmkit wants it written as one."""
    return isinstance(value, float) and value.is_integer()


@given(place=st.sampled_from(PLACES), value=VALUES.filter(lambda value: not is_integral_float(value)))
def test_the_schema_refuses_nothing_that_parses(place: tuple[str, ...], value: Any) -> None:
    task: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "generation_config": {}}
    (task if len(place) == 1 else task[place[0]])[place[-1]] = value
    try:
        GPTTask.parse(task)
    except TaskArgsInvalid:
        return
    TASK.validate(task)


@given(name=st.sampled_from(list(SCHEMA["$defs"]["GenerationConfig"]["properties"])), value=VALUES)
def test_the_schema_agrees_with_parse_on_every_range(name: str, value: Any) -> None:
    if is_integral_float(value) or name == "stop_strings":
        return
    task = {"model": "m", "messages": [{"role": "user", "content": "x"}], "generation_config": {name: value}}
    try:
        GPTTask.parse(task)
    except TaskArgsInvalid:
        assert not TASK.is_valid(task)
    else:
        assert TASK.is_valid(task)
