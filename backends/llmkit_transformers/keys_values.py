"""The keys and values of one sequence, a buffer a layer, grown by whole tiles.

It knows nothing of attention; what stands behind the last token may be old but is always finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 64
"""Positions by which buffers grow, and within which query rows are computed together (ENGINE: the position tile)."""


def whole_tiles(n_tokens: int) -> int:
    """The number of positions that the buffers of so many tokens have."""
    return -(-n_tokens // TILE) * TILE


class SequenceBuffers:
    """Keys and values of one sequence.

    Attributes:
        keys: a tensor a layer, `(H_kv, C, D)` in the model's dtype, C a multiple of 64; empty before the first token.
        values: likewise.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def n_bytes(self) -> int:
        """Bytes allocated now."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's new keys and values, `(H_kv, T, D)`, at positions `start ... start + T`."""
        end = start + keys.shape[1]
        if layer == len(self.keys):
            self.keys.append(_grown(None, keys, end))
            self.values.append(_grown(None, values, end))
        elif end > self.keys[layer].shape[1]:
            self.keys[layer] = _grown(self.keys[layer], keys, end)
            self.values[layer] = _grown(self.values[layer], values, end)
        self.keys[layer][:, start:end] = keys
        self.values[layer][:, start:end] = values

    def copy(self, n_tokens: int) -> SequenceBuffers:
        """An independent copy of the first tokens, no larger than they need."""
        made, kept = SequenceBuffers(), whole_tiles(n_tokens)
        made.keys = [tensor[:, :kept].clone() for tensor in self.keys]
        made.values = [tensor[:, :kept].clone() for tensor in self.values]
        return made

    def clear(self) -> None:
        """Give the memory back."""
        self.keys, self.values = [], []


def _grown(old: Tensor | None, like: Tensor, n_tokens: int) -> Tensor:
    """A buffer for so many tokens with the old one's contents; zeros elsewhere, since 0 x NaN would leak."""
    made = torch.zeros(like.shape[0], whole_tiles(n_tokens), like.shape[2], dtype=like.dtype, device=like.device)
    if old is not None:
        made[:, : old.shape[1]] = old
    return made
