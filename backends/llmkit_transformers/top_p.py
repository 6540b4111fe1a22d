"""Top-p without sorting the vocabulary: its border is searched among ever fewer tokens, and only these are sorted.

It gives what transformers' own filter gives, token by token; it knows nothing of requests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

_FEW = 1024
"""Tokens that are sorted rather than searched further."""

_ROUNDING = 1e-5
"""How far apart two sums of the same probabilities may be, as a part of the sum, that float32 adds up in another order.
Up to 256,000 random logits, transformers' sums were 3.2e-6 from the true ones at most."""


class NucleusFilter(TopPLogitsWarper):
    """`TopPLogitsWarper` that sorts the vocabulary only where it must (Holtzman et al. 2019, arXiv:1904.09751).

    A token stays if the tokens likelier than it have less than `top_p` together. Where the border is so close to a
    token that the order of adding might decide, or falls between equally likely tokens, the whole vocabulary is sorted,
    as transformers does: always where tokens at the border have less than 1e-5 of what is left out.
    """

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores `(B, V)` with those outside the nucleus at the filter value."""
        if scores.shape[-1] <= 2 * _FEW:
            return super().__call__(input_ids, scores)
        borders = [_least_kept(row, float(self.top_p)) for row in scores]
        if None in borders:
            return super().__call__(input_ids, scores)
        kept = scores >= scores.new_tensor(borders)[:, None]
        if int(kept.sum(-1).min()) < self.min_tokens_to_keep:
            return super().__call__(input_ids, scores)
        return scores.masked_fill(~kept, self.filter_value)


def _least_kept(logits: Tensor, top_p: float) -> float | None:
    """The lowest of the logits `(V,)` that stay; None where sums in float32 might decide otherwise.

    Each round halves the range of logits in which the border is: those above it all stay, those below all go.
    """
    region = logits if bool(logits.isfinite().all()) else logits[logits > -torch.inf]
    masses, above, tolerance = region.double().softmax(0), 0.0, _ROUNDING * (1 - top_p)
    while len(region) > _FEW:
        low, high = (float(bound) for bound in region.aminmax())
        middle = (low + high) / 2
        if float(masses.max()) < 2 * tolerance or not low <= middle < high:
            return None  # too close, or tied
        upper = region > middle
        mass = above + float(masses.dot(upper.double()))
        part = upper if mass >= top_p else ~upper
        region, masses, above = region[part], masses[part], above if mass >= top_p else mass
    values, order = region.sort(descending=True)
    after = above + masses[order].cumsum(0)
    n_kept = 1 + int((after[:-1] < top_p).sum())
    before = float(after[n_kept - 2]) if n_kept > 1 else above
    is_close = top_p - before < tolerance or float(after[n_kept - 1]) - top_p < tolerance
    is_tied = n_kept < len(values) and bool(values[n_kept] == values[n_kept - 1])
    return None if is_close or is_tied else float(values[n_kept - 1])
