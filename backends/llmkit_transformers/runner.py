"""Runs a transformers model on flat steps: the engine's side of it is integers, this side is tensors.

It knows nothing of requests, queues or the prefix cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.engine.runner import KeysValues, Slice, TokenSampler
from llmkit_transformers import flat_attention, flat_step, last_layer
from llmkit_transformers.fair_lock import FairLock
from llmkit_transformers.flat_step import FlatStep, Piece, StackedRows, shared_rows, stacked_rows
from llmkit_transformers.forks import Forks
from llmkit_transformers.keys_values import TILE, SequenceBuffers, capacity
from llmkit_transformers.logprobs import ScoredToken
from llmkit_transformers.numerics import reproducible_numerics
from llmkit_transformers.products import ROW_MULTIPLE, FastWays, fast_ways
from llmkit_transformers.sampling import Sampler, likeliest
from llmkit_transformers.stacks import Stacks

_LEAST_SAVING = 2
"""Rows to one that is asked for, from which the last layer is run on these alone."""


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

    def choose(self, logits: Tensor, top: int) -> int:
        """The next token.

        Args:
            logits: `(V,)`, unnormalised.
            top: the likeliest token, found for all rows at once.
        """
        token = top
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
        narrow: let only the last row of each slice pass the last layer; `proof.py` knows which models allow it.
        ways: how to multiply in fast steps; by default the fastest here, second copies of the weights included.

    Attributes:
        last_step: what attention saw in the last step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lock: FairLock | None = None,
        *,
        narrow: bool = False,
        ways: FastWays | None = None,
    ) -> None:
        self._model, self._lock, self._device = model, lock or FairLock(), model.device
        self._ways = ways or fast_ways()
        self._last_layer = last_layer.find(model) if narrow else None
        self._stacks, self._forks = Stacks(), Forks()
        self.last_step: FlatStep | None = None
        self._bytes_per_tile: int | None = None

    def new(self) -> SequenceBuffers:
        """Buffers of a sequence without tokens."""
        return SequenceBuffers()

    def fork(self, source: KeysValues, n_tokens: int) -> SequenceBuffers:
        """An independent copy of the first tokens; they are copied in the next step, to where they will stand."""
        return self._forks.add(_buffers(source), n_tokens)

    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        """Forget the tokens behind; where none of them is shared, they stay and are never looked at."""
        self._forks.source_was_cut(_buffers(keys_values))
        _buffers(keys_values).truncate(n_tokens)

    def free(self, keys_values: KeysValues) -> None:
        """Give the memory back."""
        self._stacks.free(_buffers(keys_values))

    def bytes_for(self, n_tokens: int) -> int:
        """Bytes of so many tokens; the first call reads one token to learn what a tile takes."""
        if self._bytes_per_tile is None:
            buffers = self.new()
            self.logits([Slice(buffers, [0], 0, False, ())])
            self._bytes_per_tile = buffers.n_bytes
        return self._bytes_per_tile * capacity(n_tokens) // TILE

    def step(self, slices: Sequence[Slice]) -> list[list[int]]:
        """Read all slices in one forward pass; for each slice one token per sampler."""
        logits = self.logits(slices)
        rows = zip(slices, logits, likeliest(logits), strict=True)
        return [[_own(sampler).choose(row, top) for sampler in piece.samplers] for piece, row, top in rows]

    def logits(self, slices: Sequence[Slice]) -> Tensor:
        """`(S, V)` logits after each slice's last token, in the model's dtype, unnormalised."""
        reproducible = any(piece.reproducible for piece in slices)
        with self._lock, torch.inference_mode(), attending_flat(self._model):
            alone = {_buffers(piece.keys_values) for piece in slices if piece.reproducible}
            forks = self._forks.settle(alone, may_share=self._may_share)
            for buffers in alone:
                buffers.unshare()
            rows = _Rows(slices, self._stacks, forks, self._device)
            self._forks.clear()
            step = FlatStep(rows.pieces, rows.stacks, shared_rows(rows.stacks, rows.pieces), reproducible)
            ways = self._ways if self._ways.serve(len(rows.ids), len(rows.last)) else None
            with reproducible_numerics(reproducible, ways=ways), flat_step.running(step) as self.last_step:
                return self._forward(rows, step)[: len(slices)]

    def _forward(self, rows: _Rows, step: FlatStep) -> Tensor:
        whole, device = _padded if step.reproducible else list[int], self._device
        ids, kept, narrow = whole(rows.ids), rows.last, nullcontext()
        if self._last_layer is not None and len(kept) <= len(rows.ids) // _LEAST_SAVING:
            last = last_layer.last_rows(step)
            places = torch.tensor(whole(last.rows), device=device)
            narrow = last_layer.narrowed(self._last_layer, step, last.step, len(ids), places)
            place_of = {row: place for place, row in enumerate(last.rows)}
            kept = [place_of[row] for row in kept]
        with narrow:
            output = cast("Any", self._model)(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([whole(rows.positions)], device=device),
                logits_to_keep=torch.tensor(whole(kept), device=device),
                use_cache=False,
            )
        return output.logits[0].contiguous()

    @property
    def _may_share(self) -> bool:
        """Whether this model's attention can take a shared beginning apart from the rest."""
        step = self.last_step
        return step is not None and self._device.type == "cpu" and all(kind.is_plain for kind in step.kinds)

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


class _Rows:
    """The rows of a step: slices that stand in stacks first, in the order of their slots, then the others end to end.

    Attributes:
        ids: token id of each row.
        positions: position of each row in its sequence.
        last: the last row of each slice, in the slices' order.
        stacks: the rows of each stack.
        pieces: the rows of each other slice.
    """

    def __init__(
        self, slices: Sequence[Slice], stacks: Stacks, forks: Sequence[SequenceBuffers], device: torch.device
    ) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.stacks: list[StackedRows] = []
        self.pieces: list[Piece] = []
        by_buffers = {_buffers(one.keys_values): one for one in slices}
        last: dict[SequenceBuffers, int] = {}
        for stack in stacks.arrange(_decoding(by_buffers), forks):
            first_row = len(self.ids)
            for member in stack.members:
                last[member] = self._add(by_buffers.pop(member))
            pairs = zip(self.positions[first_row:], stack.members, strict=True)
            self.stacks.append(stacked_rows(stack, first_row, [at - member.n_shared for at, member in pairs], device))
        for buffers, one in by_buffers.items():
            self.pieces.append(Piece(buffers, len(self.ids), len(one.token_ids), one.start - buffers.n_shared))
            last[buffers] = self._add(one)
        self.last = [last[_buffers(one.keys_values)] for one in slices]

    def _add(self, piece: Slice) -> int:
        self.ids.extend(piece.token_ids)
        self.positions.extend(range(piece.start, piece.start + len(piece.token_ids)))
        return len(self.ids) - 1


def _decoding(slices: Mapping[SequenceBuffers, Slice]) -> dict[SequenceBuffers, int]:
    """Where sequences will end that read one token and have read some before."""
    return {buffers: one.start + 1 for buffers, one in slices.items() if len(one.token_ids) == 1 and buffers.tensors}


def _padded(numbers: list[int]) -> list[int]:
    return numbers + [0] * (-len(numbers) % ROW_MULTIPLE)


def _buffers(keys_values: KeysValues) -> SequenceBuffers:
    return cast("SequenceBuffers", keys_values)


def _own(sampler: TokenSampler) -> ChoiceSampler:
    return cast("ChoiceSampler", sampler)
