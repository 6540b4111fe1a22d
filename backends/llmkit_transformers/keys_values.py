"""The keys and values of one sequence, two tensors a layer, grown by whole tiles and by no less than an eighth.

The first of them may be shared with other sequences; then its own tensors hold what comes after. It knows nothing of
attention; what stands behind the last token may be old but is always finite.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from llmkit_transformers.shared_prefix import SharedPrefix

TILE = 64
"""Positions within which query rows are computed together (ENGINE: the position tile), and the least step of growth."""

_GROWTH = 8


def whole_tiles(n_tokens: int) -> int:
    """So many tokens in whole tiles."""
    return -(-n_tokens // TILE) * TILE


@lru_cache(maxsize=4096)
def capacity(n_tokens: int) -> int:
    """The number of positions that buffers get which must hold so many tokens.

    Growing copies what is there, so a long sequence grows by an eighth instead of a tile: 1, 2, ... 16, 18, 20, 22,
    24, 27 tiles and so on. The number of tokens alone decides, so that memory can be promised before it is taken.
    """
    n_tiles = min(1, n_tokens)
    while n_tiles * TILE < n_tokens:
        n_tiles += max(1, n_tiles // _GROWTH)
    return n_tiles * TILE


class SequenceBuffers:
    """Keys and values of one sequence.

    Attributes:
        tensors: keys and values of each layer by turns, `(H_kv, C, D)` in the model's dtype; C is in whole tiles, and
            with the shared tokens no more than `capacity` of all; empty before the first token.
        shared: the first tokens, where others have them, too.
        stack: whose slot the tensors are views of (`stacks.py`); None where they are the sequence's own.
        is_borrowed: the tensors are views of another sequence's, and must not outlast its next step.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.shared: SharedPrefix | None = None
        self.stack: object | None = None
        self.is_borrowed = False
        self._bytes_per_position = 0

    @property
    def keys(self) -> list[Tensor]:
        """Its own keys of each layer."""
        return self.tensors[::2]

    @property
    def values(self) -> list[Tensor]:
        """Its own values of each layer."""
        return self.tensors[1::2]

    @property
    def n_shared(self) -> int:
        """How many tokens stand before its own."""
        return 0 if self.shared is None else self.shared.n_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes that it keeps allocated, those that it shares included; asked between steps, for each sequence."""
        n_shared = 0 if self.shared is None else self.shared.n_bytes
        if not self.tensors:
            return n_shared
        n_positions = self.tensors[0].shape[1]
        if not self._bytes_per_position:
            self._bytes_per_position = sum(tensor.nbytes for tensor in self.tensors) // n_positions
        return self._bytes_per_position * n_positions + n_shared

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, without the shared ones."""
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's new keys and values, `(H_kv, T, D)`, at its own positions `start ... start + T`."""
        end = start + keys.shape[1]
        if 2 * layer == len(self.tensors):
            self.tensors += (self._grown(None, keys, end), self._grown(None, values, end))
        for at, new in ((2 * layer, keys), (2 * layer + 1, values)):
            if end > self.tensors[at].shape[1]:
                self.tensors[at] = self._grown(self.tensors[at], new, end)
            self.tensors[at][:, start:end] = new

    def fork(self, n_tokens: int) -> SequenceBuffers:
        """A sequence that begins with this one's first tokens; `own` or a stack copies them, before anybody writes."""
        made = SequenceBuffers()
        made.tensors, made.shared = self._cut(n_tokens)
        made.is_borrowed = True
        return made

    def own(self) -> None:
        """Copy what is borrowed, into buffers as large as if it had been read from empty."""
        if self.is_borrowed:
            self.tensors = [self._grown(view, view, view.shape[1]) for view in self.tensors]
            self.is_borrowed = False

    def truncate(self, n_tokens: int) -> None:
        """Forget all but the first tokens, where others share some of those that are forgotten."""
        if n_tokens < self.n_shared:
            self.tensors, self.shared = self._cut(n_tokens)
            self.stack, self.is_borrowed = None, True
            self.own()

    def share(self, prefix: SharedPrefix) -> None:
        """Have a prefix in the place of its own first tokens, which are the same; out of a stack, if it is in one."""
        rest = [tensor[:, prefix.n_tokens :] for tensor in self.tensors]
        self.tensors = rest if self.is_borrowed else [view.clone() for view in rest]
        self.shared, self.stack = prefix, None

    def unshare(self) -> None:
        """Have all tokens in its own tensors."""
        if self.shared is not None:
            pairs, self.shared = zip(self.shared.tensors, self.tensors, strict=True), None
            joined = [torch.cat(pair, dim=1) for pair in pairs]
            self.tensors = [self._grown(tensor, tensor, tensor.shape[1]) for tensor in joined]
            self.stack, self.is_borrowed = None, False

    def clear(self) -> None:
        """Give the memory back."""
        self.tensors, self.shared, self.stack, self.is_borrowed = [], None, None, False

    def stand_alone(self) -> None:
        """Leave the stack with tensors of its own."""
        self.tensors, self.stack = [view.clone() for view in self.tensors], None

    def _cut(self, n_tokens: int) -> tuple[list[Tensor], SharedPrefix | None]:
        """Views of the first tokens, and of what is shared of them; the views end with a tile."""
        if n_tokens >= self.n_shared or self.shared is None:
            return [tensor[:, : whole_tiles(n_tokens - self.n_shared)] for tensor in self.tensors], self.shared
        n_shared = n_tokens // TILE * TILE
        views = [tensor[:, n_shared : whole_tiles(n_tokens)] for tensor in self.shared.tensors]
        return views, self.shared.first(n_shared)

    def _grown(self, old: Tensor | None, like: Tensor, n_tokens: int) -> Tensor:
        """A buffer for so many of its own tokens with the old one's contents; zeros elsewhere, for 0 x NaN would leak.

        With the shared tokens it is as large as a buffer that had read all of them itself.
        """
        n_positions = capacity(self.n_shared + n_tokens) - self.n_shared
        made = like.new_empty(like.shape[0], n_positions, like.shape[2])
        n_old = 0 if old is None else old.shape[1]
        made[:, n_old:] = 0
        if old is not None:
            made[:, :n_old] = old
        return made
