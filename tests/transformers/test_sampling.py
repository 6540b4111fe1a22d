from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmkit.params import GenerationParams
from llmkit_transformers.sampling import Sampler, draw, likeliest, penalised

V = 12
LOGITS = torch.tensor([2.0, 1.5, 1.4, 1.0, 0.5, 0.0, -0.3, -0.5, -1.0, -2.0, -3.0, -8.0])

WARPERS = {
    "temperature": lambda value: TemperatureLogitsWarper(value),
    "top_k": lambda value: TopKLogitsWarper(value),
    "top_p": lambda value: TopPLogitsWarper(value),
    "min_p": lambda value: MinPLogitsWarper(value),
    "typical_p": lambda value: TypicalLogitsWarper(value),
}


def expected_probabilities(**filters: Any) -> torch.Tensor:
    """By transformers' own processors, in the order in which its generate applies them."""
    chain = LogitsProcessorList([make(filters[name]) for name, make in WARPERS.items() if name in filters])
    return torch.softmax(chain(None, LOGITS[None].clone())[0], dim=-1)


def sampled(n: int, **params: Any) -> Counter[int]:
    sampler = Sampler(GenerationParams(do_sample=True, seed=11, **params))
    return Counter(sampler.next_token(LOGITS, [], [0] * index) for index in range(n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_likeliest_tokens_are_torchs_argmax(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).mul(3).round().to(dtype)  # with ties
    logits[3, 7] = torch.inf
    logits[4] = -torch.inf
    assert likeliest(logits) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.5},
        {"top_k": 4},
        {"top_k": 100},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"typical_p": 0.6},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.95},
    ],
    ids=str,
)
def test_draws_have_the_distribution_of_transformers(filters: dict[str, Any]) -> None:
    n = 20_000 if len(filters) > 1 else 4_000
    counts, probabilities = sampled(n, **filters), expected_probabilities(**filters)
    assert all(probabilities[token] > 0 for token in counts)
    cells = [(counts[token], n * float(p)) for token, p in enumerate(probabilities) if n * float(p) >= 5]
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = max(1, len(cells) - 1)
    # The draws are fixed by the seed, so this cannot flake; five deviations above the mean is one in a million.
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_choices_and_seeds_draw_apart() -> None:
    def run(seed: int, choice: int) -> list[int]:
        sampler = Sampler(GenerationParams(do_sample=True, seed=seed), choice)
        return [sampler.next_token(LOGITS, [], [0] * index) for index in range(30)]

    runs = [run(seed, choice) for seed in (0, 1, 2**63, 2**64 - 1) for choice in (0, 1)]
    assert len({tuple(tokens) for tokens in runs}) == len(runs)
    assert run(1, 1) == run(1, 1)


def test_draws_depend_on_the_number_of_tokens_and_not_on_calls_before() -> None:
    sampler = Sampler(GenerationParams(do_sample=True, seed=3))
    forwards = [sampler.next_token(LOGITS, [], [0] * index) for index in range(20)]
    backwards = [sampler.next_token(LOGITS, [], [0] * index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    sampled(10, temperature=1.2, top_p=0.9)
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda weights: sum(weights) > 0.01),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_without_probability_is_never_drawn(weights: list[float], number: float) -> None:
    probabilities = torch.tensor(weights) / sum(weights)
    token = draw(probabilities, number)
    assert probabilities[token] > 0
    before = float(probabilities[:token].double().sum())
    assert before <= number + 1e-6
    assert number <= before + float(probabilities[token]) + 1e-6


# --- penalties ------------------------------------------------------------------------------------------------------


def by_openais_formula(generated: list[int], frequency: float, presence: float) -> list[float]:
    """OpenAI API reference: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence."""
    counts = Counter(generated)
    return [float(mu) - counts[j] * frequency - float(counts[j] > 0) * presence for j, mu in enumerate(LOGITS)]


TOKENS = st.lists(st.integers(0, V - 1), max_size=20)


@given(context=TOKENS, generated=TOKENS, frequency=st.floats(-2, 2), presence=st.floats(-2, 2))
def test_frequency_and_presence_follow_openais_formula_on_generated_tokens_alone(
    context: list[int], generated: list[int], frequency: float, presence: float
) -> None:
    params = GenerationParams(frequency_penalty=frequency, presence_penalty=presence)
    scores = penalised(LOGITS, context, generated, params).tolist()
    assert scores == pytest.approx(by_openais_formula(generated, frequency, presence), abs=1e-4)


@given(context=TOKENS, generated=TOKENS.filter(bool), penalty=st.floats(0.1, 5))
def test_repetition_penalty_is_that_of_transformers(context: list[int], generated: list[int], penalty: float) -> None:
    ids = torch.tensor([[*context, *generated]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, LOGITS[None].clone())[0]
    actual = penalised(LOGITS, context, generated, GenerationParams(repetition_penalty=penalty))
    assert torch.allclose(actual, expected)


def test_penalties_leave_the_logits_they_are_given() -> None:
    before = LOGITS.clone()
    params = GenerationParams(repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=1.0)
    penalised(LOGITS, [1], [2, 2], params)
    Sampler(params.replace(do_sample=True, seed=1, top_k=2)).next_token(LOGITS, [1], [2, 2])
    assert torch.equal(LOGITS, before)


def test_penalties_shape_a_greedy_choice() -> None:
    greedy = Sampler(GenerationParams(do_sample=False, presence_penalty=1.0))
    assert not greedy.is_plain_greedy
    assert greedy.next_token(LOGITS, [], []) == 0
    assert greedy.next_token(LOGITS, [], [0]) == 1
    assert Sampler(GenerationParams(do_sample=False, presence_penalty=0.0)).is_plain_greedy


# --- filters without a name in llmkit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [{"top_h": 0.3}, {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.3}], ids=lambda setting: next(iter(setting))
)
def test_filters_of_the_models_own_config_apply_to_sampling(setting: dict[str, float]) -> None:
    params = GenerationParams(do_sample=True, seed=1)
    sampler = Sampler(params, 0, GenerationConfig(**setting))
    filtered = {sampler.next_token(LOGITS, [], [0] * index) for index in range(2000)}
    plain = {Sampler(params).next_token(LOGITS, [], [0] * index) for index in range(2000)}
    assert filtered < plain


@pytest.mark.parametrize("temperature", [1e-29, 1e-37, 1e-39, 5e-324])
def test_the_smallest_temperatures_leave_the_likeliest_token(temperature: float) -> None:
    sampler = Sampler(GenerationParams(do_sample=True, temperature=temperature, seed=1, logprobs=1))
    found = sampler.next_scored(LOGITS * 1e4, [], [])
    assert (found.token_id, found.logprob) == (0, 0.0)


@pytest.mark.parametrize("penalty", [1e-38, 1e-42])
def test_the_smallest_repetition_penalties_have_log_probabilities(penalty: float) -> None:
    sampler = Sampler(GenerationParams(repetition_penalty=penalty, logprobs=1))
    found = sampler.next_scored(LOGITS, [0, 1], [])
    assert found.token_id in (0, 1)
    assert -math.log(2.001) < found.logprob <= 0
