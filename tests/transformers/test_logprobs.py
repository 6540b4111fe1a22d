"""Log-probabilities of generated tokens: right, one for each token, on both routes, and only where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from llmkit import GenerationParams, Request
from llmkit.errors import ParameterError, UnsupportedParameter
from llmkit.testing import ScriptedLLM
from llmkit.types import Choice, Chunk, TokenLogprob, TopLogprob
from llmkit_transformers import TransformersLLM
from llmkit_transformers.logprobs import TokenSpelling, scored
from tests import tiny_models

TASK = "hello my friend"


@pytest.fixture(scope="module", params=["engine", "generate"])
def either(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> Iterator[TransformersLLM]:
    """The same model on each route."""
    with TransformersLLM(str(model_folder()), engine=request.param == "engine") as llm:
        yield llm


def expected(llm: TransformersLLM, token_ids: tuple[int, ...], **settings: Any) -> torch.Tensor:
    """`(tokens, V)` log-probabilities by the model's own forward pass and transformers' own processors."""
    prompt = list(llm._encode(Request(TASK)))
    chain = LogitsProcessorList()
    if "repetition_penalty" in settings:
        chain.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "temperature" in settings:
        chain += [TemperatureLogitsWarper(settings["temperature"]), TopKLogitsWarper(settings["top_k"])]
    ids = torch.tensor([[*prompt, *token_ids]])
    with torch.no_grad():
        logits = llm.model(ids).logits[0].float()
    ends = range(len(prompt), ids.shape[1])
    rows = [chain(ids[:, :end], logits[end - 1 : end].clone()) for end in ends]  # pyright: ignore[reportArgumentType]
    return torch.log_softmax(torch.cat(rows), dim=-1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"repetition_penalty": 1.4}, {"repetition_penalty": 1.4, "temperature": 1.7, "top_k": 4, "seed": 3}],
    ids=lambda settings: ",".join(settings) or "greedy",
)
def test_logprobs_are_those_of_the_processed_scores(either: TransformersLLM, settings: dict[str, Any]) -> None:
    choice = either.complete(TASK, max_tokens=12, logprobs=6, **settings).choices[0]
    rows = expected(either, choice.token_ids, **settings)
    spelling = TokenSpelling(either.tokenizer)
    for row, token_id, entry in zip(rows, choice.token_ids, choice.logprobs or (), strict=True):
        assert entry.bytes == tuple(spelling.bytes_of(token_id))
        assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
        values, ids = row.topk(settings.get("top_k", 6))
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        assert entry.top_logprobs[0].bytes == tuple(spelling.bytes_of(int(ids[0])))


def test_tokens_are_the_same_with_and_without_logprobs(either: TransformersLLM) -> None:
    for settings in ({}, {"temperature": 1.2, "top_p": 0.9, "seed": 5, "n": 2}):
        plain = either.complete(TASK, max_tokens=9, **settings).choices
        told = either.complete(TASK, max_tokens=9, logprobs=2, **settings).choices
        assert [choice.token_ids for choice in told] == [choice.token_ids for choice in plain]
        assert [choice.logprobs for choice in plain] == [None] * len(plain)


def bytes_of(choice: Choice) -> bytes:
    """Of all tokens but the special ones, which have no text."""
    pairs = zip(choice.token_ids, choice.logprobs or (), strict=True)
    return bytes(byte for token, entry in pairs if token >= len(tiny_models.SPECIAL) for byte in entry.bytes or ())


def test_the_bytes_of_all_tokens_are_the_text(either: TransformersLLM) -> None:
    params = {"n": 3, "seed": 1, "temperature": 1.5, "eos_token_id": [], "max_tokens": 20}
    for choice in either.complete(TASK, logprobs=0, **params).choices:
        assert bytes_of(choice).decode(errors="replace") == choice.text
        assert all(entry.top_logprobs == () for entry in choice.logprobs or ())
        assert len(choice.logprobs or ()) == len(choice.token_ids) == 20


def test_the_tokens_of_a_stop_string_have_logprobs_too(either: TransformersLLM) -> None:
    whole = either.run(TASK, max_tokens=12)
    stop = next(whole[at : at + 3] for at in range(2, len(whole)) if "\ufffd" not in whole[at : at + 3])
    choice = either.complete(TASK, max_tokens=12, stop_token=stop, logprobs=1).choices[0]
    assert choice.finish_reason == "stop"
    assert len(choice.logprobs or ()) == len(choice.token_ids)
    assert stop in bytes_of(choice).decode(errors="replace")
    assert stop not in choice.text


def test_the_end_token_has_a_logprob(either: TransformersLLM) -> None:
    eos = either.complete(TASK, max_tokens=5).choices[0].token_ids[2]
    choice = either.complete(TASK, max_tokens=5, eos_token_id=eos, logprobs=1).choices[0]
    assert len(choice.logprobs or ()) == len(choice.token_ids) == 3


def test_each_chunk_has_the_logprobs_of_its_tokens(either: TransformersLLM) -> None:
    request = Request(TASK, GenerationParams(max_tokens=8, n=2, seed=2, temperature=1.4, logprobs=2))
    whole = either.complete_batch([request])[0].choices
    got: dict[int, list[TokenLogprob]] = {0: [], 1: []}
    for chunk in either._folding(either._begin([request])):
        if chunk.token_ids:
            assert len(chunk.logprobs or ()) == len(chunk.token_ids)
        got[chunk.choice] += chunk.logprobs or ()
    assert [tuple(got[choice.index]) for choice in whole] == [choice.logprobs for choice in whole]


def test_every_way_in_asks_for_logprobs(llm: TransformersLLM, model_folder: Callable[..., Path]) -> None:
    def n_top(choice: Choice) -> int | None:
        return None if choice.logprobs is None else len(choice.logprobs[0].top_logprobs)

    assert n_top(llm.complete(TASK, max_tokens=1).choices[0]) is None
    assert n_top(llm.complete(TASK, max_tokens=1, logprobs=20).choices[0]) == 20
    with TransformersLLM(str(model_folder()), logprobs=3, max_tokens=1) as own:
        assert n_top(own.complete(TASK).choices[0]) == 3
        assert n_top(own.complete(TASK, logprobs=1).choices[0]) == 1
        own.logprobs = 2
        assert n_top(own.complete(TASK).choices[0]) == 2
        own.logprobs = None
        assert n_top(own.complete(TASK).choices[0]) is None
        mixed = own.complete_batch([Request(TASK, GenerationParams(logprobs=k)) for k in (0, None, 4)])
        assert [n_top(completion.choices[0]) for completion in mixed] == [0, None, 4]


def test_beams_and_backends_without_logprobs_refuse_them(llm: TransformersLLM) -> None:
    with pytest.raises(ParameterError, match="logprobs are not given for beam search: num_beams must be 1, got 3"):
        llm.complete(TASK, num_beams=3, logprobs=1)
    with pytest.raises(UnsupportedParameter, match="'logprobs'"):
        ScriptedLLM().complete(TASK, logprobs=1)


def test_encoder_decoders_give_logprobs(loaded: Callable[..., TransformersLLM]) -> None:
    choice = loaded("t5").complete(TASK, max_tokens=4, logprobs=2).choices[0]
    assert len(choice.logprobs or ()) == len(choice.token_ids)
    for entry in choice.logprobs or ():
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_tokens_without_probability_are_left_out() -> None:
    token = scored(torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]), 2, 4)
    assert token.logprob == pytest.approx(math.log(0.5))
    assert {token_id for token_id, _ in token.likeliest} == {0, 2}


def test_parts_of_characters_are_spelt_by_their_bytes() -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer())
    spelling = TokenSpelling(tokenizer)
    text = " héllo 😀 日本"
    ids = tokenizer(text)["input_ids"]
    assert b"".join(map(spelling.bytes_of, ids)) == text.encode()
    assert spelling.bytes_of(tiny_models.EOS) == b"</s>"
    assert spelling.bytes_of(10**6) == b""
    partial = tokenizer.convert_tokens_to_ids("ð")
    assert spelling.spelt(scored(torch.zeros(len(tokenizer)), partial, 0)).token == "\ufffd"


def test_tokens_of_sentencepiece_keep_their_spaces() -> None:
    tokenizer = tiny_models.wrapped(tiny_models.metaspace_tokenizer())
    spelling = TokenSpelling(tokenizer)
    ids = tokenizer("hello wé")["input_ids"]
    assert b"".join(map(spelling.bytes_of, ids)) == " hello wé".encode()


def test_a_logprob_has_the_shape_of_openais() -> None:
    entry = TokenLogprob("a", -0.5, (97,), (TopLogprob("a", -0.5, (97,)),))
    assert Chunk(0, logprobs=(entry,)).logprobs == (entry,)
    names = {"token", "logprob", "bytes"}
    assert set(TopLogprob.__dataclass_fields__) == names
    assert set(TokenLogprob.__dataclass_fields__) == {*names, "top_logprobs"}
