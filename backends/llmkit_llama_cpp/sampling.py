"""From a row of logits to one token, in numpy: penalties, filters, and noise that belongs to the request.

The definitions and their order are those of transformers' logits processors, so that a parameter means the same on
both backends. Each row is treated alone. Only tokens that may still be chosen are carried from filter to filter. This
module knows neither prompts' texts nor how logits are computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmkit.noise import uniform
from llmkit.params import GenerationParams
from llmkit.structured import Matcher
from llmkit_llama_cpp.context import Logits

Ids = npt.NDArray[np.int64]
_FEW, _MANY = 256, 8192  # likeliest tokens that are sorted before all of them are


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that may still be chosen.

    Attributes:
        ids: `(C,)`, ascending.
        scores: `(C,)` float32, unnormalised.
    """

    ids: Ids
    scores: Logits

    def kept(self, mask: npt.NDArray[np.bool_]) -> Candidates:
        """Those where the mask is true."""
        return Candidates(self.ids[mask], self.scores[mask])

    @property
    def probabilities(self) -> Logits:
        """`(C,)` float32, summing to about 1."""
        shifted = np.exp(self.scores - self.scores.max())
        return shifted / shifted.sum()


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A chosen token with its log-probability, and the likeliest ones with theirs, the likeliest first."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class ChoiceSampler:
    """Chooses the tokens of one choice of one request.

    Args:
        params: resolved parameters; a seed is set where they sample.
        choice: index of the choice within its request.
        context: tokens of the prompt, which the repetition penalty counts too.
        matcher: where the choice stands in what its text must be; advanced with every token.

    Attributes:
        chosen: this choice's tokens so far.
        scored: tokens with log-probabilities that nobody has fetched yet, the oldest first; empty where not asked for.
    """

    params: GenerationParams
    choice: int
    context: Sequence[int]
    matcher: Matcher | None = None
    chosen: list[int] = field(default_factory=list[int])
    scored: deque[ScoredToken] = field(default_factory=deque[ScoredToken])
    is_plain_greedy: bool = field(init=False)

    def __post_init__(self) -> None:
        plain = self.matcher is None and self.params.logprobs is None
        self.is_plain_greedy = plain and not self.params.do_sample and not self.params.has_penalties

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token.

        Args:
            logits: `(V,)` float32, unnormalised; not changed.
            likeliest: their argmax, computed for all rows at once.
        """
        token_id = likeliest if self.is_plain_greedy else self._chosen_from(logits)
        self.chosen.append(token_id)
        return token_id

    def _chosen_from(self, logits: Logits) -> int:
        if self.matcher is not None:
            logits = only_allowed(logits, self.matcher)
        candidates = filtered(penalised(logits, self.context, self.chosen, self.params), self.params)
        if self.params.do_sample:
            number = uniform(self.params.seed or 0, self.choice, len(self.chosen))
            token_id = drawn(candidates, number)
        else:
            token_id = int(candidates.ids[candidates.scores.argmax()])
        if self.matcher is not None:
            self.matcher.advance(token_id)
        if self.params.logprobs is not None:
            self.scored.append(scored(candidates, token_id, self.params.logprobs))
        return token_id


def only_allowed(logits: Logits, matcher: Matcher) -> Logits:
    """Logits in which tokens that may not come next are minus infinity.

    Args:
        logits: `(V,)` float32, unnormalised; not changed.
        matcher: where the text stands.
    """
    bits = np.unpackbits(np.frombuffer(matcher.mask(), np.uint8), bitorder="little", count=len(logits))
    return np.where(bits.view(np.bool_), logits, np.float32(-np.inf))


def penalised(logits: Logits, context: Sequence[int], chosen: Sequence[int], params: GenerationParams) -> Logits:
    """Logits after repetition, frequency and presence penalty.

    Repetition (Keskar et al. 2019, arXiv:1909.05858): tokens of context and text have positive logits divided, negative
    ones multiplied. Frequency and presence (OpenAI API reference): `logit -= count * frequency + (count > 0) *
    presence`, over generated tokens only.

    Args:
        logits: `(V,)` float32; not changed.
        context: tokens of the prompt.
        chosen: tokens generated so far.
        params: the penalties; unset ones are neutral.
    """
    if not params.has_penalties:
        return logits
    logits = logits.copy()
    if params.repetition_penalty not in (None, 1.0):
        seen = np.fromiter({*context, *chosen}, np.int64)
        values, penalty = logits[seen], np.float32(params.repetition_penalty)
        logits[seen] = np.where(values < 0, values * penalty, values / penalty)
    if chosen and (params.frequency_penalty or params.presence_penalty):
        counts = np.bincount(chosen, minlength=len(logits)).astype(np.float32)
        penalty = counts * np.float32(params.frequency_penalty or 0.0)
        logits -= penalty + (counts > 0) * np.float32(params.presence_penalty or 0.0)
    return logits


def filtered(logits: Logits, params: GenerationParams) -> Candidates:
    """The tokens that the filters leave, in transformers' order; all of them where nothing samples."""
    everything = Candidates(np.arange(len(logits)), logits)
    if not params.do_sample:
        return everything
    if params.temperature not in (None, 1.0):
        everything = Candidates(everything.ids, logits / np.float32(params.temperature))
    # What is impossible has no probability, and no part in any filter.
    candidates = everything.kept(everything.scores > -np.inf)
    if params.top_k is not None and params.top_k > 0:
        candidates = top_k(candidates, params.top_k)
    if params.top_p is not None and params.top_p < 1.0:
        candidates = top_p(candidates, params.top_p)
    if params.min_p:
        probabilities = candidates.probabilities
        candidates = candidates.kept(probabilities >= np.float32(params.min_p) * probabilities.max())
    if params.typical_p is not None and params.typical_p < 1.0:
        candidates = typical(candidates, params.typical_p)
    return candidates


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k likeliest tokens, and those as likely as the last of them."""
    if k >= len(candidates.ids):
        return candidates
    last = np.partition(candidates.scores, -k)[-k]
    return candidates.kept(candidates.scores >= last)


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The likeliest tokens that together reach the probability p (Holtzman et al. 2020, arXiv:1904.09751).

    Seldom more than a few hundred are kept, so those are sorted first. That is enough where what stands behind them
    has no more probability than is cut off anyway.
    """
    probabilities, cut_off = candidates.probabilities, np.float32(1 - p)
    for n_sorted in (_FEW, _MANY, len(probabilities)):
        if n_sorted >= len(probabilities):
            order, behind = np.argsort(probabilities, kind="stable"), np.float32(0.0)
        else:
            likeliest = np.argpartition(probabilities, -n_sorted)[-n_sorted:]
            order = likeliest[np.argsort(probabilities[likeliest], kind="stable")]
            behind = max(np.float32(0.0), np.float32(1.0) - probabilities[order].sum())
        if behind <= cut_off:
            break
    reached = behind + probabilities[order].cumsum()
    kept = order[reached > cut_off] if reached[-1] > cut_off else order[-1:]
    return _only(candidates, kept)


