"""Who waits, who runs, and how many tokens each may read in the next step.

Decoding sequences go first, one token each, so that text flows; a share of every step is kept for prompts, so that
nobody starves; prompts are read in the order of their arrival. Bytes, models and text are unknown here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from llmkit.engine.prefix_cache import PrefixCache, n_common
from llmkit.engine.runner import TILE
from llmkit.engine.sequence import EngineRequest, Share, TokenSequence
from llmkit.errors import InvalidRequest, ParameterError

_PREFILL_PART = 4  # one part in four of a step's tokens is for prompts, where one waits to be read


@dataclass(eq=False, slots=True)
class Waiting:
    """A request in the queue.

    Attributes:
        request: the request.
        arrival: its number in the order of arrival.
        ahead: a running sequence whose prompt begins as this one does, and which is still reading that beginning.
        n_ahead: the tokens in common.
    """

    request: EngineRequest
    arrival: int
    ahead: TokenSequence | None = None
    n_ahead: int = 0


class Scheduler:
    """The queue, the running sequences, and the plan of a step. Not thread-safe, but for `check`.

    Args:
        tokens_per_step: tokens that a step may read, at least 2: one to decode, one of a prompt.
        max_running: sequences that may run at once.

    Attributes:
        waiting: requests in the order of arrival.
        running: sequences in the order in which they started.

    Raises:
        ParameterError: a bound is too small.
    """

    def __init__(self, tokens_per_step: int, max_running: int) -> None:
        if tokens_per_step < 2:
            raise ParameterError(f"tokens_per_step must be at least 2, got {tokens_per_step}")
        if max_running < 1:
            raise ParameterError(f"max_running must be at least 1, got {max_running}")
        self.tokens_per_step, self.max_running = tokens_per_step, max_running
        self.waiting: dict[EngineRequest, Waiting] = {}
        self.running: dict[TokenSequence, None] = {}
        self.n_steps = 0
        self._n_arrived, self._turns = 0, count(1)

    def check(self, request: EngineRequest) -> None:
        """Refuse a request that can never run; safe in any thread.

        Raises:
            InvalidRequest: it has more choices than sequences may run at once.
        """
        if request.n_choices > self.max_running:
            raise InvalidRequest(f"a request may have {self.max_running} choices at most, got {request.n_choices}")

    def add(self, request: EngineRequest) -> None:
        """Put a request at the end of the queue."""
        self._n_arrived += 1
        self.waiting[request] = Waiting(request, self._n_arrived)

    def has_room_for(self, request: EngineRequest) -> bool:
        """Whether all its choices may run now; a prompt that is still shared counts as often as it will be split."""
        n_running = sum(len(sequence.choices) for sequence in self.running)
        return n_running + request.n_choices <= self.max_running

    def sequences_of(self, request: EngineRequest) -> list[TokenSequence]:
        """The running sequences of a request."""
        return [sequence for sequence in self.running if sequence.request is request]

    def awaits_prefix(self, waiting: Waiting, cache: PrefixCache) -> bool:
        """Whether a sequence ahead is about to read more of this prompt's beginning than there is already.

        Only sequences that arrived earlier count, so that a request waits for finitely many.
        """
        if self._still_reading(waiting):
            return True
        prompt = waiting.request.prompt_ids[:-1]
        match = cache.longest(prompt, waiting.request.reproducible)
        n_known = 0 if match is None else match.n_tokens
        waiting.ahead, waiting.n_ahead = None, max(n_known, TILE - 1)
        for sequence in self._readers_ahead(waiting):
            other, at = sequence.request.prompt_ids, waiting.n_ahead
            # The one token beyond what is there already tells most of them apart.
            if at < min(len(prompt), len(other)) and prompt[at] == other[at]:
                n_shared = n_common(prompt, other)
                if n_shared > at:
                    waiting.ahead, waiting.n_ahead = sequence, n_shared
        return waiting.ahead is not None

    def plan(self) -> list[Share]:
        """The parts of the next step, at most `tokens_per_step` tokens together; empty only if nothing runs."""
        self.n_steps += 1
        reading = sorted((s for s in self.running if not s.is_decoding), key=lambda s: s.arrival)
        n_for_prompts = min(sum(len(s.unread) for s in reading), max(1, self.tokens_per_step // _PREFILL_PART))
        shares = self._decoding_shares(self.tokens_per_step - n_for_prompts)
        n_left = self.tokens_per_step - len(shares)
        for sequence in reading:
            n_tokens = min(len(sequence.unread), n_left)
            if n_tokens:
                shares.append(Share(sequence, n_tokens))
            n_left -= n_tokens
        return shares

    def _decoding_shares(self, n_slots: int) -> list[Share]:
        """One token each; where there are more sequences than slots, they take turns."""
        decoding = sorted((s for s in self.running if s.is_decoding), key=lambda s: s.last_turn)[:n_slots]
        for sequence in decoding:
            sequence.last_turn = next(self._turns)
        return [Share(sequence, 1) for sequence in decoding]

    def _still_reading(self, waiting: Waiting) -> bool:
        return waiting.ahead in self.running and len(waiting.ahead.prefix) < waiting.n_ahead

    def _readers_ahead(self, waiting: Waiting) -> Iterator[TokenSequence]:
        for sequence in self.running:
            if sequence.is_decoding or sequence.arrival > waiting.arrival:
                continue
            if sequence.request.reproducible or not waiting.request.reproducible:
                yield sequence
