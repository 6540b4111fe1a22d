"""Every way of calling a model gives the same, on a model whose every token is known."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import (
    ContextLengthExceeded,
    GenerationError,
    InvalidRequest,
    ModelClosed,
    ParameterError,
    UnknownParameter,
)
from llmkit.params import GenerationParams
from llmkit.testing import ScriptedLLM, characters, words
from llmkit.types import Chunk, Message, Request

ANSWER = "\n\nParis is the capital of France."


def gpt_task(content: str = "x", **changes: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **changes}


async def gathered(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


CALLS: dict[str, Callable[[ScriptedLLM], str]] = {
    "run": lambda llm: llm.run("x"),
    "call": lambda llm: llm("x"),
    "complete": lambda llm: llm.complete("x").text,
    "complete messages": lambda llm: llm.complete([{"role": "user", "content": "x"}]).text,
    "stream": lambda llm: "".join(llm.stream("x")),
    "batch_run": lambda llm: llm.batch_run(["x"])[0],
    "complete_batch": lambda llm: llm.complete_batch([Request("x")])[0].text,
    "chat": lambda llm: llm.chat("x"),
    "execute": lambda llm: llm.execute(gpt_task()).choices[0].message.content,
    "execute stream": lambda llm: "".join(c.choices[0].delta.content for c in llm.execute(gpt_task(), stream=True)),
    "arun": lambda llm: asyncio.run(llm.arun("x")),
    "acomplete": lambda llm: asyncio.run(llm.acomplete("x")).text,
    "astream": lambda llm: asyncio.run(gathered(llm.astream("x"))),
    "abatch_run": lambda llm: asyncio.run(llm.abatch_run(["x"]))[0],
    "acomplete_batch": lambda llm: asyncio.run(llm.acomplete_batch([Request("x")]))[0].text,
    "aexecute": lambda llm: asyncio.run(llm.aexecute(gpt_task())).choices[0].message.content,
}
SINGLE_CALLS = sorted(set(CALLS) - {"complete messages"})


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_gives_the_same_text_unstripped(name: str) -> None:
    assert CALLS[name](ScriptedLLM(ANSWER)) == ANSWER


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_counts_its_tokens(name: str) -> None:
    llm = ScriptedLLM(ANSWER)
    CALLS[name](llm)
    assert llm.metrics().total_completion_tokens == 9


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_on_a_closed_model_is_refused(name: str) -> None:
    llm = ScriptedLLM(ANSWER)
    llm.close()
    llm.close()
    with pytest.raises(ModelClosed):
        CALLS[name](llm)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_passes_a_failure_on(name: str) -> None:
    with pytest.raises(GenerationError, match="capital"):
        CALLS[name](ScriptedLLM(ANSWER, fail_on="capital"))


@pytest.mark.parametrize("name", SINGLE_CALLS)
def test_a_prompt_that_leaves_no_room_is_refused(name: str) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        CALLS[name](ScriptedLLM(context_length=1))
    assert (caught.value.prompt_tokens, caught.value.limit) == (1, 1)


class Cut(ScriptedLLM):
    """Ends its stream without a reason."""

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        yield Chunk(0, 0, "half", (1,), prompt_tokens=1)


# A stream of text has nowhere to notice it before its text is out.
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"stream", "astream"}))
def test_a_backend_that_ends_without_a_reason_is_an_error(name: str) -> None:
    with pytest.raises(GenerationError, match="ended before choice 0 was finished"):
        CALLS[name](Cut())


@given(
    answer=st.text(max_size=40),
    stops=st.lists(st.text(min_size=1, max_size=3), max_size=3),
    max_tokens=st.integers(1, 50),
    cut=st.sampled_from([words, characters]),
)
def test_a_stream_joins_to_what_run_returns(answer: str, stops: list[str], max_tokens: int, cut: Any) -> None:
    llm = ScriptedLLM(answer, tokens=cut)
    limits: dict[str, Any] = {"stop_token": stops, "max_tokens": max_tokens}
    text = llm.run("x", **limits)
    assert "".join(llm.stream("x", **limits)) == text == llm.complete("x", **limits).text
    assert not any(stop in text for stop in stops)


def test_a_batch_keeps_the_order_of_its_tasks() -> None:
    llm = ScriptedLLM({"a": "a long answer to a", "b": "b", "c": "c c"})
    assert llm.batch_run(["c", "a", "b", "a"]) == ["c c", "a long answer to a", "b", "a long answer to a"]
    assert asyncio.run(llm.abatch_run(["b", "c"])) == ["b", "c c"]


def test_an_empty_batch_is_an_empty_list() -> None:
    assert ScriptedLLM().batch_run([]) == []
    assert asyncio.run(ScriptedLLM().abatch_run([])) == []


def test_each_request_of_a_batch_has_its_own_parameters() -> None:
    llm = ScriptedLLM("one two three four", max_tokens=3)
    requests = [
        Request("x", GenerationParams(max_tokens=1)),
        Request("x"),
        Request("x", GenerationParams(stop_token="o")),
    ]
    assert [completion.text for completion in llm.complete_batch(requests)] == ["one", "one two three", ""]


BATCHES: dict[str, Callable[..., list[str]]] = {
    "complete_batch": lambda llm, requests: [done.text for done in llm.complete_batch(requests)],
    "acomplete_batch": lambda llm, requests: [done.text for done in asyncio.run(llm.acomplete_batch(requests))],
    "chunks": lambda llm, requests: [chunk.text for chunk in llm.chunks(requests) if chunk.text],
}
every_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


@every_batch
def test_requests_may_come_from_any_iterable(batch: Callable[..., list[str]]) -> None:
    llm = ScriptedLLM(lambda prompt: prompt)
    assert batch(llm, (Request(prompt) for prompt in "ab")) == ["a", "b"]
    assert batch(llm, iter([])) == []


@every_batch
@pytest.mark.parametrize(
    ("requests", "problem"),
    [
        (["Hello!"], "requests[0] must be a Request, got str"),
        ("Hello!", "requests[0] must be a Request, got str"),
        ([Request("x"), {"prompt": "x"}], "requests[1] must be a Request, got dict"),
        (Request("x"), "requests must be an iterable of Request, got Request"),
        (None, "requests must be an iterable of Request, got NoneType"),
    ],
)
def test_what_are_no_requests_is_refused(batch: Callable[..., list[str]], requests: Any, problem: str) -> None:
    llm = ScriptedLLM()
    with pytest.raises(InvalidRequest, match=re.escape(problem)):
        batch(llm, requests)
    assert llm.requests == []


def test_a_list_gives_one_value_a_task() -> None:
    llm = ScriptedLLM("one two three")
    assert llm.batch_run(["x", "y"], max_tokens=[1, 2]) == ["one", "one two"]
    assert llm.batch_run(["x", "y"], stop_token=[["two"], None]) == ["one ", "one two three"]
    assert llm.batch_run(["x", "y"], stop_token=["two", "one"]) == ["", ""]


def test_a_list_of_another_length_than_the_batch_is_refused() -> None:
    with pytest.raises(ParameterError, match="got 3 values for 2 tasks"):
        ScriptedLLM().batch_run(["x", "y"], seed=[1, 2, 3])


@pytest.mark.parametrize("bad", ["", [], None, [{"role": "user", "content": ""}], [{"content": "x"}], 7])
def test_what_is_no_task_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidRequest):
        ScriptedLLM().complete(bad)


HALF = "Hello \ud800!"


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda llm: llm.run(HALF), "the task"),
        (lambda llm: llm.stream(HALF), "the task"),
        (lambda llm: llm.batch_run(["x", HALF]), "the task"),
        (lambda llm: llm.chat(HALF), "messages[0].content"),
        (lambda llm: asyncio.run(llm.arun(HALF)), "the task"),
        (lambda llm: llm.complete([{"role": "user", "content": "x"}, Message("user", HALF)]), "messages[1].content"),
        (lambda llm: llm.run("x", system_prompt=HALF), "system_prompt"),
        (lambda llm: llm.run("x", stop=["y", HALF]), "stop_token[1]"),
        (lambda llm: llm.run("x", tools=[{"name": "f", "description": HALF}]), "tools[0].description"),
        (lambda llm: llm.run("x", template_args={"a": [HALF]}), "template_args.a[0]"),
        (
            lambda llm: llm.complete([Message("assistant", "", ({"function": {"arguments": {"x": HALF}}},))]),
            "messages[0].tool_calls[0].function.arguments.x",
        ),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_with_its_place(call: Callable[[ScriptedLLM], Any], where: str) -> None:
    llm = ScriptedLLM()
    rule = f"{where} must be Unicode text, got half of a surrogate pair at character 6"
    with pytest.raises(InvalidRequest, match=f"^{re.escape(rule)}$"):
        call(llm)
    assert (llm.requests, llm.history) == ([], [])


def test_whole_characters_of_all_kinds_are_read() -> None:
    assert ScriptedLLM(lambda prompt: prompt).run("é 漢 😀", system_prompt="ü", stop="ß") == "é 漢 😀"


def test_a_string_instead_of_a_list_of_tasks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="tasks must be a list"):
        ScriptedLLM().batch_run("abc")


def test_positional_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="only the task is positional, got"):
        ScriptedLLM().run("x", 0.5)


def test_an_unknown_keyword_names_the_nearest_parameter() -> None:
    with pytest.raises(UnknownParameter, match="did you mean 'temperature'"):
        ScriptedLLM().run("x", tempera=1)


def test_a_stream_of_several_choices_is_refused() -> None:
    with pytest.raises(ParameterError, match="num_return_sequences must be 1, got 2"):
        ScriptedLLM().stream("x", n=2)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_call_is_recorded_once_with_its_tokens_and_times() -> None:
    llm = ScriptedLLM("one two", delay_s=0.01)
    completion = llm.complete("a b c")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        3,
        3,
        6,
    )
    assert 0.01 <= (completion.timings.time_to_first_token_s or 0) <= completion.timings.elapsed_s - 0.01
    assert llm.get_generation_time() == completion.timings.elapsed_s
    llm.run("x")
    assert llm.metrics().n_generations == 2
    assert llm._tokens_per_second() > 0


def test_usage_of_a_batch_is_counted_per_request() -> None:
    llm = ScriptedLLM({"a": "one", "b": "one two three"})
    usages = [completion.usage for completion in llm.complete_batch([Request("a"), Request("b")])]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == [(1, 2), (1, 4)]