def typical(candidates: Candidates, mass: float) -> Candidates:
    """The tokens whose surprise is nearest to the entropy, until they reach the mass (Meister et al. 2022)."""
    probabilities = candidates.probabilities
    surprise = -np.log(probabilities, where=probabilities > 0, out=np.full_like(probabilities, -np.inf))
    entropy = np.where(probabilities > 0, surprise * probabilities, 0).sum()
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    n_below = int((probabilities[order].cumsum() < np.float32(mass)).sum())
    farthest = distance[order[min(n_below, len(order) - 1)]]
    return candidates.kept(distance <= farthest)


def drawn(candidates: Candidates, number: float) -> int:
    """The token at which the cumulated probability passes the number: sampling by the inverse of the distribution.

    Args:
        candidates: at least one.
        number: in [0, 1).
    """
    probabilities = candidates.probabilities.astype(np.float64)
    cumulated: npt.NDArray[np.float64] = probabilities.cumsum(dtype=np.float64)
    index = int(np.searchsorted(cumulated, float(cumulated[-1]) * number, side="right"))
    # Rounding may land past the last token that has any probability.
    return int(candidates.ids[min(index, int(probabilities.nonzero()[0][-1]))])


def scored(candidates: Candidates, token_id: int, n_likeliest: int) -> ScoredToken:
    """What there is to report of a token that was chosen.

    Args:
        candidates: what it was chosen from.
        token_id: the token.
        n_likeliest: how many others to report, of those that have any probability.
    """
    shifted = candidates.scores.astype(np.float64) - candidates.scores.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    order = np.argsort(-logprobs, kind="stable")[:n_likeliest]
    likeliest = tuple((int(candidates.ids[n]), float(logprobs[n])) for n in order if logprobs[n] > -np.inf)
    return ScoredToken(token_id, float(logprobs[np.searchsorted(candidates.ids, token_id)]), likeliest)


def _only(candidates: Candidates, indices: Ids) -> Candidates:
    mask = np.zeros(len(candidates.ids), np.bool_)
    mask[indices] = True
    return candidates.kept(mask)
