"""Keys and values that several sequences begin with: read by all of them, written by none.

It knows neither sequences nor attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from torch import Tensor


class SharedPrefix:
    """The first tokens of several sequences. It lives as long as one of them.

    Args:
        tensors: keys and values of each layer by turns, `(H_kv, n, D)`, n in whole tiles; nobody writes into them.

    Attributes:
        n_tokens: how many tokens.
        n_bytes: bytes that it holds, or looks at in a longer one.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.n_tokens = self.tensors[0].shape[1]
        self.n_bytes = sum(tensor.nbytes for tensor in self.tensors)
        self._parts = WeakValueDictionary[int, SharedPrefix]()

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values."""
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def first(self, n_tokens: int) -> SharedPrefix | None:
        """Its beginning, in whole tiles, without a copy; one object for all who ask. None for nothing."""
        if n_tokens == self.n_tokens or n_tokens == 0:
            return self if n_tokens else None
        part = self._parts.get(n_tokens)
        if part is None:
            part = self._parts[n_tokens] = SharedPrefix([tensor[:, :n_tokens] for tensor in self.tensors])
        return part
