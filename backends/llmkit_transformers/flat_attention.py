"""Attention for a flat step: the new tokens of many sequences end to end, each attending to its own past alone.

Registered with transformers as an attention implementation. It knows positions and buffers, and nothing of requests or
sampling. The step it works for is thread-local, so two models in two threads never meet.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from llmkit_transformers.keys_values import TILE, SequenceBuffers

NAME = "llmkit_flat"
_ROW_MULTIPLE = 4
_IGNORED = {
    "dropout",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "is_causal",
    "logits_to_keep",
}


class NotUnderstood(Exception):
    """A model passes its attention something that this function does not honour, so the flat route is not for it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one sequence in a step.

    Attributes:
        buffers: the sequence's keys and values.
        first_row: where its rows begin in the step.
        n_rows: how many there are.
        start: position of the first of them in the sequence.
    """

    buffers: SequenceBuffers
    first_row: int
    n_rows: int
    start: int

    @property
    def end(self) -> int:
        """Tokens that the sequence has after the step."""
        return self.start + self.n_rows


@dataclass(slots=True)
class FlatStep:
    """One step while it runs.

    Attributes:
        pieces: the sequences' rows, in order.
        reproducible: keep to the rules that make rows independent.
        n_layers: attention calls so far.
        n_windowed: those of them with a sliding window.
    """

    pieces: Sequence[Piece]
    reproducible: bool
    n_layers: int = 0
    n_windowed: int = 0
    masks: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict[Any, Tensor])


class _Current(threading.local):
    step: FlatStep | None = None


_current = _Current()


@contextmanager
def running(step: FlatStep) -> Generator[FlatStep]:
    """Make this the step that attention works for in this thread."""
    _current.step = step
    try:
        yield step
    finally:
        _current.step = None


def flat_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over the step's pieces.

    Args:
        module: the layer; not used.
        query: `(1, H, T, D)`.
        key: `(1, H_kv, T, D)`, of the new tokens.
        value: `(1, H_kv, T, D_v)`, likewise.
        attention_mask: must be None; positions say everything.
        scaling: factor of the scores.
        sliding_window: positions that a token sees, itself included; None for all.
        softcap: bound of the scores (Gemma 2: `softcap * tanh(score / softcap)`).
        others: whatever else the model passes; refused unless it changes nothing here.

    Returns:
        `(1, T, H, D_v)`, and no weights.

    Raises:
        NotUnderstood: an argument that is not honoured.
    """
    step = _current.step
    unknown = sorted(
        name for name, given in others.items() if given is not None and given is not False and name not in _IGNORED
    )
    if step is None or attention_mask is not None or unknown:
        raise NotUnderstood(f"attention arguments {unknown or 'mask'} are not honoured by the flat step")
    how = _How(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    for piece in step.pieces:
        rows = slice(piece.first_row, piece.first_row + piece.n_rows)
        piece.buffers.write(step.n_layers, piece.start, key[0, :, rows], value[0, :, rows])
        attend = _tiled if step.reproducible else _whole
        attend(step, piece, query[0, :, rows], how, out[0, rows].transpose(0, 1))
    step.n_layers += 1
    step.n_windowed += sliding_window is not None
    return out, None


@dataclass(frozen=True, slots=True)
class _How:
    scaling: float
    window: int | None
    softcap: float | None


def _whole(step: FlatStep, piece: Piece, query: Tensor, how: _How, out: Tensor) -> None:
    """All rows of a piece at once: as fast as it goes. `query` and `out`: `(H, n, D)`."""
    keys, values = piece.buffers.keys[step.n_layers], piece.buffers.values[step.n_layers]
    first = 0 if how.window is None else max(0, piece.start - how.window + 1)
    keys, values = keys[:, first : piece.end], values[:, first : piece.end]
    mask = None if piece.n_rows == 1 else _mask(step, piece.start, piece.n_rows, (first, piece.end), how.window)
    out.copy_(_scored(_folded(query, keys.shape[0]), keys, values, mask, how).reshape(out.shape))


def _tiled(step: FlatStep, piece: Piece, query: Tensor, how: _How, out: Tensor) -> None:
    """Rows cut at tiles, each against all keys up to its tile's end, so that the bits depend on positions only."""
    keys, values = piece.buffers.keys[step.n_layers], piece.buffers.values[step.n_layers]
    at = piece.start
    while at < piece.end:
        n_keys = (at // TILE + 1) * TILE
        n = min(piece.end, n_keys) - at
        rows = slice(at - piece.start, at - piece.start + n)
        folded = _folded(query[:, rows], keys.shape[0])
        missing = -folded.shape[1] % _ROW_MULTIPLE
        mask = _mask(step, at, n, (0, n_keys), how.window)
        groups = folded.shape[1] // n
        mask = pad(mask.repeat(groups, 1) if mask.shape[0] != folded.shape[1] else mask, (0, 0, 0, missing))
        scored = _scored(pad(folded, (0, 0, 0, missing)), keys[:, :n_keys], values[:, :n_keys], mask, how)
        out[:, rows] = scored[:, : folded.shape[1]].reshape(out[:, rows].shape)
        at += n


def _folded(query: Tensor, n_kv_heads: int) -> Tensor:
    """`(H, n, D)` as `(H_kv, G * n, D)`: the query heads that share keys become rows of one matrix."""
    return query.reshape(n_kv_heads, -1, query.shape[-1])


def _mask(step: FlatStep, start: int, n_rows: int, keys: tuple[int, int], window: int | None) -> Tensor:
    """`(n, L)` additive float mask: 0 where a row may look, -inf elsewhere; built once a step."""
    place = (start, n_rows, keys[0], window)
    if place not in step.masks:
        reference = step.pieces[0].buffers.keys[0]
        at = torch.arange(*keys, device=reference.device)
        rows = torch.arange(start, start + n_rows, device=reference.device)[:, None]
        seen = at <= rows if window is None else (at <= rows) & (at > rows - window)
        mask = torch.zeros(seen.shape, dtype=reference.dtype, device=reference.device)
        step.masks[place] = mask.masked_fill_(~seen, -torch.inf)
    return step.masks[place]


def _scored(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, how: _How) -> Tensor:
    """`(H_kv, R, D)` queries against `(H_kv, L, D)` keys; the mask `(n, L)` repeats for each folded head."""
    if mask is not None and mask.shape[0] != query.shape[1]:
        mask = mask.repeat(query.shape[1] // mask.shape[0], 1)
    if how.softcap is None:
        return scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask, scale=how.scaling)[0]
    scores = torch.matmul(query, keys.transpose(1, 2)) * how.scaling
    scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores if mask is None else scores + mask
    return torch.matmul(torch.softmax(scores.float(), dim=-1).to(values.dtype), values)


AttentionInterface.register(NAME, flat_attention)
