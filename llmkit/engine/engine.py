"""The engine: requests in, steps, tokens out.

A step starts those who can start, lets the runner read what the scheduler planned, and hands each new token to its
text. It knows no tensors (`runner.py`) and no threads (`worker.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.engine.memory import KVMemory
from llmkit.engine.runner import ModelRunner
from llmkit.engine.scheduler import Scheduler, Waiting
from llmkit.engine.sequence import Delta, EngineRequest, Event, Failure, Share, TokenSequence
from llmkit.errors import GenerationError


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine holds and has done, at one moment.

    Attributes:
        live_bytes: keys and values of running sequences.
        promised_bytes: what running sequences may still grow by.
        cached_bytes: keys and values kept for requests to come.
        budget_bytes: what the three may be together.
        cached_prefixes: how many prefixes are kept.
        hit_requests: requests that did not have to read the whole of their prompt.
        hit_tokens: tokens that they did not have to read.
        adopted_requests: those of them that went on in place; the others began with a copy.
        started_requests: requests that have started, hits included.
        waiting_requests: the length of the queue.
        running_sequences: sequences that run, one per choice once a prompt is read.
        steps: steps so far.
    """

    live_bytes: int
    promised_bytes: int
    cached_bytes: int
    budget_bytes: int
    cached_prefixes: int
    hit_requests: int
    hit_tokens: int
    adopted_requests: int
    started_requests: int
    waiting_requests: int
    running_sequences: int
    steps: int


