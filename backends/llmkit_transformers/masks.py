"""Structured output on tensors: llguidance's view of a tokenizer, and its masks laid over logits.

It knows neither constraints nor requests; `llmkit.structured` says which tokens are allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmkit.errors import UnsupportedFeature
from llmkit.structured import Matcher
from llmkit.structured.grammars import llguidance

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def guide_tokenizer(tokenizer: Any, n_vocab: int) -> LLTokenizer:
    """The tokenizer as llguidance sees it.

    Args:
        tokenizer: transformers' own.
        n_vocab: tokens that the model has logits for, at least.

    Raises:
        ExtraUnavailable: llguidance is not installed.
        UnsupportedFeature: the tokenizer is written in Python, or of a kind whose tokens are no bytes.
    """
    llguidance()
    if not tokenizer.is_fast:
        raise UnsupportedFeature(f"structured output needs a fast tokenizer, got {type(tokenizer).__name__}")
    from llguidance.hf import from_tokenizer

    # Any special token can stand for the end; the tokens that do end a text are those of each request.
    special = (tokenizer.eos_token_id, *tokenizer.all_special_ids, len(tokenizer) - 1)
    end = next(token_id for token_id in special if token_id is not None)
    try:
        return from_tokenizer(tokenizer, n_vocab=max(n_vocab, len(tokenizer)), eos_token=end)
    except ValueError as error:
        raise UnsupportedFeature(f"structured output cannot use this model's tokenizer: {error}") from error


def only_allowed(logits: Tensor, matcher: Matcher) -> Tensor:
    """Logits in which tokens that may not come next are minus infinity.

    Args:
        logits: `(V,)` floating point, unnormalised; not changed.
        matcher: where the text stands.
    """
    bits = np.unpackbits(np.frombuffer(matcher.mask(), dtype=np.uint8), bitorder="little", count=logits.shape[0])
    return torch.where(torch.from_numpy(bits.view(np.bool_)).to(logits.device), logits, -torch.inf)
