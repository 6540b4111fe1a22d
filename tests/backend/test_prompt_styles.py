from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmkit
from llmkit.capabilities import Capabilities
from llmkit.errors import ContextLengthExceeded, ContextWarning, InvalidRequest, PromptStyleError, UnsupportedParameter
from llmkit.prompts import PromptStyle
from llmkit.testing import ScriptedLLM
from llmkit.testing.scripted import words


def seen(llm: ScriptedLLM) -> tuple[Any, bool]:
    request = llm.requests[-1]
    return request.prompt, request.raw


def test_run_renders_in_the_style_and_stops_where_the_style_does() -> None:
    llm = ScriptedLLM("I am well.<human>: And you?", stop_token="xyz")
    assert llm.run("How are you?", prompt_style="human_bot") == "I am well."
    assert seen(llm) == ("<human>: How are you?<bot>: ", True)
    assert llm.requests[-1].params.stop_strings == ("xyz", "<human>:", "<bot>:")
    assert llm.stop_token == "xyz", "a call's style does not stick"


def test_a_style_without_stop_strings_adds_none() -> None:
    llm = ScriptedLLM()
    llm.run("hi", prompt_style="plain")
    assert seen(llm) == ("hi", True)
    assert llm.requests[-1].params.stop_token is None


def test_chat_renders_every_turn_and_the_system_prompt() -> None:
    llm = ScriptedLLM("yes", system_prompt="Be brief.")
    llm.chat("one?", prompt_style="llama2")
    llm.chat("two?", prompt_style="llama2")
    expected = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\none? [/INST] yes </s><s>[INST] two? [/INST]"
    assert seen(llm) == (expected, True), "the tokenizer writes the begin token"


def test_a_batch_and_a_stream_take_a_style() -> None:
    llm = ScriptedLLM("ok")
    assert llm.batch_run(["a", "b"], prompt_style="falcon") == ["ok", "ok"]
    assert [r.prompt for r in llm.requests] == ["User: a\n\nAssistant:", "User: b\n\nAssistant:"]
    assert "".join(llm.stream("a", prompt_style="falcon")) == "ok"


def test_auto_is_the_style_that_the_models_name_suggests() -> None:
    llm = ScriptedLLM(model_name="TheBloke/vicuna-7B")
    llm.run("hi", prompt_style="auto")
    assert str(seen(llm)[0]).endswith("USER: hi ASSISTANT:")
    with pytest.raises(PromptStyleError, match="'scripted'"):
        ScriptedLLM().run("hi", prompt_style="auto")


def test_a_style_of_ones_own_is_a_dictionary_or_an_object() -> None:
    llm = ScriptedLLM()
    own = {"name": "own", "input_prefix": "Q: ", "response_prefix": "\nA:"}
    for style in (own, PromptStyle.from_dict(own)):
        llm.run("hi", prompt_style=style)
        assert seen(llm) == ("Q: hi\nA:", True)


@pytest.mark.parametrize("style", ["no-such-style", {"name": "x", "prefix": "a"}, {}, 5])
def test_a_malformed_style_is_an_error_and_never_a_bare_prompt(style: object) -> None:
    llm = ScriptedLLM()
    with pytest.raises(PromptStyleError):
        llm.run("hi", prompt_style=style)
    assert llm.requests == []


def test_raw_and_a_style_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        ScriptedLLM().run("hi", prompt_style="plain", raw=True)


def test_a_backend_without_stop_strings_refuses_a_style_that_needs_them() -> None:
    class NoStops(ScriptedLLM):
        capabilities = Capabilities(params=frozenset({"max_tokens"}))

    with pytest.raises(UnsupportedParameter, match="stop_token"):
        NoStops().run("hi", prompt_style="human_bot")


def test_a_conversation_is_fitted_as_it_is_rendered() -> None:
    llm = ScriptedLLM("ok", context_length=12, max_tokens=2)
    messages = [
        {"role": "user", "content": "one two three four five"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "six"},
    ]
    with pytest.warns(ContextWarning):
        completion = llm.complete(messages, prompt_style="falcon")
    assert seen(llm)[0] == "User: six\n\nAssistant:"
    assert [m.content for m in completion.dropped_messages] == ["one two three four five", "ok"]
    with pytest.raises(ContextLengthExceeded):
        llm.complete("a b c d e f g h i j k l m", prompt_style="falcon")


@given(
    style=st.sampled_from(["human_bot", "falcon", "llama2", "chatml", "vicuna"]),
    system=st.sampled_from([None, "Be brief."]),
    turns=st.lists(st.integers(1, 30), max_size=12),
    window=st.integers(40, 120),
)
def test_a_history_of_any_length_leaves_the_prompt_within_the_window(
    style: str, system: str | None, turns: list[int], window: int
) -> None:
    """The newest turn and the system prompt are always there, what is left is the newest, and as much as fits."""
    llm = ScriptedLLM("ok", context_length=window, max_tokens=8, system_prompt=system)
    roles = itertools.cycle(["user", "assistant"])
    history = [{"role": next(roles), "content": f"turn{n} " * size} for n, size in enumerate(turns)]
    last = {"role": "user", "content": "the question"}
    if len(turns) % 2:
        history = history[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContextWarning)
        completion = llm.complete([*history, last], prompt_style=style)
    prompt, n_dropped = str(seen(llm)[0]), len(completion.dropped_messages)
    assert len(words(prompt)) <= window - 8
    assert "the question" in prompt
    assert system is None or system in prompt
    assert [m.content for m in completion.dropped_messages] == [m["content"] for m in history[:n_dropped]]
    assert [f"turn{n} " in prompt for n in range(len(history))] == [n >= n_dropped for n in range(len(history))]


def test_the_embedded_model_reads_a_style_through_its_real_tokenizer() -> None:
    with llmkit.load(max_tokens=20) as llm:
        rendered = "<human>: What is the capital of France?<bot>: "
        styled = llm.run("What is the capital of France?", prompt_style="human_bot")
        assert styled == llm.run(rendered, raw=True, stop_token=["<human>:", "<bot>:"])
