"""Log-probabilities: as numbers where a token is chosen, and spelt out where somebody reads them.

It knows a row of scores and a tokenizer, and nothing of requests.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmkit.types import TokenLogprob, TopLogprob

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how sentencepiece and its kin write a space inside a token
_BYTES_OF_LETTERS: dict[str, int] = {letter: byte for byte, letter in bytes_to_unicode().items()}


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A chosen token with its log-probability, and the likeliest ones with theirs, the likeliest first."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def scored(scores: Tensor, token_id: int, n_likeliest: int) -> ScoredToken:
    """What there is to report of a token that was chosen.

    Args:
        scores: `(V,)` float32, unnormalised, from which it was chosen; `-inf` where nothing can be.
        token_id: the token.
        n_likeliest: how many others to report; those without any probability are left out.
    """
    logprobs = torch.log_softmax(scores, dim=-1)
    values, ids = logprobs.topk(min(n_likeliest, len(logprobs)))
    pairs = zip(cast("list[int]", ids.tolist()), cast("list[float]", values.tolist()), strict=True)
    likeliest = tuple((other, value) for other, value in pairs if value > -torch.inf)
    return ScoredToken(token_id, float(logprobs[token_id]), likeliest)


@dataclass(frozen=True)
class TokenSpelling:
    """The text and the bytes of single tokens of one tokenizer of transformers. Safe to use from many threads."""

    tokenizer: Any

    def spelt(self, token: ScoredToken) -> TokenLogprob:
        """The same with texts and bytes."""
        top = tuple(self._top(*pair) for pair in token.likeliest)
        own = self._top(token.token_id, token.logprob)
        return TokenLogprob(own.token, own.logprob, own.bytes, top)

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        spelling = self.bytes_of(token_id)
        return TopLogprob(spelling.decode(errors="replace"), logprob, tuple(spelling))

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, leading spaces included; none where it stands for no text."""
        piece = cast("str | None", self.tokenizer.convert_ids_to_tokens(token_id))
        if piece is None:  # models may have more embeddings than their tokenizer has tokens
            return b""
        if token_id in self._added_ids:
            return piece.encode()
        if "ByteLevel" in self._decoders:
            return bytes(_BYTES_OF_LETTERS[letter] for letter in piece)
        if "ByteFallback" in self._decoders and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if _SPACE in piece:
            return piece.replace(_SPACE, " ").encode()
        return cast("str", self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)).encode()

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    @cached_property
    def _decoders(self) -> frozenset[str]:
        """The kinds of steps by which the tokenizer turns tokens into text; none for one that is not a fast one."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
        steps = [decoder, *decoder.get("decoders", ())] if decoder else []
        return frozenset(step["type"] for step in steps)
