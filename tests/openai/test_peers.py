"""Real servers on loopback: llama-cpp-python's and `transformers serve`, each with the embedded model."""

import asyncio
from collections.abc import Iterator

import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.errors import GenerationError, InvalidRequest, UnsupportedParameter
from tests.openai.conftest import TINY

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
RAW = "Question: What is the capital of Spain?\nAnswer:"


@pytest.fixture(
    params=[pytest.param("llama_cpp", marks=pytest.mark.llama_cpp), "transformers"],
)
def llm(request: pytest.FixtureRequest) -> Iterator[BackendLLM]:
    url = request.getfixturevalue(f"{request.param}_url")
    name, kind = ("tiny", "llama-cpp-python") if request.param == "llama_cpp" else (TINY, "transformers")
    with llmkit.load(f"{url}#{name}", server=kind) as loaded:
        yield loaded


@pytest.fixture
def llama_cpp(llama_cpp_url: str) -> Iterator[BackendLLM]:
    with llmkit.load(f"{llama_cpp_url}#tiny", server="llama-cpp-python") as loaded:
        yield loaded


def test_chat_says_what_the_model_knows(llm: BackendLLM) -> None:
    assert llm.run(QUESTION) == ANSWER


def test_a_raw_prompt_goes_without_the_template(llm: BackendLLM) -> None:
    assert llm.run(RAW, raw=True, stop="\n") == " Madrid"


def test_a_stream_joins_to_the_text(llm: BackendLLM) -> None:
    pieces = list(llm.stream(QUESTION))
    assert len(pieces) > 5
    assert "".join(pieces) == ANSWER


def test_stop_strings_end_the_text_and_are_left_out(llm: BackendLLM) -> None:
    completion = llm.complete(QUESTION, stop=["of F", "is"])
    assert (completion.text, completion.choices[0].finish_reason) == ("The capital ", "stop")


def test_max_tokens_is_kept(llm: BackendLLM) -> None:
    completion = llm.complete(QUESTION, max_tokens=3)
    assert (completion.text, completion.choices[0].finish_reason) == ("The capital of", "length")


def test_a_seed_decides_the_sample(llm: BackendLLM) -> None:
    seeds = (1, 1, 2, 3, 4, 5, 6, 7)
    texts = [llm.run("Write a poem.", temperature=2.0, max_tokens=12, seed=seed) for seed in seeds]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_choices_differ_and_are_as_many_as_asked(llm: BackendLLM) -> None:
    choices = llm.complete("Tell me a joke.", n=3, temperature=2.0, max_tokens=12, seed=1).choices
    assert len({choice.text for choice in choices}) == 3


@pytest.mark.parametrize("param", ["temperature", "top_k", "top_p", "min_p"])
def test_sampling_parameters_change_the_text(llm: BackendLLM, param: str) -> None:
    value = {"temperature": 0.01, "top_k": 1, "top_p": 0.01, "min_p": 1.0}[param]
    wild = {"temperature": 3.0, "seed": 3, "max_tokens": 12}
    greedy = llm.run("Tell me a joke.", max_tokens=12)
    assert llm.run("Tell me a joke.", **wild) != greedy
    assert llm.run("Tell me a joke.", **{**wild, param: value}) == greedy


def test_repetition_penalty_counts_the_prompt_or_is_refused(llm: BackendLLM) -> None:
    if "repetition_penalty" in llm.capabilities.params:
        assert llm.run(QUESTION, repetition_penalty=5.0) != ANSWER
    else:
        with pytest.raises(UnsupportedParameter, match="repetition_penalty"):
            llm.run(QUESTION, repetition_penalty=5.0)


def test_a_batch_keeps_its_order(llm: BackendLLM) -> None:
    names = {"Peru": "Lima", "Chile": "Santiago", "Japan": "Tokyo"}
    answers = llm.batch_run([f"What is the capital of {name}?" for name in names])
    assert answers == [f"The capital of {name} is {capital}." for name, capital in names.items()]


def test_many_at_once_from_an_event_loop(llm: BackendLLM) -> None:
    async def together() -> list[str]:
        return await asyncio.gather(*(llm.arun(QUESTION) for _ in range(6)))

    assert asyncio.run(together()) == [ANSWER] * 6


def test_usage_is_what_the_server_tells(llm: BackendLLM) -> None:
    usage = llm.complete(QUESTION).usage
    if llm.capabilities.params & {"logprobs"}:  # llama-cpp-python's server tells none for a stream
        assert (usage.prompt_tokens, usage.completion_tokens) == (None, None)
    else:
        assert usage.prompt_tokens == 13
        assert usage.completion_tokens is not None


def test_history_reaches_the_model(llm: BackendLLM) -> None:
    assert llm.chat(QUESTION) == ANSWER
    assert llm.chat("And of Italy?").startswith("The capital of")
    assert len(llm.history) == 4


def test_a_gpt_task_runs_and_has_no_fingerprint(llm: BackendLLM) -> None:
    response = llm.execute({"model": llm.model_name, "messages": [{"role": "user", "content": QUESTION}]})
    assert response.choices[0].message.content == ANSWER
    assert llm.complete(QUESTION, seed=1).fingerprint is None


def test_leaving_a_stream_leaves_the_server_free_for_the_next(llm: BackendLLM) -> None:
    stream = llm.stream("Tell me a joke.", max_tokens=200)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert llm.run(QUESTION) == ANSWER


@pytest.mark.llama_cpp
def test_logprobs_come_with_the_tokens(llama_cpp: BackendLLM) -> None:
    for raw in (False, True):
        entries = llama_cpp.complete(QUESTION, logprobs=2, max_tokens=3, raw=raw).choices[0].logprobs
        assert entries is not None
        assert len(entries) == 3
        for entry in entries:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 2
            assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


@pytest.mark.llama_cpp
def test_a_schema_is_kept_to(llama_cpp: BackendLLM) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    assert llama_cpp.complete("Choose.", schema=schema, max_tokens=40).parsed["n"] in (1, 2)


@pytest.mark.llama_cpp
def test_a_prompt_that_is_too_long_is_no_answer(llama_cpp: BackendLLM) -> None:
    with pytest.raises(GenerationError, match="a prompt that is too long makes some servers do so"):
        llama_cpp.run("word " * 2000)


@pytest.mark.llama_cpp
def test_requests_that_break_each_other_off_are_told(llama_cpp_url: str) -> None:
    """The server's own fault, which the kind `llama-cpp-python` keeps from us by asking one thing at a time."""
    with llmkit.load(f"{llama_cpp_url}#tiny") as generic, pytest.raises(GenerationError, match="before the text was"):
        generic.batch_run(["Tell me a joke."] * 8, max_tokens=200, frequency_penalty=1.0)


def test_transformers_serve_names_what_it_does_not_have(transformers_url: str) -> None:
    with llmkit.load(f"{transformers_url}#no-such-model", server="transformers") as llm:
        with pytest.raises(InvalidRequest, match="requested 'no-such-model'"):
            llm.run("Hi")
        with pytest.raises(UnsupportedParameter, match="logprobs"):
            llm.run("Hi", logprobs=1)
