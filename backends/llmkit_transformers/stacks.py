"""Sequences of equally many tiles side by side in one tensor, so that one call can attend for all of them.

Stacks hold the sequences that read one token each in the step at hand; all others have tensors of their own. What a
stack has beyond its members is in nobody's bytes: room for a quarter more when it grows, and for half as many again
and one before it shrinks. Neither attention nor requests are known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from llmkit_transformers.keys_values import SequenceBuffers, whole_tiles


class Stack:
    """The keys and values of several sequences, each in a slot, without gaps between them.

    A member's own tensors are views of its slot. What is in the slots beyond the members means nothing.

    Args:
        capacity: positions that each member has, shared ones not counted.
        is_shared: all members begin with something shared, of whatever length; otherwise none does.

    Attributes:
        members: the sequences, in the order of their slots.
        tensors: the keys and the values of each layer by turns, `(S, H_kv, C, D)`, with slots for all members at least.
    """

    def __init__(self, capacity: int, is_shared: bool = False) -> None:
        self.capacity, self.is_shared = capacity, is_shared
        self.members: list[SequenceBuffers] = []
        self.tensors: list[Tensor] = []
        self._are_seated = True

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The members' keys and values in a layer, `(N, H_kv, C, D)`."""
        n = len(self.members)
        return self.tensors[2 * layer][:n], self.tensors[2 * layer + 1][:n]

    def join(self, newcomers: Sequence[SequenceBuffers]) -> None:
        """Take sequences in, with as many of their positions as a slot has."""
        if newcomers:
            self._resize(len(self.members) + len(newcomers), newcomers[0])
        for n_positions, alike in groupby(sorted(newcomers, key=self._n_positions), self._n_positions):
            self._take_in(list(alike), n_positions)

    def _n_positions(self, buffers: SequenceBuffers) -> int:
        return min(self.capacity, buffers.tensors[0].shape[1])

    def _take_in(self, newcomers: Sequence[SequenceBuffers], n_positions: int) -> None:
        """Copy so many positions of each into the next slots, in one call a tensor."""
        first = len(self.members)
        for at, stacked in enumerate(self.tensors):
            slots = stacked[first : first + len(newcomers)]
            torch.stack([own.tensors[at][:, :n_positions] for own in newcomers], out=slots[:, :, :n_positions])
            if n_positions < self.capacity:
                slots[:, :, n_positions:] = 0  # 0 x NaN would leak
        self.members += newcomers
        for slot, buffers in enumerate(newcomers, first):
            self._seat(buffers, slot)

    def keep(self, staying: Sequence[SequenceBuffers]) -> None:
        """Let all others go, and close the gaps that they leave."""
        kept = set(map(id, staying))
        for slot in reversed(range(len(self.members))):
            leaving = self.members[slot]
            if id(leaving) in kept:
                continue
            if leaving.stack is self:  # neither freed nor in another stack by now
                leaving.stand_alone()
            last = self.members.pop()
            if last is not leaving:
                self._move(last, slot)
        if self.members:
            self._resize(len(self.members), self.members[0])

    def _move(self, buffers: SequenceBuffers, slot: int) -> None:
        for stacked, own in zip(self.tensors, buffers.tensors, strict=True):
            stacked[slot] = own
        self.members[slot] = buffers
        self._seat(buffers, slot)

    def _seat(self, buffers: SequenceBuffers, slot: int) -> None:
        """Make a member's tensors the views of its slot."""
        buffers.tensors, buffers.stack = [stacked[slot] for stacked in self.tensors], self
        buffers.is_borrowed = False

    def _resize(self, n_members: int, like: SequenceBuffers) -> None:
        """Have slots for so many: a quarter more where there are too few, or over half as many again too many."""
        for at, own in enumerate(like.tensors):
            n_slots = self.tensors[at].shape[0] if at < len(self.tensors) else 0
            if not n_members <= n_slots <= n_members + n_members // 2 + 1:
                self._replace(at, own.new_empty(n_members + n_members // 4, own.shape[0], self.capacity, own.shape[2]))
        if self._are_seated:
            return
        for slot, buffers in enumerate(self.members):
            if buffers.stack is self:
                self._seat(buffers, slot)
        self._are_seated = True

    def _replace(self, at: int, made: Tensor) -> None:
        """Put a tensor in the place of one with another number of slots, with its contents."""
        self._are_seated = False
        if at == len(self.tensors):
            self.tensors.append(made)
            return
        n = min(made.shape[0], len(self.members))
        made[:n] = self.tensors[at][:n]
        self.tensors[at] = made


class Stacks:
    """All stacks of one runner, by their capacity and whether their members share. Not thread-safe."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[int, bool], Stack] = {}

    def arrange(self, ends: Mapping[SequenceBuffers, int], forks: Sequence[SequenceBuffers] = ()) -> list[Stack]:
        """Stacks of exactly the sequences that are about to read one token each, where two or more fit together.

        One that is alone in its length stays in its stack if it is in one, and otherwise by itself. Sequences that are
        not named leave their stacks.

        Args:
            ends: how many tokens each will have read.
            forks: sequences made since the last step, whose tensors may be borrowed; none is afterwards.
        """
        groups: defaultdict[tuple[int, bool], list[SequenceBuffers]] = defaultdict(list)
        for buffers, end in ends.items():
            groups[whole_tiles(end - buffers.n_shared), buffers.shared is not None].append(buffers)
        for kind, group in groups.items():
            stack = self._by_kind.get(kind)
            if stack is None and len(group) > 1:
                stack = self._by_kind[kind] = Stack(*kind)
            if stack is not None and (len(group) > 1 or group[0].stack is stack):
                stack.join([buffers for buffers in group if buffers.stack is not stack])
        for fork in forks:  # those that went into no stack, before slots are moved
            fork.own()
        for kind, stack in list(self._by_kind.items()):
            stack.keep(groups.get(kind, ()))
            if not stack.members:
                del self._by_kind[kind]
        return list(self._by_kind.values())

    def free(self, buffers: SequenceBuffers) -> None:
        """Give a sequence's memory back, and its stack's with that of the last member."""
        stack = buffers.stack
        buffers.clear()
        if isinstance(stack, Stack) and not any(member.stack is stack for member in stack.members):
            self._by_kind.pop((stack.capacity, stack.is_shared), None)
