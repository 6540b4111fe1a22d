"""The border between bookkeeping and tensors: what the engine asks of whoever runs the model.

The engine decides which tokens are read in a step and which keys and values live on; it never sees a tensor. A runner
owns the tensors; it knows neither requests nor queues nor the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TILE = 64
"""Positions in whose multiples buffers grow."""


class KeysValues(Protocol):
    """Keys and values of one sequence; opaque to the engine, owned by the runner that made it."""

    @property
    def n_bytes(self) -> int:
        """Bytes allocated now; they grow by whole tiles."""
        ...


class TokenSampler(Protocol):
    """Chooses the tokens of one choice; opaque to the engine, called by the runner.

    One object per choice, passed with every slice that wants a token of that choice, in the order of its tokens. It
    may keep state, for a step that fails also ends its request.
    """


@dataclass(slots=True)
class Slice:
    """A part of one sequence, to be read in one step.

    Attributes:
        keys_values: where the sequence's earlier tokens are, and the new ones go.
        token_ids: the new tokens, at least one.
        start: position of the first of them; equally the number of tokens already in `keys_values`.
        reproducible: what is computed must not depend on the other slices, nor on where the sequence was cut.
        samplers: each wants one token from the logits of the last position. None while a prompt is not read to its
            end; several where the choices of a request begin.
    """

    keys_values: KeysValues
    token_ids: Sequence[int]
    start: int
    reproducible: bool
    samplers: Sequence[TokenSampler] = ()


class ModelRunner(Protocol):
    """Runs the model on slices of sequences, and keeps their keys and values.

    Every method but `bytes_for` is called from one thread, the owner. A `step` that raises ends the requests in it, and
    a `fork`, `truncate` or `new` that raises the request it was called for; all others must stay usable.
    """

    def new(self) -> KeysValues:
        """Keys and values of a sequence without tokens."""
        ...

    def fork(self, source: KeysValues, n_tokens: int) -> KeysValues:
        """An independent copy of the first `n_tokens`, of at most `bytes_for(n_tokens)` bytes."""
        ...

    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        """Forget all tokens after the first `n_tokens`; memory may stay allocated."""
        ...

    def free(self, keys_values: KeysValues) -> None:
        """Give its memory back; it is not used again."""
        ...

    def bytes_for(self, n_tokens: int) -> int:
        """Bytes that keys and values of so many tokens take when read from empty; never less for more tokens.

        Pure arithmetic, called from any thread.
        """
        ...

    def step(self, slices: Sequence[Slice]) -> list[list[int]]:
        """Read all slices in one forward pass; for each slice one token per sampler.

        No two slices share keys and values.
        """
        ...

    def close(self) -> None:
        """Free everything; called once, after all sequences were freed."""
        ...
