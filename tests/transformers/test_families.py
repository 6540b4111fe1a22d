"""Every call on a real model of each family, against transformers' own generate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from llmkit_transformers import TransformersLLM
from tests.tiny_models import DECODER_ONLY, ENCODER_DECODER, FAMILIES

Loaded = Callable[..., TransformersLLM]
RAGGED = ["hello", "how are you today my friend, and how is the capital of France", "x", "héllo 😀 日本"]
N = 12


def raw_tokens(llm: TransformersLLM, text: str, **settings: Any) -> list[int]:
    """What transformers generates, EOS included and padding excluded."""
    inputs = llm.tokenizer(text, return_tensors="pt")
    n_before = 1 if llm.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": N, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True, **settings}
    if llm.model.config.is_encoder_decoder:
        settings["decoder_start_token_id"] = llm.model.config.decoder_start_token_id
    with torch.inference_mode():
        ids = llm.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=GenerationConfig(**settings),
        )
    tokens = ids[0, n_before:].tolist()
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


def tokens(llm: TransformersLLM, text: str, **params: Any) -> list[int]:
    return list(llm.complete(text, raw=True, max_tokens=N, **params).choices[0].token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(loaded: Loaded, family: str) -> None:
    llm = loaded(family)
    for text in RAGGED:
        assert tokens(llm, text) == raw_tokens(llm, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_vary_with_the_prompt(loaded: Loaded, family: str) -> None:
    """Otherwise the comparisons here would compare nothing."""
    assert len({loaded(family).run(text, raw=True, max_tokens=N) for text in RAGGED}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_call_gives_the_same_text(loaded: Loaded, family: str) -> None:
    llm = loaded(family)
    text = llm.run("hello", max_tokens=N)
    task = {
        "model": llm.model_name,
        "messages": [{"role": "user", "content": "hello"}],
        "generation_config": {"max_new_tokens": N},
    }

    async def asynchronous() -> list[str]:
        return [
            await llm.arun("hello", max_tokens=N),
            (await llm.abatch_run(["hello"], max_tokens=N))[0],
            "".join([piece async for piece in llm.astream("hello", max_tokens=N)]),
            (await llm.aexecute(task)).choices[0].message.content,
        ]

    texts = [
        llm("hello", max_tokens=N),
        llm.complete("hello", max_tokens=N).text,
        "".join(llm.stream("hello", max_tokens=N)),
        llm.batch_run(["hello"], max_tokens=N)[0],
        llm.chat("hello", [], max_tokens=N),
        llm.execute(task).choices[0].message.content,
        "".join(chunk.choices[0].delta.content or "" for chunk in llm.execute(task, stream=True)),
        *asyncio.run(asynchronous()),
    ]
    assert texts == [text] * len(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_gives_the_texts_of_each_prompt_alone(loaded: Loaded, family: str) -> None:
    llm = loaded(family)
    assert llm.batch_run(RAGGED, max_tokens=N) == [llm.run(text, max_tokens=N) for text in RAGGED]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "rwkv"])  # transformers refuses it
@pytest.mark.parametrize("params", [{"num_beams": 3}, {"num_beams": 3, "length_penalty": -3.0, "early_stopping": True}])
def test_beams_are_those_of_generate(loaded: Loaded, family: str, params: dict[str, Any]) -> None:
    llm = loaded(family)
    for text in RAGGED[:2]:
        assert tokens(llm, text, **params) == raw_tokens(llm, text, **params)


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_repetition_penalty_is_that_of_generate(loaded: Loaded, family: str) -> None:
    llm = loaded(family)
    for text in RAGGED:
        assert tokens(llm, text, repetition_penalty=1.7) == raw_tokens(llm, text, repetition_penalty=1.7)


@pytest.mark.parametrize("family", ENCODER_DECODER)
def test_an_encoder_decoder_has_no_window_for_prompt_and_text_together(loaded: Loaded, family: str) -> None:
    assert loaded(family).context_length is None
