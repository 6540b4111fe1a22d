"""Which token prefixes have keys and values: a hash chain over blocks of tokens, and the order of last use.

It finds and remembers; it neither allocates nor frees, and counts no bytes (`memory.py`). A hash only narrows the
search: tokens are compared before anything is reused, so a collision costs time and never a wrong answer.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, count
from typing import TypeAlias

from llmkit.engine.runner import TILE, KeysValues

BlockHash: TypeAlias = Callable[[int, tuple[int, ...]], int]
_ROOT = 0  # the hash of no blocks at all; every prefix is indexed under it


def hash_block(previous: int, block: tuple[int, ...]) -> int:
    """The hash of a chain of blocks: that of the blocks before, and the tokens of this one."""
    return hash((previous, block))


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    n_equal, n_both = 0, min(len(first), len(second))
    if n_both and first[0] != second[0]:  # most often, and soon told
        return 0
    while n_equal < n_both and first[n_equal : n_equal + TILE] == second[n_equal : n_equal + TILE]:
        n_equal += TILE
    differing = compress(count(n_equal), map(operator.ne, first[n_equal:], second[n_equal:]))
    return next(differing, n_both)


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens that were read, with their keys and values. Compared by identity.

    Attributes:
        keys_values: where they are.
        reproducible: all of them were computed in reproducible numerics.
        token_ids: exactly the tokens in `keys_values`.
        hashes: the hash of the chain after each whole block of them, from the empty chain on.
    """

    keys_values: KeysValues
    reproducible: bool
    token_ids: list[int] = field(default_factory=list[int])
    hashes: list[int] = field(default_factory=lambda: [_ROOT])

    def __len__(self) -> int:
        return len(self.token_ids)

    def serves(self, reproducible: bool) -> bool:
        """Whether a request in that mode may use it."""
        return self.reproducible or not reproducible


@dataclass(frozen=True, slots=True)
class Match:
    """The longest beginning of a prompt that is there already: the first `n_tokens` of `prefix`."""

    prefix: Prefix
    n_tokens: int


class PrefixCache:
    """All prefixes, live and idle, by their blocks. Not thread-safe.

    A live prefix belongs to a running sequence and grows; an idle one was left by a finished sequence.

    Args:
        block_hash: hashes a block onto the chain before it.

    Attributes:
        idle: the idle prefixes and their bytes, the least recently used first.
    """

    def __init__(self, block_hash: BlockHash = hash_block) -> None:
        self._block_hash = block_hash
        self._by_hash: defaultdict[int, dict[Prefix, None]] = defaultdict(dict)
        self.idle: dict[Prefix, int] = {}

    def add(self, prefix: Prefix) -> None:
        """Take in a live prefix."""
        for chain in prefix.hashes:
            self._by_hash[chain][prefix] = None

    def remove(self, prefix: Prefix) -> None:
        """Forget a prefix, live or idle."""
        self.idle.pop(prefix, None)
        self._unindex(prefix, 0)

    def extend(self, prefix: Prefix, token_ids: Sequence[int]) -> None:
        """Note that a live prefix has read more tokens; they can be found from now on."""
        prefix.token_ids.extend(token_ids)
        for chain in self._chain(prefix.token_ids, prefix.hashes):
            self._by_hash[chain][prefix] = None

    def truncate(self, prefix: Prefix, n_tokens: int) -> None:
        """Note that a prefix has forgotten all but its first tokens."""
        n_kept = n_tokens // TILE + 1
        self._unindex(prefix, n_kept)
        del prefix.hashes[n_kept:], prefix.token_ids[n_tokens:]

    def touch(self, prefix: Prefix) -> None:
        """Note that an idle prefix was used just now."""
        if prefix in self.idle:
            self.idle[prefix] = self.idle.pop(prefix)

    def longest(self, token_ids: Sequence[int], reproducible: bool) -> Match | None:
        """The longest beginning of these tokens that a request in this mode can reuse, at any token boundary."""
        tokens, hashes = list(token_ids), [_ROOT]
        for _ in self._chain(tokens, hashes):
            pass
        for n_blocks in reversed(range(len(hashes))):
            # All that share n_blocks are here, and none shares more: one of them is the longest.
            match = self._best(hashes[n_blocks], tokens, n_blocks * TILE, reproducible)
            if match is not None:
                return match if match.n_tokens else None
        return None

    def covering(self, prefix: Prefix) -> Prefix | None:
        """Another prefix that begins with all of this one and serves whatever this one serves."""
        n = len(prefix)
        for other in self._by_hash[prefix.hashes[-1]]:
            if other is prefix or len(other) < n or not other.serves(prefix.reproducible):
                continue
            if other.token_ids[:n] == prefix.token_ids:
                return other
        return None

    def covered_by(self, prefix: Prefix) -> list[Prefix]:
        """Idle prefixes with which this one begins, where it serves whatever they serve."""
        return [
            other
            for chain in dict.fromkeys(prefix.hashes)
            for other in self._by_hash[chain]
            if other.hashes[-1] == chain and other is not prefix and other in self.idle
            if prefix.serves(other.reproducible) and prefix.token_ids[: len(other)] == other.token_ids
        ]

    def _best(self, chain: int, tokens: list[int], start: int, reproducible: bool) -> Match | None:
        """The longest of those indexed under one chain; at equal length one that can be adopted whole."""

        def reach(prefix: Prefix) -> int:
            return n_common(prefix.token_ids[start : start + TILE], tokens[start : start + TILE])

        candidates = [(reach(p), p) for p in self._by_hash.get(chain, ()) if p.serves(reproducible)]
        candidates.sort(key=lambda c: (c[0], c[1] in self.idle, c[1].reproducible == reproducible, -len(c[1])))
        for n_more, prefix in reversed(candidates):
            # Equal hashes promise nothing: the blocks themselves are compared before they are reused.
            if prefix.token_ids[:start] == tokens[:start]:
                return Match(prefix, start + n_more)
        return None

    def _chain(self, token_ids: list[int], hashes: list[int]) -> Iterator[int]:
        """Bring the hashes up to the whole blocks of the tokens, and give out the new ones."""
        for start in range((len(hashes) - 1) * TILE, len(token_ids) - TILE + 1, TILE):
            hashes.append(self._block_hash(hashes[-1], tuple(token_ids[start : start + TILE])))
            yield hashes[-1]

    def _unindex(self, prefix: Prefix, first: int) -> None:
        """Forget it under its chains from the first on, unless an earlier chain of its has the same hash."""
        for chain in set(prefix.hashes[first:]) - set(prefix.hashes[:first]):
            prefixes = self._by_hash[chain]
            prefixes.pop(prefix, None)
            if not prefixes:
                del self._by_hash[chain]
