"""Structured output on real models with random weights: both routes, every way of calling, alone and in company."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llmkit.errors import (
    GenerationError,
    InvalidConstraint,
    ParameterError,
    StructuredOutputIncomplete,
    UnsupportedFeature,
)
from llmkit.params import GenerationParams
from llmkit.structured import Constraint
from llmkit.types import Completion, Request
from llmkit_transformers import TransformersLLM
from tests import tiny_models
from tests.structured.test_guide import schemas


class Person(BaseModel):
    name: str = Field(max_length=6)
    age: int = Field(ge=0, le=150)
    likes: list[bool] = Field(max_length=2)


@pytest.fixture(scope="module")
def routes(model_folder: Callable[..., Path]) -> Iterator[dict[str, TransformersLLM]]:
    """The same weights on the engine and on `model.generate`."""
    folder = str(model_folder("llama"))
    ready = {"engine": TransformersLLM(folder), "generate": TransformersLLM(folder, engine=False)}
    yield ready
    for llm in ready.values():
        llm.close()


on_every_route = pytest.mark.parametrize("route", ["engine", "generate"])

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "hot": {"temperature": 3.0, "top_p": 0.9, "seed": 4},
    "filtered": {"temperature": 1.0, "top_k": 1, "min_p": 0.1, "typical_p": 0.9},
    "penalised": {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": -1.0},
    "n": {"n": 3, "temperature": 1.5, "seed": 5},
    "logprobs": {"logprobs": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "schema": {"schema": Person},
    "regex": {"regex": r" ?[A-Z][a-z]{2,5}, \d{1,3}"},
    "choice": {"choice": ["yes", "no", "çà 😀"]},
    "grammar": {"grammar": 'start: "(" item ")"\nitem: /[a-z]{1,3}/ | start'},
}


@on_every_route
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_text_fits_however_it_is_chosen(routes: dict[str, TransformersLLM], route: str, mode: str) -> None:
    completion = routes[route].complete("hello", schema=Person, max_tokens=100, **MODES[mode])
    assert all(isinstance(choice.parsed, Person) for choice in completion.choices)
    assert {choice.finish_reason for choice in completion.choices} == {"stop"}


@on_every_route
@pytest.mark.parametrize("kind", ["regex", "choice", "grammar"])
def test_every_kind_is_kept_to(routes: dict[str, TransformersLLM], route: str, kind: str) -> None:
    for seed in range(4):
        completion = routes[route].complete("hello", seed=seed, temperature=1.0, max_tokens=60, **KINDS[kind])
        if completion.choices[0].finish_reason == "stop":
            assert completion.parsed == completion.text
        else:
            assert kind == "grammar"  # brackets in brackets need not end


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), seed=st.integers(0, 99))
def test_every_text_validates_for_random_schemas(llm: TransformersLLM, schema: dict[str, Any], seed: int) -> None:
    completion = llm.complete("x", schema=schema, seed=seed, temperature=2.0, max_tokens=100)
    if completion.choices[0].finish_reason == "stop":
        assert completion.parsed == json.loads(completion.text)
    else:
        with pytest.raises(StructuredOutputIncomplete):
            _ = completion.parsed


@on_every_route
def test_streams_join_to_the_same_text(routes: dict[str, TransformersLLM], route: str) -> None:
    pieces = list(routes[route].stream("hello", schema=Person, max_tokens=100))
    assert len(pieces) > 3
    assert "".join(pieces) == routes[route].run("hello", schema=Person, max_tokens=100)


def requests() -> list[Request]:
    """Constrained and free, greedy and sampled, of different lengths."""
    asked = [Constraint.of(**KINDS[kind]) for kind in ("schema", "choice", "regex")]
    sampled = GenerationParams(seed=1, temperature=1.0, max_tokens=80)
    greedy = GenerationParams(max_tokens=80)
    return [
        Request("hello", sampled, constraint=asked[0]),
        Request("hello world, how are you", greedy),
        Request("the capital", greedy, constraint=asked[1]),
        Request("hello", sampled),
        Request("my friend", sampled, constraint=asked[2]),
        Request("the capital of France", greedy, constraint=asked[0]),
    ]


def facts(completion: Completion) -> list[Any]:
    return [(c.text, c.token_ids, c.finish_reason) for c in completion.choices]


@on_every_route
def test_a_mixed_batch_gives_what_each_request_gives_alone(routes: dict[str, TransformersLLM], route: str) -> None:
    llm = routes[route]
    together = llm.complete_batch(requests())
    alone = [llm.complete_batch([request])[0] for request in requests()]
    assert [facts(one) for one in together] == [facts(one) for one in alone]
    assert [c.parsed is None for c in together] == [r.constraint is None for r in requests()]


def test_both_routes_give_the_same_greedy_tokens(routes: dict[str, TransformersLLM]) -> None:
    texts = [llm.complete("hello", schema=Person, max_tokens=100).choices[0].token_ids for llm in routes.values()]
    assert texts[0] == texts[1]


@on_every_route
def test_the_text_ends_by_itself_where_the_model_knows_no_eos(routes: dict[str, TransformersLLM], route: str) -> None:
    choice = routes[route].complete("hello", choice=["yes"], eos_token_id=[]).choices[0]
    assert (choice.text, choice.finish_reason) == ("yes", "stop")


@on_every_route
def test_an_eos_ends_the_text_only_where_it_may_end(routes: dict[str, TransformersLLM], route: str) -> None:
    llm = routes[route]
    digits = [llm.tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    for seed in range(5):
        choice = llm.complete("hello", regex="(ab){1,40}", eos_token_id=digits, temperature=9.0, seed=seed).choices[0]
        assert choice.token_ids[-1] in digits or len(choice.text) == 80
        assert set(choice.token_ids[:-1]).isdisjoint(digits)
        assert choice.parsed == choice.text


@on_every_route
def test_a_text_without_room_for_it_all_says_so(routes: dict[str, TransformersLLM], route: str) -> None:
    llm = routes[route]
    with pytest.raises(ParameterError, match=r"must be at least \d+ for a text that fits the schema, got 3"):
        llm.run("hello", schema=Person, max_tokens=3)
    fewest = llm._compile(Constraint.of(schema=Person)).fewest_tokens  # pyright: ignore
    completion = llm.complete("hello", schema=Person, max_tokens=fewest)
    assert completion.choices[0].finish_reason == "length"
    with pytest.raises(StructuredOutputIncomplete, match="raise max_tokens"):
        _ = completion.parsed


def test_a_window_without_room_for_it_all_says_so(llm: TransformersLLM) -> None:
    prompt = "x" * (tiny_models.WINDOW - 5)
    with pytest.raises(ParameterError, match="what the prompt leaves of the window"):
        llm.run(prompt, schema=Person, raw=True)


@pytest.mark.parametrize(
    ("asked", "error", "problem"),
    [
        ({"schema": {"not": {}}}, InvalidConstraint, "Unimplemented"),
        ({"regex": "("}, InvalidConstraint, "unclosed group"),
        ({"choice": ["a"], "num_beams": 2}, UnsupportedFeature, "beam search"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_before_the_model_runs(
    llm: TransformersLLM, forwards: Any, asked: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        llm.run("hello", **asked)
    assert forwards.n_calls == 0


@pytest.mark.parametrize("family", ["gpt2", "mamba", "t5"])
def test_other_families_are_kept_to_it_too(loaded: Callable[..., TransformersLLM], family: str) -> None:
    completion = loaded(family).complete("hello", schema=Person, max_tokens=100, seed=1, temperature=1.0)
    assert isinstance(completion.parsed, Person)


def test_a_tokenizer_that_hides_spaces_loses_none(tmp_path: Path) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.metaspace_tokenizer())
    with TransformersLLM(str(tiny_models.build(tmp_path, tokenizer=tokenizer))) as llm:
        assert llm.run("hello", regex=" hello  world ") == " hello  world "
        assert isinstance(llm.complete("hello", schema=Person, max_tokens=100).parsed, Person)


def test_a_vocabulary_that_is_shorter_than_the_logits(tmp_path: Path) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer())
    folder = tiny_models.build(tmp_path, tokenizer=tokenizer, vocab_size=len(tokenizer) + 37)
    with TransformersLLM(str(folder)) as llm:
        assert isinstance(llm.complete("hello", schema=Person, max_tokens=100, temperature=1.0).parsed, Person)


@on_every_route
def test_a_text_that_cannot_go_on_fails_with_the_reason(routes: dict[str, TransformersLLM], route: str) -> None:
    llm = routes[route]
    with pytest.raises(GenerationError, match="no token to go on with"):
        llm.run("hello", regex="ab", eos_token_id=list(range(len(llm.tokenizer))))
    assert llm.run("hello", choice=["yes"]) == "yes"


def test_a_text_that_the_tokenizer_cannot_spell_fails(tmp_path: Path) -> None:
    """Its vocabulary has letters and no bytes, so nothing spells the digit."""
    from tokenizers import Tokenizer, decoders, models

    vocab = {token: n for n, token in enumerate([*tiny_models.SPECIAL, *"abcdefgh "])}
    letters = Tokenizer(models.BPE(vocab, []))
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(list(tiny_models.SPECIAL))
    folder = tiny_models.build(tmp_path, tokenizer=tiny_models.wrapped(letters, template=None))
    with TransformersLLM(str(folder)) as llm:
        assert llm.run("abc", choice=["abba"]) == "abba"
        with pytest.raises(GenerationError, match="structured output failed"):
            llm.run("abc", regex="a7")


def test_a_slow_tokenizer_is_refused(llm: TransformersLLM) -> None:
    from llmkit_transformers.masks import guide_tokenizer

    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedFeature, match="needs a fast tokenizer, got Slow"):
        guide_tokenizer(Slow(), 10)


def test_without_llguidance_the_pip_line_is_given(llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from llmkit.structured import grammars

    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammars.grammar.cache_clear()
    with pytest.raises(ImportError, match=r'needs llguidance, .* pip install "llmkit\[structured\]"'):
        llm.run("hello", choice=["never compiled before"])


def test_a_text_that_fails_leaves_its_neighbours_alone(llm: TransformersLLM) -> None:
    every_token = list(range(len(llm.tokenizer)))

    async def together() -> list[Any]:
        good = [llm.arun(task, schema=Person, max_tokens=100) for task in ("hello", "the capital", "my friend")]
        bad = llm.arun("hello", regex="ab", eos_token_id=every_token)
        return await asyncio.gather(*good, bad, return_exceptions=True)

    *texts, error = asyncio.run(together())
    assert texts == llm.batch_run(["hello", "the capital", "my friend"], schema=Person, max_tokens=100)
    assert isinstance(error, GenerationError)
