"""From a row of logits to one token: penalties, filters, and noise that belongs to the request.

Each row is treated alone, with its own parameters, so its neighbours cannot matter. This module knows neither
prompts' texts nor how logits are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import EpsilonLogitsWarper, EtaLogitsWarper, TopHLogitsWarper

from llmkit.noise import uniform
from llmkit.params import GenerationParams
from llmkit.structured import Matcher
from llmkit_transformers.logprobs import ScoredToken, scored
from llmkit_transformers.masks import only_allowed
from llmkit_transformers.top_p import NucleusFilter

UNNAMED_FILTERS = ("top_h", "epsilon_cutoff", "eta_cutoff")
"""Filters that a model's generation config may set and that have no name in llmkit."""

_LEAST_TEMPERATURE = 1e-30
"""Below it, logits divided by the temperature are no float32 numbers any more; only the likeliest are left at it."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses the next token of one choice of one request.

    Args:
        params: resolved parameters; a seed is set where they sample.
        choice: index of the choice within its request.
        model_settings: the model's generation config, for filters that have no name in llmkit.
        matcher: where the choice stands in what its text must be; advanced with every token.
    """

    params: GenerationParams
    choice: int = 0
    model_settings: GenerationConfig | None = None
    matcher: Matcher | None = None
    _warpers: LogitsProcessorList = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_warpers", filters(self.params, self.model_settings))

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the likeliest token is all that is asked, so that the caller may take the argmax itself."""
        plain = self.matcher is None and not self.wants_logprobs
        return plain and not self.params.do_sample and not self.params.has_penalties

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.params.logprobs is not None

    def next_token(self, logits: Tensor, context: Sequence[int], generated: Sequence[int]) -> int:
        """The next token's id.

        Args:
            logits: `(V,)` float32, unnormalised; not changed.
            context: tokens that the repetition penalty counts besides the generated ones: the prompt's.
            generated: this choice's tokens so far.
        """
        return self._pick(self._scores(logits, context, generated), len(generated))

    def next_scored(self, logits: Tensor, context: Sequence[int], generated: Sequence[int]) -> ScoredToken:
        """The next token with its log-probability; arguments are those of `next_token`, and so is the token."""
        scores = self._scores(logits, context, generated)
        return scored(scores, self._pick(scores, len(generated)), self.params.logprobs or 0)

    def _scores(self, logits: Tensor, context: Sequence[int], generated: Sequence[int]) -> Tensor:
        """`(V,)`, unnormalised: what the token is chosen from."""
        if self.matcher is not None:
            logits = only_allowed(logits, self.matcher)
        logits = penalised(logits, context, generated, self.params)
        if not self.params.do_sample:
            return logits
        return cast("Any", self._warpers)(None, logits[None])[0]

    def _pick(self, scores: Tensor, index: int) -> int:
        if not self.params.do_sample:
            token = likeliest(scores[None])[0]
        else:
            token = draw(torch.softmax(scores, dim=-1), uniform(self.params.seed or 0, self.choice, index))
        if self.matcher is not None:
            self.matcher.advance(token)
        return token


def likeliest(logits: Tensor) -> list[int]:
    """The likeliest token of each row of `(S, V)` logits, the first of equals.

    On a processor it is NumPy's argmax, which takes a tenth of the time of torch's.
    """
    rows: Any = logits.float().numpy() if logits.device.type == "cpu" else logits
    return rows.argmax(-1).tolist()


def penalised(logits: Tensor, context: Sequence[int], generated: Sequence[int], params: GenerationParams) -> Tensor:
    """Logits after repetition, frequency and presence penalty.

    Repetition (Keskar et al. 2019, arXiv:1909.05858): tokens of context and text have positive logits divided, negative
    ones multiplied. Frequency and presence (OpenAI API reference): `logit -= count * frequency + (count > 0) *
    presence`, over generated tokens only.

    Args:
        logits: `(V,)` float32; not changed.
        context: tokens of the prompt.
        generated: tokens generated so far.
        params: the penalties; unset ones are neutral.
    """
    if not params.has_penalties:
        return logits
    logits = logits.clone()
    if params.repetition_penalty not in (None, 1.0):
        seen = torch.tensor(sorted({*context, *generated}), dtype=torch.long, device=logits.device)
        values, penalty = logits[seen], params.repetition_penalty
        changed = torch.where(values < 0, values * penalty, values / penalty)
        logits[seen] = changed.clamp(max=torch.finfo(changed.dtype).max)  # tiny penalties lead beyond the numbers
    if generated and (params.frequency_penalty or params.presence_penalty):
        counts = torch.bincount(torch.tensor(generated, device=logits.device), minlength=logits.shape[0])
        logits -= counts * (params.frequency_penalty or 0.0) + (counts > 0) * (params.presence_penalty or 0.0)
    return logits


def filters(params: GenerationParams, model_settings: GenerationConfig | None = None) -> LogitsProcessorList:
    """Transformers' own sampling filters for these parameters, in transformers' order; none where nothing samples."""
    chain = LogitsProcessorList()
    if not params.do_sample:
        return chain
    if params.temperature not in (None, 1.0):
        chain.append(TemperatureLogitsWarper(max(params.temperature, _LEAST_TEMPERATURE)))
    if model_settings is not None and model_settings.top_h is not None:
        chain.append(TopHLogitsWarper(top_h=cast("float", model_settings.top_h)))
    if params.top_k is not None and params.top_k > 0:
        chain.append(TopKLogitsWarper(top_k=params.top_k))
    if params.top_p is not None and params.top_p < 1.0:
        chain.append(NucleusFilter(top_p=params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(min_p=params.min_p))
    if params.typical_p is not None and params.typical_p < 1.0:
        chain.append(TypicalLogitsWarper(mass=params.typical_p))
    if model_settings is not None and model_settings.epsilon_cutoff:
        chain.append(EpsilonLogitsWarper(epsilon=cast("float", model_settings.epsilon_cutoff)))
    if model_settings is not None and model_settings.eta_cutoff:
        chain.append(EtaLogitsWarper(epsilon=cast("float", model_settings.eta_cutoff)))
    return chain


def draw(probabilities: Tensor, number: float) -> int:
    """The token at which the cumulated probability passes the number: sampling by the inverse of the distribution.

    Args:
        probabilities: `(V,)`, summing to about 1.
        number: in [0, 1).
    """
    cumulated = probabilities.double().cumsum(0)
    token = int(torch.searchsorted(cumulated, cumulated[-1] * number, right=True))
    if token < len(probabilities) and probabilities[token] > 0:
        return token
    # Rounding has landed past the last token that has any probability.
    return min(token, int(probabilities.nonzero()[-1]))
