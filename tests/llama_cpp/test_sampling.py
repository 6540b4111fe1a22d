"""The sampler in numpy against the one in torch: the same tokens, candidates and log-probabilities."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from llmkit import GenerationParams
from llmkit.noise import uniform
from llmkit_llama_cpp.sampling import Candidates, ChoiceSampler, drawn, filtered, penalised

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("llmkit_transformers.sampling")

FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"typical_p": 0.5},
    {"temperature": 2.5, "top_p": 0.99},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.7, "presence_penalty": -1.1},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.4, "presence_penalty": 0.3, "top_k": 20, "temperature": 1.4},
]


def rows(n_vocabulary: int, n: int, spread: float) -> list[np.ndarray]:
    draw = np.random.default_rng(n_vocabulary)
    return [draw.normal(0, spread, n_vocabulary).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("values", FILTERS, ids=str)
@pytest.mark.parametrize(("n_vocabulary", "spread"), [(50, 2.0), (1000, 0.1), (20_000, 3.0)])
def test_filters_and_penalties_leave_the_same_tokens_with_the_same_probabilities(
    values: dict[str, Any], n_vocabulary: int, spread: float
) -> None:
    params = GenerationParams(do_sample=True, seed=3, **values)
    context, generated = [1, 2, 3, 3, 7], [4, 4, 4, 9, 2]
    for logits in rows(n_vocabulary, 4, spread):
        row = torch.from_numpy(logits)
        scores = theirs.filters(params)(None, theirs.penalised(row, context, generated, params)[None])[0]
        expected = torch.softmax(scores, dim=-1).numpy()
        ours = filtered(penalised(logits, context, generated, params), params)
        probabilities = np.zeros_like(expected)
        probabilities[ours.ids] = ours.probabilities
        # A cumulated sum in float32 may fall on either side of the border: at most the last token differs.
        assert abs(int((expected > 0).sum()) - len(ours.ids)) <= 1
        np.testing.assert_allclose(probabilities, expected, rtol=2e-3, atol=2e-4)


def test_the_same_logits_and_seed_give_the_same_tokens_as_on_transformers() -> None:
    draw, n_equal, n_all = random.Random(0), 0, 0
    for logits in rows(3000, 60, 2.0):
        values = draw.choice(FILTERS)
        params = GenerationParams(do_sample=True, seed=draw.randrange(2**32), **values)
        sampler = ChoiceSampler(params, 1, [5, 6])
        for _ in range(5):
            expected = theirs.Sampler(params, 1).next_token(torch.from_numpy(logits), [5, 6], list(sampler.chosen))
            n_equal, n_all = n_equal + (sampler.choose(logits, int(logits.argmax())) == expected), n_all + 1
            sampler.chosen[-1] = expected
    assert n_equal >= 0.99 * n_all


def test_greedy_takes_the_likeliest_after_the_penalties() -> None:
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    plain = ChoiceSampler(GenerationParams(do_sample=False), 0, [])
    assert plain.choose(logits, 1) == 1
    penalised_twice = ChoiceSampler(GenerationParams(do_sample=False, presence_penalty=0.5), 0, [])
    assert [penalised_twice.choose(logits, 1) for _ in range(3)] == [1, 2, 1]
    assert logits.tolist() == pytest.approx([1.0, 3.0, 2.9, -1.0])


def test_tokens_are_drawn_in_proportion_to_their_probability() -> None:
    candidates = Candidates(np.array([3, 8, 9]), np.log(np.array([0.5, 0.2, 0.3], np.float32)))
    counts = dict.fromkeys((3, 8, 9), 0)
    for index in range(6000):
        counts[drawn(candidates, uniform(1, 0, index))] += 1
    squares = sum((counts[t] - 6000 * p) ** 2 / (6000 * p) for t, p in ((3, 0.5), (8, 0.2), (9, 0.3)))
    assert squares < 13.8  # chi-square, two degrees of freedom, one in a thousand
    assert drawn(candidates, 0.0) == 3
    assert drawn(candidates, 1 - 2**-53) == 9


def test_logprobs_are_those_of_what_the_token_was_chosen_from() -> None:
    logits = rows(100, 1, 1.0)[0]
    sampler = ChoiceSampler(GenerationParams(do_sample=True, seed=1, temperature=0.5, top_k=3, logprobs=5), 0, [])
    token = sampler.choose(logits, int(logits.argmax()))
    (scored,) = sampler.scored
    others = np.sort(logits)[::-1][:3] / 0.5
    expected = others - np.log(np.exp(others).sum())
    assert [logprob for _, logprob in scored.likeliest] == pytest.approx(expected.tolist(), abs=1e-5)
    assert (scored.token_id, scored.logprob) == (token, dict(scored.likeliest)[token])
