"""One flat step as attention sees it: whose rows stand where, at which positions, and what has been done so far.

The step at hand is thread-local, so two models in two threads never meet. Requests, sampling and arithmetic are unknown
here.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkit_transformers.keys_values import SequenceBuffers
from llmkit_transformers.shared_prefix import SharedPrefix
from llmkit_transformers.stacks import Stack


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one sequence in a step.

    Attributes:
        buffers: the sequence's keys and values.
        first_row: where its rows begin in the step.
        n_rows: how many there are.
        start: position of the first of them in the sequence, shared tokens not counted.
    """

    buffers: SequenceBuffers
    first_row: int
    n_rows: int
    start: int

    @property
    def end(self) -> int:
        """Tokens that the sequence has of its own after the step."""
        return self.start + self.n_rows


@dataclass(frozen=True, slots=True)
class StackedRows:
    """The rows of a stack in a step, one of each member, in the order of its slots.

    Attributes:
        stack: the members' keys and values.
        first_row: where the rows begin in the step.
        positions: `(N,)`, of each row in its sequence, shared tokens not counted.
        slots: `(N,)`, counting from 0.
        position: of all rows, where they have the same.
    """

    stack: Stack
    first_row: int
    positions: Tensor
    slots: Tensor
    position: int | None

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's new keys and values, `(1, H_kv, T, D)` of all the step's rows, into the slots."""
        rows = slice(self.first_row, self.first_row + len(self.stack.members))
        for stacked, new in zip(self.stack.of_layer(layer), (keys, values), strict=True):
            new_rows = new[0, :, rows].transpose(0, 1)
            if self.position is None:
                stacked[self.slots, :, self.positions] = new_rows
            else:
                stacked[:, :, self.position] = new_rows


def stacked_rows(stack: Stack, first_row: int, positions: list[int], device: torch.device) -> StackedRows:
    """The rows of a stack at these positions."""
    same = positions[0] if min(positions) == max(positions) else None
    at, slots = torch.tensor(positions, device=device), torch.arange(len(positions), device=device)
    return StackedRows(stack, first_row, at, slots, same)


@dataclass(frozen=True, slots=True)
class SharedRows:
    """The rows in a step of all sequences that begin with one shared prefix.

    Attributes:
        prefix: its keys and values.
        rows: `(R,)`, which rows of the step; a slice where they stand side by side.
    """

    prefix: SharedPrefix
    rows: Tensor | slice


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What a call of attention is like, whatever its rows are.

    Attributes:
        n_heads: of the queries.
        n_kv_heads: of the keys and values.
        size: columns of a query and of a key.
        value_size: columns of a value.
        scaling: factor of the scores.
        window: positions that a token sees, itself included; None for all.
        softcap: bound of the scores.
    """

    n_heads: int
    n_kv_heads: int
    size: int
    value_size: int
    scaling: float
    window: int | None
    softcap: float | None

    @property
    def is_plain(self) -> bool:
        """Whether a row's attention may be taken apart by keys."""
        return self.window is None and self.softcap is None and self.size == self.value_size


@dataclass(slots=True)
class FlatStep:
    """One step while it runs.

    Attributes:
        pieces: rows of sequences by themselves.
        stacks: rows of sequences that stand side by side.
        shared: rows of both that begin with something shared.
        reproducible: keep to the rules that make rows independent; rows that share something are not among these.
        writes: new keys and values are yet to be written.
        attends: somebody asks for more than them.
        kinds: of the attention calls so far, one a layer.
        log_sums: `(T, H)`, of each row's exponentials over its own keys, in the layer at hand; set where rows share.
    """

    pieces: Sequence[Piece]
    stacks: Sequence[StackedRows]
    shared: Sequence[SharedRows]
    reproducible: bool
    writes: bool = True
    attends: bool = True
    kinds: list[AttentionKind] = field(default_factory=list[AttentionKind])
    masks: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])
    log_sums: Tensor = field(init=False)

    @property
    def layer(self) -> int:
        """The layer at hand, counting from 0."""
        return len(self.kinds) - 1


def shared_rows(stacks: Sequence[StackedRows], pieces: Sequence[Piece]) -> list[SharedRows]:
    """The rows of a step by what they begin with, where that is shared."""
    rows_of: defaultdict[SharedPrefix, list[int]] = defaultdict(list)
    for stacked in stacks:
        for row, member in enumerate(stacked.stack.members, stacked.first_row):
            if member.shared is not None:
                rows_of[member.shared].append(row)
    for piece in pieces:
        if piece.buffers.shared is not None:
            rows_of[piece.buffers.shared].extend(range(piece.first_row, piece.first_row + piece.n_rows))
    return [SharedRows(prefix, _where(rows)) for prefix, rows in rows_of.items()]


def _where(rows: list[int]) -> Tensor | slice:
    """An index of these ascending rows; a slice, which copies nothing, where they stand side by side."""
    is_dense = rows[-1] - rows[0] == len(rows) - 1
    return slice(rows[0], rows[-1] + 1) if is_dense else torch.tensor(rows)


class _Current(threading.local):
    step: FlatStep | None = None


_current = _Current()


def current() -> FlatStep | None:
    """The step that attention works for in this thread."""
    return _current.step


@contextmanager
def running(step: FlatStep) -> Generator[FlatStep]:
    """Make this the step that attention works for in this thread."""
    before, _current.step = _current.step, step
    try:
        yield step
    finally:
        _current.step = before
