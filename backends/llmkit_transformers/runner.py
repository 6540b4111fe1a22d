"""Runs a transformers model on flat steps: the engine's side of it is integers, this side is tensors.

It knows nothing of requests, queues or the prefix cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.engine.runner import KeysValues, Slice, TokenSampler
from llmkit_transformers import flat_attention
from llmkit_transformers.flat_attention import FlatStep, Piece
from llmkit_transformers.keys_values import TILE, SequenceBuffers, whole_tiles
from llmkit_transformers.logprobs import ScoredToken
from llmkit_transformers.numerics import reproducible_numerics
from llmkit_transformers.sampling import Sampler

_ROW_MULTIPLE = 4
"""Matrix kernels treat the rows beyond a multiple of four differently, so reproducible steps have none."""


@dataclass(slots=True)
class ChoiceSampler:
    """A sampler with the tokens that it has chosen so far.

    Args:
        sampler: chooses.
        context: tokens that the repetition penalty counts besides.

    Attributes:
        scored: tokens with log-probabilities that nobody has fetched yet, the oldest first; empty where not asked for.
    """

    sampler: Sampler
    context: Sequence[int]
    chosen: list[int] = field(default_factory=list[int])
    scored: deque[ScoredToken] = field(default_factory=deque[ScoredToken])

    def choose(self, logits: Tensor, likeliest: int) -> int:
        """The next token.

        Args:
            logits: `(V,)`, unnormalised.
            likeliest: their argmax, computed for all rows at once.
        """
        token = likeliest
        if self.sampler.wants_logprobs:
            scored = self.sampler.next_scored(logits.float(), self.context, self.chosen)
            self.scored.append(scored)
            token = scored.token_id
        elif not self.sampler.is_plain_greedy:
            token = self.sampler.next_token(logits.float(), self.context, self.chosen)
        self.chosen.append(token)
        return token


class FlatRunner:
    """The `ModelRunner` of transformers models. One thread uses it.

    Args:
        model: a model that `proof.py` found fit.
        lock: held while the model runs, for others who run it, in other ways.

    Attributes:
        last_step: what attention saw in the last step.
    """

    def __init__(self, model: PreTrainedModel, lock: Lock | None = None) -> None:
        self._model, self._lock = model, lock or Lock()
        self.last_step: FlatStep | None = None
        self._bytes_per_tile: int | None = None

    def new(self) -> SequenceBuffers:
        """Buffers of a sequence without tokens."""
        return SequenceBuffers()

    def fork(self, source: KeysValues, n_tokens: int) -> SequenceBuffers:
        """An independent copy of the first tokens."""
        return _buffers(source).copy(n_tokens)

    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        """Nothing to do: what stands behind the last token is never looked at."""

    def free(self, keys_values: KeysValues) -> None:
        """Give the memory back."""
        _buffers(keys_values).clear()

    def bytes_for(self, n_tokens: int) -> int:
        """Bytes of so many tokens; the first call reads one token to learn what a tile takes."""
        if self._bytes_per_tile is None:
            buffers = self.new()
            self.logits([Slice(buffers, [0], 0, False, ())])
            self._bytes_per_tile = buffers.n_bytes
        return self._bytes_per_tile * whole_tiles(n_tokens) // TILE

    def step(self, slices: Sequence[Slice]) -> list[list[int]]:
        """Read all slices in one forward pass; for each slice one token per sampler."""
        logits = self.logits(slices)
        likeliest = cast("list[int]", logits.argmax(dim=-1).tolist())
        rows = zip(slices, logits, likeliest, strict=True)
        return [[_own(sampler).choose(row, top) for sampler in piece.samplers] for piece, row, top in rows]

    def logits(self, slices: Sequence[Slice]) -> Tensor:
        """`(S, V)` logits after each slice's last token, in the model's dtype, unnormalised."""
        ids, positions, pieces = _laid_out(slices)
        last = [piece.first_row + piece.n_rows - 1 for piece in pieces]
        reproducible = any(piece.reproducible for piece in slices)
        if reproducible:
            ids, positions, last = (_padded(numbers) for numbers in (ids, positions, last))
        with (
            self._lock,
            torch.inference_mode(),
            attending_flat(self._model),
            reproducible_numerics(reproducible),
            flat_attention.running(FlatStep(pieces, reproducible)) as self.last_step,
        ):
            output = self._forward(ids, positions, last)
        return output[: len(slices)]

    def _forward(self, ids: list[int], positions: list[int], last: list[int]) -> Tensor:
        device = self._model.device
        output = cast("Any", self._model)(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            logits_to_keep=torch.tensor(last, device=device),
            use_cache=False,
        )
        return output.logits[0]

    def close(self) -> None:
        """Nothing is held here; buffers are freed one by one."""


@contextmanager
def attending_flat(model: PreTrainedModel) -> Generator[None]:
    """Let the model's attention be the flat one; elsewhere it keeps its own, for the other route."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = flat_attention.NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _laid_out(slices: Sequence[Slice]) -> tuple[list[int], list[int], list[Piece]]:
    """All slices end to end: token ids, positions, and where each sequence's rows are."""
    ids: list[int] = []
    positions: list[int] = []
    pieces: list[Piece] = []
    for piece in slices:
        pieces.append(Piece(_buffers(piece.keys_values), len(ids), len(piece.token_ids), piece.start))
        ids.extend(piece.token_ids)
        positions.extend(range(piece.start, piece.start + len(piece.token_ids)))
    return ids, positions, pieces


def _padded(numbers: list[int]) -> list[int]:
    return numbers + [0] * (-len(numbers) % _ROW_MULTIPLE)


def _buffers(keys_values: KeysValues) -> SequenceBuffers:
    return cast("SequenceBuffers", keys_values)


def _own(sampler: TokenSampler) -> ChoiceSampler:
    return cast("ChoiceSampler", sampler)