class Engine:
    """Continuous batching over one runner. Not thread-safe, but for `check`; `EngineWorker` gives it a thread.

    Args:
        runner: runs the model; the engine closes it.
        kv_budget_bytes: what keys and values may take, live, promised and cached together.
        tokens_per_step: tokens that a step may read, at least 2.
        max_running: sequences that may run at once.
        max_cached_bytes: what the part of them that is kept for requests to come may take; all of it by default.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        kv_budget_bytes: int,
        tokens_per_step: int = 512,
        max_running: int = 64,
        max_cached_bytes: int | None = None,
    ) -> None:
        self._runner = runner
        self._memory = KVMemory(runner, kv_budget_bytes, max_cached_bytes)
        self._scheduler = Scheduler(tokens_per_step, max_running)
        self._n_started = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._scheduler.waiting or self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Requests that have not started."""
        return len(self._scheduler.waiting)

    def awaits_start(self, request: EngineRequest) -> bool:
        """Whether a request is one of those."""
        return request in self._scheduler.waiting

    def check(self, request: EngineRequest) -> None:
        """Refuse a request that can never run; safe in any thread.

        Raises:
            CacheBudgetExceeded: its keys and values may outgrow the whole budget.
            InvalidRequest: it has more choices than sequences may run at once.
        """
        self._scheduler.check(request)
        self._memory.check(request)

    def add(self, request: EngineRequest) -> None:
        """Put a request in the queue.

        Raises:
            CacheBudgetExceeded: its keys and values may outgrow the whole budget.
            InvalidRequest: it has more choices than sequences may run at once.
        """
        self.check(request)
        self._scheduler.add(request)

    def cancel(self, request: EngineRequest) -> None:
        """End a request without a word; what it has read stays in the cache. Nothing happens if it is not here."""
        self._scheduler.waiting.pop(request, None)
        for sequence in self._scheduler.sequences_of(request):
            self._retire(sequence)

    def step(self) -> list[Event]:
        """One forward pass for all who run; the new tokens, and the requests that failed."""
        failures = self._admit()
        shares = self._scheduler.plan()
        try:
            tokens = self._runner.step([share.to_slice() for share in shares]) if shares else []
        except Exception as error:  # noqa: BLE001  whatever a model raises ends the requests of this step alone
            return [*failures, *self._fail({share.sequence.request: None for share in shares}, error)]
        events = [self._advance(share, chosen) for share, chosen in zip(shares, tokens, strict=True)]
        return [*failures, *(event for some in events for event in some)]

    def forget(self) -> None:
        """Drop every cached prefix, because the model behind the runner is about to change.

        Raises:
            GenerationError: requests are running; their keys and values would be the old model's.
        """
        if self._scheduler.running:
            raise GenerationError(f"{len(self._scheduler.running)} sequences are running; let them end first")
        self._memory.clear()

    def close(self) -> None:
        """Free all keys and values, then the runner; requests end without a word. Called once."""
        self._scheduler.waiting.clear()
        self._scheduler.running.clear()
        self._memory.clear()
        self._runner.close()

    def figures(self) -> EngineFigures:
        """What it holds and has done, now."""
        memory, live_bytes = self._memory, self._memory.live_bytes
        return EngineFigures(
            live_bytes=live_bytes,
            promised_bytes=memory.reserved_bytes - live_bytes,
            cached_bytes=memory.cached_bytes,
            budget_bytes=memory.budget_bytes,
            cached_prefixes=len(memory.cache.idle),
            hit_requests=memory.n_adopted + memory.n_forked,
            hit_tokens=memory.hit_tokens,
            adopted_requests=memory.n_adopted,
            started_requests=self._n_started,
            waiting_requests=self.n_waiting,
            running_sequences=len(self._scheduler.running),
            steps=self._scheduler.n_steps,
        )

    def _admit(self) -> list[Event]:
        """Start waiting requests in their order, as long as there is room; one that awaits a prefix lets others pass.

        Nobody passes one that awaits room, for it might wait forever.
        """
        failures: list[Event] = []
        for waiting in list(self._scheduler.waiting.values()):
            if self._scheduler.awaits_prefix(waiting, self._memory.cache):
                continue
            if not (self._scheduler.has_room_for(waiting.request) and self._memory.has_room_for(waiting.request)):
                break
            failures += self._start(waiting)
        return failures

    def _start(self, waiting: Waiting) -> list[Event]:
        """Turn a request into a running sequence, with as much of its prompt as is known already."""
        request = waiting.request
        del self._scheduler.waiting[request]
        self._n_started += 1
        try:
            prefix = self._memory.begin(request)
        except Exception as error:  # noqa: BLE001  a copy that fails ends the request it was made for
            return self._fail({request: None}, error)
        unread = list(request.prompt_ids[len(prefix) :])
        sequence = TokenSequence(request, waiting.arrival, tuple(range(request.n_choices)), prefix, unread)
        self._scheduler.running[sequence] = None
        return []

    def _advance(self, share: Share, tokens: Sequence[int]) -> list[Event]:
        """Note what a sequence has read, and go on with the tokens that were chosen for it."""
        sequence = share.sequence
        if sequence not in self._scheduler.running:
            return []  # another choice of its request has failed in this very step
        self._memory.read(sequence.prefix, sequence.unread[: share.n_tokens])
        del sequence.unread[: share.n_tokens]
        if not tokens:
            return []
        try:
            return self._continue(sequence, tokens)
        except Exception as error:  # noqa: BLE001  a text that cannot be decoded ends its own request alone
            return self._fail({sequence.request: None}, error)

    def _continue(self, sequence: TokenSequence, tokens: Sequence[int]) -> list[Event]:
        """Give each choice its token; those that go on get a sequence of their own, the first keeps this one."""
        pairs = zip(sequence.choices, tokens, strict=True)
        deltas = [sequence.request.feed(choice, token) for choice, token in pairs]
        going = [delta for delta in deltas if delta.finish_reason is None]
        for delta in going[1:]:
            self._branch(sequence, delta)
        if going:
            sequence.choices, sequence.unread = (going[0].choice,), [going[0].token_id]
            self._memory.live[sequence.prefix] = self._memory.bytes_each(sequence.request)
        else:
            self._retire(sequence)
        return list(deltas)

    def _branch(self, sequence: TokenSequence, delta: Delta) -> None:
        prefix = self._memory.split(sequence.prefix, sequence.request)
        branch = TokenSequence(sequence.request, sequence.arrival, (delta.choice,), prefix, [delta.token_id])
        self._scheduler.running[branch] = None

    def _retire(self, sequence: TokenSequence) -> None:
        del self._scheduler.running[sequence]
        self._memory.retire(sequence.prefix)

    def _fail(self, requests: dict[EngineRequest, None], error: Exception) -> list[Event]:
        """End requests with an error each; their keys and values may be damaged, so none are kept."""
        for request in requests:
            for sequence in self._scheduler.sequences_of(request):
                del self._scheduler.running[sequence]
                self._memory.discard(sequence.prefix)
        return [Failure(request, _generation_error(error)) for request in requests]


def _generation_error(cause: Exception) -> GenerationError:
    """An error of its own for each request, for each is raised in another thread."""
    error = GenerationError(f"the model failed while generating: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
