"""Requests as they go over the wire, for each kind of server."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from llmkit import GenerationParams, Message, Request
from llmkit.errors import ParameterError, UnsupportedFeature
from llmkit.params import resolve
from llmkit.structured import Constraint
from llmkit_openai.body import BodyWriter, Post
from llmkit_openai.servers import KINDS

SCHEMA = {"title": "A city!", "type": "object", "properties": {"name": {"type": "string"}}}


def posts(kind: str, prompt: Any = "Hi", *, extra: Mapping[str, Any] | None = None, **given: Any) -> list[Post]:
    shape = {name: given.pop(name) for name in ("raw", "tools", "template_args", "constraint") if name in given}
    request = Request(prompt, resolve(GenerationParams(**given), GenerationParams()), **shape)
    return BodyWriter("m", KINDS[kind], extra or {}).posts(0, request)


def body(kind: str, prompt: Any = "Hi", **given: Any) -> Mapping[str, Any]:
    (post,) = posts(kind, prompt, **given)
    return post.body


def test_a_string_is_one_user_message() -> None:
    (post,) = posts("generic")
    assert post.path == "chat/completions"
    assert post.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 256,
        "temperature": 0.0,
    }


def test_a_raw_string_goes_to_the_completions_endpoint() -> None:
    (post,) = posts("generic", raw=True)
    assert (post.path, post.body["prompt"]) == ("completions", "Hi")
    assert "messages" not in post.body


def test_greedy_is_said_and_leaves_idle_filters_out() -> None:
    sent = body("vllm", top_k=5, top_p=0.5, do_sample=False)
    assert sent["temperature"] == 0.0
    assert not {"top_k", "top_p", "min_p"} & set(sent)


def test_sampling_leaves_nothing_to_the_servers_defaults() -> None:
    sent = body("llama-cpp-python", do_sample=True, seed=1)
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    assert neutral.items() <= sent.items()
    assert body("openai", do_sample=True, seed=1).keys() & {"top_p", "top_k"} == set()


@pytest.mark.parametrize(
    ("kind", "given", "sent"),
    [
        ("generic", {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        (
            "generic",
            {"frequency_penalty": 0.5, "presence_penalty": -1},
            {"frequency_penalty": 0.5, "presence_penalty": -1},
        ),
        ("generic", {"stop": "x"}, {"stop": ["x"]}),
        ("generic", {"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ("generic", {"seed": 5}, {"seed": 5}),
        ("generic", {"max_tokens": 7}, {"max_tokens": 7}),
        ("openai", {"max_tokens": 7}, {"max_completion_tokens": 7}),
        ("generic", {"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ("generic", {"logprobs": 3, "raw": True}, {"logprobs": 3}),
        ("openai", {"max_tokens": 7, "raw": True}, {"max_tokens": 7}),
        ("vllm", {"top_k": 5, "min_p": 0.1}, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0}),
        ("vllm", {"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ("llama-server", {"typical_p": 0.9}, {"typical_p": 0.9, "repeat_penalty": 1.0}),
        ("llama-server", {"repetition_penalty": 1.2}, {"repeat_penalty": 1.2, "repeat_last_n": -1}),
    ],
)
def test_parameters_have_the_servers_names(kind: str, given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert sent.items() <= body(kind, **given).items()


def test_transformers_gets_its_parameters_in_one_string() -> None:
    sent = dict(body("transformers", temperature=0.5, top_k=3, max_tokens=9, stop="x", seed=2))
    config = json.loads(sent.pop("generation_config"))
    assert config == {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 1.0,
        "typical_p": 1.0,
        "max_new_tokens": 9,
    }
    assert sent.keys() == {"model", "messages", "stream", "stop", "seed"}


@pytest.mark.parametrize("kind", ["openai", "vllm"])
def test_several_choices_are_one_post_where_the_server_gives_them(kind: str) -> None:
    (post,) = posts(kind, n=3, temperature=1.0, seed=1)
    assert (post.body["n"], post.choices) == (3, range(3))


def test_several_greedy_choices_are_several_posts_everywhere() -> None:
    assert [post.choices for post in posts("vllm", n=2)] == [range(0, 1), range(1, 2)]


def test_several_choices_are_several_posts_elsewhere_each_with_its_own_seed() -> None:
    three = posts("generic", n=3, temperature=1.0, seed=1)
    assert [post.choices for post in three] == [range(0, 1), range(1, 2), range(2, 3)]
    assert all("n" not in post.body for post in three)
    seeds = [post.body["seed"] for post in three]
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
    assert seeds == [post.body["seed"] for post in posts("generic", n=3, temperature=1.0, seed=1)]
    assert not set(seeds) & {post.body["seed"] for post in posts("generic", n=3, temperature=1.0, seed=2)}


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_seeds_fit_every_server(seed: int) -> None:
    sent = body("generic", temperature=1.0, seed=seed)["seed"]
    assert 0 <= sent < 2**31
    assert sent == seed or seed >= 2**31


def test_high_bits_of_a_seed_count() -> None:
    sent = {body("generic", seed=seed)["seed"] for seed in (7, 7 + 2**32, 7 + 2**33, 7 + 2**40)}
    assert len(sent) == 4


def test_tools_and_calls_go_as_the_api_wants_them() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
    messages = (Message("user", "Hi"), Message("assistant", "", (call,)), Message("tool", "3", tool_call_id="1"))
    sent = body("generic", messages, tools=(tool,))
    assert sent["tools"] == [tool]
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": "é"}'}
    assert sent["messages"][2] == {"role": "tool", "content": "3", "tool_call_id": "1"}
    assert call["function"]["arguments"] == {"x": "é"}


def test_template_args_go_where_a_server_takes_them_and_are_refused_elsewhere() -> None:
    assert body("vllm", template_args={"thinking": False})["chat_template_kwargs"] == {"thinking": False}
    with pytest.raises(UnsupportedFeature, match="vllm, llama-server and transformers"):
        posts("generic", template_args={"thinking": False})


@pytest.mark.parametrize("shape", [{"tools": ({"name": "f"},)}, {"template_args": {"a": 1}}])
def test_a_raw_prompt_has_no_template(shape: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature, match="need a chat template"):
        posts("vllm", raw=True, **shape)


def test_a_schema_is_a_response_format() -> None:
    constraint = Constraint.of(schema=SCHEMA)
    sent = body("generic", constraint=constraint)["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "A_city_", "schema": SCHEMA, "strict": True}}
    assert body("llama-cpp-python", constraint=constraint)["response_format"] == {
        "type": "json_object",
        "schema": SCHEMA,
    }


def test_vllm_has_more_kinds_of_constraints_and_has_them_for_raw_prompts() -> None:
    assert body("vllm", constraint=Constraint.of(regex="a+"))["structured_outputs"] == {"regex": "a+"}
    assert body("vllm", constraint=Constraint.of(choice=["a", "b"]))["structured_outputs"] == {"choice": ["a", "b"]}
    assert body("vllm", raw=True, constraint=Constraint.of(schema=SCHEMA))["structured_outputs"] == {"json": SCHEMA}
    with pytest.raises(UnsupportedFeature, match="has none for raw prompts"):
        posts("generic", raw=True, constraint=Constraint.of(schema=SCHEMA))


def test_extra_fields_go_into_every_body() -> None:
    assert body("generic", extra={"reasoning_effort": "low"})["reasoning_effort"] == "low"


@pytest.mark.parametrize("name", ["temperature", "messages", "stream", "n", "max_completion_tokens", "stop"])
def test_extra_fields_must_not_be_llmkits_own(name: str) -> None:
    with pytest.raises(ParameterError, match=f"extra_body must not set '{name}'"):
        posts("generic", extra={name: 1})


@pytest.mark.parametrize("name", KINDS)
def test_every_declared_parameter_reaches_the_body(name: str) -> None:
    """A declared parameter that changed nothing in the request would be dropped without a word."""
    values = {
        "temperature": 0.3,
        "top_k": 7,
        "top_p": 0.7,
        "min_p": 0.07,
        "typical_p": 0.7,
        "max_tokens": 17,
        "seed": 27,
    }
    values |= {"frequency_penalty": 0.7, "presence_penalty": 0.7, "repetition_penalty": 1.7, "stop_token": "x"}
    values |= {"logprobs": 2}
    plain = json.dumps(body(name, do_sample=True, seed=1))
    for param in KINDS[name].capabilities.params & values.keys():
        assert json.dumps(body(name, **{"do_sample": True, "seed": 1, param: values[param]})) != plain, param
