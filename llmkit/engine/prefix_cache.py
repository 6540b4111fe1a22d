"""Which token prefixes have keys and values: those in use, and those left for others, in order of their tokens.

It finds and remembers; it neither allocates nor frees, and counts no bytes (`memory.py`). Idle prefixes stand in
lexicographic order, so what has most in common with a prompt stands beside the prompt's own place, however many there
are. Tokens themselves are compared, so nothing is reused that is not the same.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, count, islice

from llmkit.engine.runner import KeysValues

_CHUNK = 64  # tokens that are compared at once
_MOST_TIES = 8  # of prefixes with equally much in common, so many are asked which is the best to go on with


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    n_equal, n_both = 0, min(len(first), len(second))
    if n_both and first[0] != second[0]:  # most often, and soon told
        return 0
    while n_equal < n_both and first[n_equal : n_equal + _CHUNK] == second[n_equal : n_equal + _CHUNK]:
        n_equal += _CHUNK
    differing = compress(count(n_equal), map(operator.ne, first[n_equal:], second[n_equal:]))
    return next(differing, n_both)


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens that were read, with their keys and values. Compared by identity.

    Attributes:
        keys_values: where they are.
        reproducible: all of them were computed in reproducible numerics.
        token_ids: exactly the tokens in `keys_values`.
    """

    keys_values: KeysValues
    reproducible: bool
    token_ids: list[int] = field(default_factory=list[int])

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
    """All prefixes, live and idle. Not thread-safe.

    A live prefix belongs to a running sequence and grows; an idle one was left by a finished sequence and does not
    change. There are few live ones, which are looked at one by one, and may be very many idle ones.

    Attributes:
        live: the live prefixes.
        idle: the idle prefixes and their bytes, the least recently used first.
    """

    def __init__(self) -> None:
        self.live: dict[Prefix, None] = {}
        self.idle: dict[Prefix, int] = {}
        self._in_order = {False: _InOrder(), True: _InOrder()}  # the idle ones, by mode

    def add(self, prefix: Prefix) -> None:
        """Take in a live prefix."""
        self.live[prefix] = None

    def remove(self, prefix: Prefix) -> None:
        """Forget a prefix, live or idle."""
        if self.idle.pop(prefix, None) is not None:
            self._in_order[prefix.reproducible].remove(prefix)
        self.live.pop(prefix, None)

    def retire(self, prefix: Prefix, n_bytes: int) -> None:
        """Note that a live prefix is idle from now on, and what it holds."""
        del self.live[prefix]
        self.idle[prefix] = n_bytes
        self._in_order[prefix.reproducible].add(prefix)

    def revive(self, prefix: Prefix) -> int:
        """Note that an idle prefix is live again; the bytes that it was noted with."""
        self._in_order[prefix.reproducible].remove(prefix)
        self.live[prefix] = None
        return self.idle.pop(prefix)

    def touch(self, prefix: Prefix) -> None:
        """Note that an idle prefix was used just now."""
        if prefix in self.idle:
            self.idle[prefix] = self.idle.pop(prefix)

    def longest(self, token_ids: Sequence[int], reproducible: bool) -> Match | None:
        """The longest beginning of these tokens that a request in this mode can reuse, at any token boundary.

        Of several, an idle one comes first, then one in the same mode, then the shortest.
        """
        tokens = list(token_ids)
        found = [match for mode in self._serving(reproducible) for match in self._in_order[mode].nearest(tokens)]
        if found:
            best = max(found, key=lambda m: (m.n_tokens, m.prefix.reproducible == reproducible, -len(m.prefix)))
        else:
            best = None
        return self._longer_live(tokens, reproducible, 0 if best is None else best.n_tokens) or best

    def covering(self, prefix: Prefix) -> Prefix | None:
        """Another prefix that begins with all of this one and serves whatever this one serves."""
        tokens, n = prefix.token_ids, len(prefix)
        idle = (found for mode in self._serving(prefix.reproducible) for found in self._in_order[mode].going_on(tokens))
        other = next((one for one in idle if one is not prefix), None)
        if other is not None:
            return other
        for live in self.live:
            if live is not prefix and live.serves(prefix.reproducible) and live.token_ids[:n] == tokens:
                return live
        return None

    def covered_by(self, prefix: Prefix) -> list[Prefix]:
        """Idle prefixes with which this one begins, where it serves whatever they serve."""
        modes = (False, True) if prefix.reproducible else (False,)
        return [
            found
            for mode in modes
            for found in self._in_order[mode].beginnings(prefix.token_ids)
            if found is not prefix
        ]

    def _longer_live(self, tokens: list[int], reproducible: bool, n_tokens: int) -> Match | None:
        """A live prefix that has more in common with these tokens than so many."""
        longest = None
        for live in self.live:
            own = live.token_ids
            # The one token beyond what is known already tells most of them apart.
            if n_tokens < min(len(own), len(tokens)) and own[n_tokens] == tokens[n_tokens]:
                n = n_common(own, tokens)
                if n > n_tokens and live.serves(reproducible):
                    longest, n_tokens = Match(live, n), n
        return longest

    @staticmethod
    def _serving(reproducible: bool) -> tuple[bool, ...]:
        """The modes of prefixes that serve a request in this mode."""
        return (True,) if reproducible else (False, True)


class _InOrder:
    """Prefixes in lexicographic order of their tokens, which stay as they are."""

    def __init__(self) -> None:
        self._prefixes: list[Prefix] = []

    def add(self, prefix: Prefix) -> None:
        self._prefixes.insert(self._from(prefix.token_ids), prefix)

    def remove(self, prefix: Prefix) -> None:
        at = self._from(prefix.token_ids)
        while self._prefixes[at] is not prefix:  # others with the same tokens
            at += 1
        del self._prefixes[at]

    def nearest(self, tokens: list[int]) -> list[Match]:
        """Some of those that have most in common with these tokens, the shortest of them included; none for nothing."""
        at = self._from(tokens)
        n = max((n_common(one.token_ids, tokens) for one in self._prefixes[max(0, at - 1) : at + 1]), default=0)
        return [Match(one, n) for one in islice(self.going_on(tokens[:n]), _MOST_TIES)] if n else []

    def going_on(self, tokens: list[int]) -> Iterator[Prefix]:
        """Those that begin with all these tokens, one that ends there first."""
        at, n = self._from(tokens), len(tokens)
        while at < len(self._prefixes) and self._prefixes[at].token_ids[:n] == tokens:
            yield self._prefixes[at]
            at += 1

    def beginnings(self, tokens: list[int]) -> Iterator[Prefix]:
        """Those with which these tokens begin, the longest first."""
        end = bisect_right(self._prefixes, tokens, key=_tokens)
        while end:
            one = self._prefixes[end - 1]
            n = n_common(one.token_ids, tokens)
            if n == len(one):
                yield one
                end -= 1
            else:  # what parts from the tokens after n of them has no more of their beginnings before it
                end = bisect_right(self._prefixes, tokens[:n], hi=end, key=_tokens)

    def _from(self, tokens: list[int]) -> int:
        """The place of the first that is not before these tokens."""
        return bisect_left(self._prefixes, tokens, key=_tokens)


def _tokens(prefix: Prefix) -> list[int]:
    return prefix.token_ids
