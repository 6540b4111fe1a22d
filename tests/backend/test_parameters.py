"""Parameters change the generation, or are refused, or are reported: none is lost."""

import warnings
from dataclasses import replace
from typing import Any

import pytest

from llmkit.errors import (
    InertParameterWarning,
    ParameterError,
    UnsupportedFeature,
    UnsupportedParameter,
    UnsupportedParameterWarning,
)
from llmkit.testing import ScriptedLLM


class WithoutFeatures(ScriptedLLM):
    capabilities = replace(ScriptedLLM.capabilities, tools=False, structured=frozenset())


def gpt_task(content: str = "x", **changes: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **changes}


def test_a_call_overrides_the_instance_and_leaves_it_as_it_was() -> None:
    llm = ScriptedLLM("one two three", max_tokens=1)
    assert (llm.run("x", max_tokens=2), llm.run("x"), llm.max_tokens) == ("one two", "one", 1)


def test_sampling_without_a_seed_draws_one_that_replays_the_run() -> None:
    llm = ScriptedLLM([str(n) for n in range(50)], temperature=30.0)
    drawn = [llm.complete("x") for _ in range(8)]
    assert len({completion.params.seed for completion in drawn}) == 8
    for completion in drawn:
        assert llm.run("x", seed=completion.params.seed) == completion.text


def test_greedy_decoding_draws_no_seed() -> None:
    assert ScriptedLLM().complete("x").params.seed is None


def test_a_temperature_implies_sampling_and_zero_is_greedy() -> None:
    llm = ScriptedLLM()
    used = [llm.complete("x", **params).params.do_sample for params in ({}, {"temperature": 0.5}, {"temperature": 0})]
    assert used == [False, True, False]
    assert llm.complete("x", temperature=0, do_sample=True).params.do_sample is False


def test_only_a_seeded_completion_carries_the_fingerprint() -> None:
    llm = ScriptedLLM()
    assert (llm.complete("x").fingerprint, llm.complete("x", seed=1).fingerprint) == (None, llm.fingerprint)


def test_a_parameter_that_the_backend_cannot_honour_is_refused_everywhere() -> None:
    with pytest.raises(UnsupportedParameter, match="the scripted backend cannot honour 'top_k'"):
        ScriptedLLM(top_k=5)
    with pytest.raises(UnsupportedParameter):
        ScriptedLLM().run("x", top_k=5)
    with pytest.raises(UnsupportedParameter):
        ScriptedLLM().execute(gpt_task(generation_config={"top_k": 5}))


def test_a_neutral_value_is_never_refused() -> None:
    neutral = {"top_k": 0, "top_p": 1.0, "num_beams": 1, "repetition_penalty": 1.0}
    assert ScriptedLLM("yes").run("x", **neutral, do_sample=False) == "yes"


def test_a_parameter_is_left_out_with_one_warning_where_that_is_allowed() -> None:
    llm = ScriptedLLM("yes", on_unsupported="warn")
    with pytest.warns(UnsupportedParameterWarning, match="top_k is left out"):
        completion = llm.complete("x", top_k=5)
    assert (completion.text, completion.params.top_k) == ("yes", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.run("x", top_k=5)


def test_on_unsupported_is_one_of_two() -> None:
    with pytest.raises(ParameterError, match="on_unsupported must be"):
        ScriptedLLM(on_unsupported="ignore")


def test_a_value_without_effect_is_listed_and_warned_about_once() -> None:
    llm = ScriptedLLM()
    with pytest.warns(InertParameterWarning, match="temperature has no effect"):
        completion = llm.complete("x", temperature=0.5, do_sample=False)
    assert completion.inert == ("temperature",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert llm.complete("x", temperature=0.5, do_sample=False).inert == ("temperature",)
        assert llm.complete("x", temperature=0.5, seed=1).inert == ()


def test_tools_are_refused_by_a_backend_that_cannot_pass_them() -> None:
    with pytest.raises(UnsupportedFeature, match="cannot pass tools"):
        WithoutFeatures().run("x", tools=[{"name": "f"}])


@pytest.mark.parametrize("asked", [{"schema": {}}, {"regex": "a"}, {"choice": ["a"]}, {"grammar": 'start: "a"'}])
def test_structured_output_is_refused_by_a_backend_that_cannot_keep_to_it(asked: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature, match="it has no structured output"):
        WithoutFeatures().run("x", **asked)


def test_capabilities_name_only_kinds_that_there_are() -> None:
    with pytest.raises(ParameterError, match="unknown kinds of structured output: yaml"):
        replace(ScriptedLLM.capabilities, structured=frozenset({"regex", "yaml"}))
