"""Top-p without sorting the vocabulary: the likeliest tokens alone, wherever they surely decide.

It gives what transformers' own filter gives, token by token; it knows nothing of requests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

_N_LIKELIEST = 1024
_ROUNDING = 1e-5
"""How far apart two sums of the same probabilities may be that are added up in float32 in another order."""


class NucleusFilter(TopPLogitsWarper):
    """`TopPLogitsWarper` that sorts only where it must (Holtzman et al. 2019, arXiv:1904.09751).

    A token stays if the tokens likelier than it have less than `top_p` together. The 1,024 likeliest are enough where
    their own probabilities reach beyond it. Where the border is so close that the order of adding might decide, or
    falls between equally likely tokens, the whole vocabulary is sorted, as transformers does.
    """

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores `(B, V)` with those outside the nucleus at the filter value."""
        if scores.shape[-1] <= 2 * _N_LIKELIEST:
            return super().__call__(input_ids, scores)
        filtered = torch.full_like(scores, self.filter_value)
        for row, kept in zip(scores, filtered, strict=True):
            likeliest = _nucleus(row, float(self.top_p))
            if likeliest is None or len(likeliest) < self.min_tokens_to_keep:
                return super().__call__(input_ids, scores)
            kept[likeliest] = row[likeliest]
        return filtered


def _nucleus(logits: Tensor, top_p: float) -> Tensor | None:
    """The tokens that stay, `(N,)`; None where the likeliest do not decide it beyond doubt."""
    values, tokens = logits.topk(_N_LIKELIEST)
    probabilities = torch.exp(values.double() - torch.logsumexp(logits.double(), 0))
    likelier = probabilities.cumsum(0) - probabilities
    n_kept = int((likelier < top_p).sum())
    if n_kept == _N_LIKELIEST or values[n_kept] == values[n_kept - 1]:
        return None
    border = likelier[n_kept - 1 : n_kept + 1]
    return None if bool(((border - top_p).abs() < _ROUNDING).any()) else tokens[:n_kept]
