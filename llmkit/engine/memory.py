"""Who holds how many bytes of keys and values, and where a newcomer's beginning comes from.

Live, promised and cached bytes together stay within the budget. A sequence is promised all it may grow to before it
starts, so none ever runs out half-way. What is not promised to anyone holds idle prefixes, until somebody needs it.
Order and fairness are unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.engine.prefix_cache import Match, Prefix, PrefixCache
from llmkit.engine.runner import TILE, ModelRunner
from llmkit.engine.sequence import EngineRequest
from llmkit.errors import CacheBudgetExceeded

_A_LITTLE = TILE  # tokens that adopting may cut off a prefix; a longer one is copied and stays whole


class KVMemory:
    """The keys and values of one runner, under a budget. Not thread-safe, but for `check`.

    Args:
        runner: allocates and frees.
        budget_bytes: what live, promised and cached bytes may be together.
        max_cached_bytes: what idle prefixes may be together, for runners on which they slow others down.

    Attributes:
        cache: all prefixes, live and idle.
        live: live prefixes, and the bytes that each may grow to.
        n_adopted: requests that went on in a prefix left by another.
        n_forked: requests that began with a copy.
        hit_tokens: tokens of prompts that did not have to be read again.
    """

    def __init__(
        self,
        runner: ModelRunner,
        budget_bytes: int,
        max_cached_bytes: int | None = None,
    ) -> None:
        self._runner = runner
        self._max_cached_bytes = budget_bytes if max_cached_bytes is None else max_cached_bytes
        self.budget_bytes = budget_bytes
        self.cache = PrefixCache()
        self.live: dict[Prefix, int] = {}
        self.cached_bytes = 0
        self.n_adopted = self.n_forked = self.hit_tokens = 0

    @property
    def reserved_bytes(self) -> int:
        """What running sequences have, and what they are promised."""
        return sum(self.live.values())

    @property
    def live_bytes(self) -> int:
        """What running sequences have allocated now."""
        return sum(prefix.keys_values.n_bytes for prefix in self.live)

    def bytes_each(self, request: EngineRequest) -> int:
        """What one choice of a request may grow to."""
        return self._runner.bytes_for(len(request.prompt_ids) + request.max_tokens)

    def check(self, request: EngineRequest) -> None:
        """Refuse a request that can never fit; safe in any thread.

        Raises:
            CacheBudgetExceeded: its choices may grow beyond the whole budget.
        """
        needed = self.bytes_each(request) * request.n_choices
        if needed > self.budget_bytes:
            n_tokens = len(request.prompt_ids) + request.max_tokens
            raise CacheBudgetExceeded(n_tokens, request.n_choices, needed, self.budget_bytes)

    def has_room_for(self, request: EngineRequest) -> bool:
        """Whether it can start now, at worst on the memory of everything idle."""
        return self.reserved_bytes + self.bytes_each(request) * request.n_choices <= self.budget_bytes

    def begin(self, request: EngineRequest) -> Prefix:
        """A live prefix of the prompt, as long as can be had; there must be room for the request.

        The last token of a prompt is always read, for its logits.
        """
        match = self.cache.longest(request.prompt_ids[:-1], request.reproducible)
        prefix = None if match is None else self._reused(match, request)
        if prefix is None:
            self._make_room(request)
            prefix = self._alive(Prefix(self._runner.new(), request.reproducible))
        self.live[prefix] = self.bytes_each(request) * request.n_choices
        self.hit_tokens += len(prefix)
        return prefix

    def split(self, source: Prefix, request: EngineRequest) -> Prefix:
        """A live copy of a live prefix for another choice, paid for with what the source was promised."""
        copy = self._copied(source, len(source), source.reproducible)
        self.live[copy] = self.bytes_each(request)
        self.live[source] -= self.bytes_each(request)
        return copy

    def read(self, prefix: Prefix, token_ids: Sequence[int]) -> None:
        """Note that a live prefix has grown."""
        prefix.token_ids.extend(token_ids)

    def retire(self, prefix: Prefix) -> None:
        """Keep a live prefix as an idle one, unless another has all of it; drop those that it has all of."""
        if not len(prefix) or self.cache.covering(prefix) is not None:
            self.discard(prefix)
            return
        for covered in self.cache.covered_by(prefix):
            self.discard(covered)
        del self.live[prefix]
        n_bytes = prefix.keys_values.n_bytes
        self.cache.retire(prefix, n_bytes)
        self.cached_bytes += n_bytes
        self._evict_to(self._max_cached_bytes)

    def discard(self, prefix: Prefix) -> None:
        """Free a prefix, live or idle."""
        self.live.pop(prefix, None)
        self.cached_bytes -= self.cache.idle.get(prefix, 0)
        self.cache.remove(prefix)
        self._runner.free(prefix.keys_values)

    def clear(self) -> None:
        """Free everything."""
        for prefix in [*self.live, *self.cache.idle]:
            self.discard(prefix)

    def _reused(self, match: Match, request: EngineRequest) -> Prefix | None:
        """The matched beginning, adopted or copied; None where there is no room for a copy beside its source.

        A source that would have to be evicted for its own copy is adopted, however much of it is cut off.
        """
        source = match.prefix
        room_beside = self.budget_bytes - self.reserved_bytes - self.bytes_each(request) * request.n_choices
        stays = source in self.live or self.cache.idle[source] <= room_beside
        fits = source not in self.live and self.cache.idle[source] <= self.bytes_each(request)
        is_close = len(source) - match.n_tokens <= _A_LITTLE and source.reproducible == request.reproducible
        if fits and (is_close or not stays):
            return self._adopted(match, request)
        if not stays:
            return None
        self.cache.touch(source)  # so it would be evicted last, and there is room beside it
        self._make_room(request)
        prefix = self._copied(source, match.n_tokens, request.reproducible)
        self.n_forked += 1
        return prefix

    def _adopted(self, match: Match, request: EngineRequest) -> Prefix:
        """The source itself, cut to what the newcomer uses and in the newcomer's mode."""
        prefix = match.prefix
        self.cached_bytes -= self.cache.revive(prefix)
        self.live[prefix] = 0
        self._make_room(request)
        try:
            if match.n_tokens < len(prefix):
                self._runner.truncate(prefix.keys_values, match.n_tokens)
        except Exception:
            self.discard(prefix)
            raise
        del prefix.token_ids[match.n_tokens :]
        prefix.reproducible = request.reproducible
        self.n_adopted += 1
        return prefix

    def _copied(self, source: Prefix, n_tokens: int, reproducible: bool) -> Prefix:
        keys_values = self._runner.fork(source.keys_values, n_tokens)
        return self._alive(Prefix(keys_values, reproducible, source.token_ids[:n_tokens]))

    def _alive(self, prefix: Prefix) -> Prefix:
        self.cache.add(prefix)
        self.live[prefix] = 0
        return prefix

    def _make_room(self, request: EngineRequest) -> None:
        """Evict idle prefixes until the request fits beside what is left."""
        self._evict_to(self.budget_bytes - self.reserved_bytes - self.bytes_each(request) * request.n_choices)

    def _evict_to(self, n_bytes: int) -> None:
        """Evict idle prefixes, the least recently used first, until they are no more than this."""
        for prefix in list(self.cache.idle):
            if self.cached_bytes <= n_bytes:
                return
            self.discard(prefix)
