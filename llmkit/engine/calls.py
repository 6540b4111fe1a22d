"""Calls on an engine: requests in, chunks out, for threads and for event loops alike.

It carries between a call and the engine's owner thread, and knows neither models nor how a token is chosen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeAlias

from llmkit.engine.engine import Engine, EngineFigures
from llmkit.engine.sequence import Delta, EngineRequest, Event
from llmkit.engine.worker import EngineWorker, Receiver
from llmkit.places import MAX_WAITING
from llmkit.types import Chunk, TokenLogprob

_PATIENCE_S = 0.05
"""How long tokens may be held back that nobody reads before the end: waking a reader for each takes time from the step
that comes next."""

_Item = tuple[int, list[Event | None]]
_Put = Callable[[_Item], None]
NumberedRequest: TypeAlias = tuple[int, EngineRequest]
"""A request with its place in the call."""


class _Bundle:
    """Events of one request on their way to its reader: each at once, or where nobody reads along, several together.

    The first goes at once, for it is timed; the last ends what is held back.
    """

    def __init__(self, index: int, put: _Put, streamed: bool) -> None:
        self._index, self._put, self._streamed = index, put, streamed
        self._events: list[Event | None] = []
        self._due_s = 0.0

    def add(self, event: Event | None) -> None:
        """Take an event; None is the last."""
        self._events.append(event)
        if self._streamed or event is None or time.monotonic() >= self._due_s:
            events, self._events = self._events, []
            self._put((self._index, events))
            self._due_s = time.monotonic() + _PATIENCE_S


class EngineCalls:
    """Runs requests on one engine. Safe to use from many threads and event loops; what comes at once batches together.

    Args:
        make_engine: called in the engine's own thread.
        name: the model's, for messages.
        max_waiting: requests that may wait to start; those beyond are refused, or wait for a place, as each says.
        logprobs: the log-probabilities of a new token, where its request asks for them; called in the reader's thread.
        passed_on: causes of a failure that a reader gets as they are; `MemoryError` always is.
        before_sleep: called in the engine's thread whenever it has nothing more to do.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str | None,
        max_waiting: int = MAX_WAITING,
        logprobs: Callable[[Delta], tuple[TokenLogprob, ...] | None],
        passed_on: tuple[type[Exception], ...] = (),
        before_sleep: Callable[[], None] = lambda: None,
    ) -> None:
        self._passed_on, self._logprobs = (MemoryError, *passed_on), logprobs
        # Entered as a bare lock: a signal's exception within a condition's own `__enter__` would leave it locked.
        self._lock = threading.RLock()
        self._gate = threading.Condition(self._lock)
        self._open, self._is_held = set[EngineRequest](), False
        self._worker = EngineWorker(make_engine, name=name, max_waiting=max_waiting, before_sleep=before_sleep)

    @property
    def figures(self) -> EngineFigures:
        """What the engine holds and has done."""
        return self._worker.figures

    def chunks(self, requests: Iterable[NumberedRequest]) -> Iterator[Chunk]:
        """The chunks of all requests as they come; leaving early cancels what has not come yet."""
        events: SimpleQueue[_Item] = SimpleQueue()
        submitted: list[EngineRequest] = []
        try:
            for index, request in requests:
                self._submit(index, request, events.put, submitted)
                yield Chunk(index, prompt_tokens=len(request.prompt_ids))
            n_open = len(submitted)
            while n_open:
                index, bundle = events.get()
                n_open -= bundle[-1] is None
                for event in bundle:
                    yield from self._chunk(index, event)
        finally:
            self._cancel(submitted)

    async def achunks(self, requests: Iterable[NumberedRequest]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop, without a thread of its own."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[_Item]()
        submitted: list[EngineRequest] = []

        def put(item: _Item) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        try:
            for index, request in requests:
                await self._asubmit(index, request, put, submitted)
                yield Chunk(index, prompt_tokens=len(request.prompt_ids))
            n_open = len(submitted)
            while n_open:
                index, bundle = await events.get()
                n_open -= bundle[-1] is None
                for event in bundle:
                    for chunk in self._chunk(index, event):
                        yield chunk
        finally:
            self._cancel(submitted)

    def exclusively(self, change: Callable[[], None]) -> None:
        """Let everything that runs end, forget every cached prefix, make a change, and go on.

        Requests that come meanwhile wait, so none sees two states of the model, and no prefix outlives its own.

        Raises:
            ModelClosed: the engine is closed.
        """
        self.drain()
        try:
            self._worker.forget_and(change)
        finally:
            self._let_in()

    def _submit(self, index: int, request: EngineRequest, put: _Put, submitted: list[EngineRequest]) -> None:
        with self._undone_on_failure(request, submitted):
            self._worker.take_place(request)
            while not self._entered(request):
                self._until_let_in()
            self._worker.hand_in(self._receiver(index, request, put), request)

    async def _asubmit(self, index: int, request: EngineRequest, put: _Put, submitted: list[EngineRequest]) -> None:
        with self._undone_on_failure(request, submitted):
            await self._worker.atake_place(request)
            while not self._entered(request):
                await asyncio.to_thread(self._until_let_in)
            self._worker.hand_in(self._receiver(index, request, put), request)

    @contextmanager
    def _undone_on_failure(self, request: EngineRequest, submitted: list[EngineRequest]) -> Generator[None]:
        """Whatever interrupts handing a request in, a signal's handler for one, and wherever: nothing of it stays."""
        submitted.append(request)
        try:
            yield
        except BaseException:
            self._worker.cancel(request)
            self._leave(request)  # nobody else does, unless it was handed in
            raise

    def _receiver(self, index: int, request: EngineRequest, put: _Put) -> Receiver:
        bundle = _Bundle(index, put, request.streamed)

        def receive(event: Event | None) -> None:
            if event is None:
                self._leave(request)
            bundle.add(event)

        return receive

    def _entered(self, request: EngineRequest) -> bool:
        """Note one more as open, unless everybody is held out."""
        with self._lock:
            if not self._is_held:
                self._open.add(request)
            return not self._is_held

    def _let_in(self) -> None:
        with self._lock:
            self._is_held = False
            self._gate.notify_all()

    def _until_let_in(self) -> None:
        with self._lock:
            self._gate.wait_for(lambda: not self._is_held)

    def _leave(self, request: EngineRequest) -> None:
        with self._lock:
            self._open.discard(request)
            self._gate.notify_all()

    def _cancel(self, submitted: Sequence[EngineRequest]) -> None:
        for request in submitted:
            self._worker.cancel(request)

    def _chunk(self, index: int, event: Event | None) -> Iterator[Chunk]:
        """What a reader gets for an event.

        Raises:
            LLMKitError: the request failed.
            MemoryError: there was not enough memory; other causes that are passed on likewise.
        """
        if isinstance(event, Delta):
            logprobs = self._logprobs(event)
            choice = event.request.first_choice + event.choice
            yield Chunk(index, choice, event.text, (event.token_id,), event.finish_reason, logprobs=logprobs)
        elif event is not None:
            cause = event.error.__cause__
            raise cause if isinstance(cause, self._passed_on) else event.error

    def drain(self) -> None:
        """Let everything that runs or waits end; who comes from now on waits, until `close`.

        Raises:
            GenerationError: this is a forked process.
        """
        self._worker.check_process()
        with self._lock:
            self._gate.wait_for(lambda: not self._is_held)
            try:
                self._is_held = True
                self._gate.wait_for(lambda: not self._open)
            except BaseException:
                self._let_in()
                raise

    def close(self) -> None:
        """End everything and free the memory; who waits, and who comes from now on, gets `ModelClosed`."""
        self._worker.close()
        self._let_in()
