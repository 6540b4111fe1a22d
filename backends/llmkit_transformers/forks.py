"""Sequences that begin as another does: made at once, and settled in the next step, which knows who reads on.

Where several begin alike, they get one copy of the beginning together; one that is alone gets its own. Attention and
requests are unknown here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from llmkit_transformers.keys_values import TILE, SequenceBuffers
from llmkit_transformers.shared_prefix import SharedPrefix

_LEAST_TILES = 2
"""Tiles from which a shared beginning pays: attention takes one more call for it in each layer."""


@dataclass(frozen=True, slots=True)
class _Fork:
    lender: SequenceBuffers
    made: SequenceBuffers
    n_tiles: int


class Forks:
    """The forks since the last step. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: list[_Fork] = []
        self._lender: dict[SequenceBuffers, SequenceBuffers] = {}
        self._cut: set[SequenceBuffers] = set()

    def add(self, source: SequenceBuffers, n_tokens: int) -> SequenceBuffers:
        """A sequence with the first tokens of another; nothing is copied yet."""
        made = source.fork(n_tokens)
        # Where one fork is made of another, both borrow from the same.
        self._lender[made] = lender = self._lender.get(source, source)
        self._waiting.append(_Fork(lender, made, n_tokens // TILE))
        return made

    def source_was_cut(self, buffers: SequenceBuffers) -> None:
        """Note that a sequence may not have any more what others took from it."""
        self._cut.add(buffers)

    def settle(self, alone: Collection[SequenceBuffers], *, may_share: bool) -> list[SequenceBuffers]:
        """All forks. Those that begin alike share that from now on; their other tokens are still borrowed.

        Can be called again where it failed.

        Args:
            alone: sequences that are to have all their tokens themselves.
            may_share: attention can take a beginning and the rest apart.
        """
        groups: defaultdict[tuple[SequenceBuffers, int], list[_Fork]] = defaultdict(list)
        for fork in self._waiting:
            if may_share and fork.n_tiles >= _LEAST_TILES and fork.made.shared is None and fork.made not in alone:
                groups[fork.lender, fork.n_tiles].append(fork)
        for (lender, n_tiles), group in groups.items():
            made = [fork.made for fork in group if fork.made.tensors]  # not freed meanwhile
            if len(made) > 1:
                _share(lender, made, n_tiles * TILE, is_kept=lender not in alone and lender not in self._cut)
        return [fork.made for fork in self._waiting]

    def clear(self) -> None:
        """Forget them: nobody borrows any more."""
        self._waiting.clear()
        self._lender.clear()
        self._cut.clear()


def _share(lender: SequenceBuffers, forks: list[SequenceBuffers], n_tokens: int, *, is_kept: bool) -> None:
    prefix = SharedPrefix([tensor[:, :n_tokens].clone() for tensor in forks[0].tensors])
    for fork in forks:
        fork.share(prefix)
    if is_kept and lender.tensors and lender.shared is None:
        lender.share(prefix)  # others will begin with it again
