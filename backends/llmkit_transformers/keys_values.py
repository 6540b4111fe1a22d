"""The keys and values of one sequence, two tensors a layer, grown by whole tiles and by no less than an eighth.

It knows nothing of attention; what stands behind the last token may be old but is always finite.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

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
        tensors: keys and values of each layer by turns, `(H_kv, C, D)` in the model's dtype, C in whole tiles and
            no more than `capacity` of the tokens; empty before the first token.
        stack: whose slot the tensors are views of (`stacks.py`); None where they are the sequence's own.
        is_borrowed: the tensors are views of another sequence's, and must not outlast its next step.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.stack: object | None = None
        self.is_borrowed = False

    @property
    def keys(self) -> list[Tensor]:
        """The keys of each layer."""
        return self.tensors[::2]

    @property
    def values(self) -> list[Tensor]:
        """The values of each layer."""
        return self.tensors[1::2]

    @property
    def n_bytes(self) -> int:
        """Bytes allocated now."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values."""
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's new keys and values, `(H_kv, T, D)`, at positions `start ... start + T`."""
        end = start + keys.shape[1]
        if 2 * layer == len(self.tensors):
            self.tensors += (_grown(None, keys, end), _grown(None, values, end))
        for at, new in ((2 * layer, keys), (2 * layer + 1, values)):
            if end > self.tensors[at].shape[1]:
                self.tensors[at] = _grown(self.tensors[at], new, end)
            self.tensors[at][:, start:end] = new

    def fork(self, n_tokens: int) -> SequenceBuffers:
        """A sequence that begins with this one's first tokens; `own` or a stack copies them, before anybody writes."""
        made = SequenceBuffers()
        made.tensors = [tensor[:, : whole_tiles(n_tokens)] for tensor in self.tensors]
        made.is_borrowed = True
        return made

    def own(self) -> None:
        """Copy what is borrowed, into buffers as large as if it had been read from empty."""
        if self.is_borrowed:
            self.tensors = [_grown(view, view, view.shape[1]) for view in self.tensors]
            self.is_borrowed = False

    def clear(self) -> None:
        """Give the memory back."""
        self.tensors, self.stack, self.is_borrowed = [], None, False

    def stand_alone(self) -> None:
        """Leave the stack with tensors of its own."""
        self.tensors, self.stack = [view.clone() for view in self.tensors], None


def _grown(old: Tensor | None, like: Tensor, n_tokens: int) -> Tensor:
    """A buffer for so many tokens with the old one's contents; zeros elsewhere, since 0 x NaN would leak."""
    made = like.new_empty(like.shape[0], capacity(n_tokens), like.shape[2])
    n_old = 0 if old is None else old.shape[1]
    made[:, n_old:] = 0
    if old is not None:
        made[:, :n_old] = old
    return made
