"""The owner thread: everybody hands in requests, one thread runs the engine, so calls made at once batch together.

It carries events from the engine to those who wait for them. What is computed, and in which order, is unknown here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias, TypeVar

from llmkit.engine.engine import Engine, EngineFigures
from llmkit.engine.sequence import Delta, EngineRequest, Event, Failure
from llmkit.errors import GenerationError, LLMKitError, ModelClosed
from llmkit.home_process import HomeProcess
from llmkit.places import MAX_WAITING, Places

T = TypeVar("T")
Receiver: TypeAlias = "Callable[[Event | None], None]"
"""Takes the events of a request, in order, in the owner thread; None comes once, as the last."""


class Ticket(Iterator[Delta]):
    """The deltas of one submitted request, as they come.

    Iterating blocks until the next one is there. Closing the ticket, leaving its `with` block or dropping it cancels
    the request. One thread iterates; any thread may close.

    Raises:
        GenerationError: while iterating; the request failed.
        ModelClosed: while iterating; the worker was closed.
    """

    def __init__(self, worker: EngineWorker, request: EngineRequest, events: SimpleQueue[Event | None]) -> None:
        self._worker, self._request, self._events = worker, request, events
        self._is_over = False

    def __next__(self) -> Delta:
        event = None if self._is_over else self._events.get()
        if isinstance(event, Delta):
            return event
        self._is_over = True
        if event is None:
            raise StopIteration
        raise event.error

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not come yet; safe to call twice, and after the end."""
        self._worker.cancel(self._request)

    def __del__(self) -> None:
        if not self._is_over:
            self.close()


@dataclass(slots=True)
class _Receiving:
    """Who takes the events of a request, and how many of its choices have not ended."""

    receiver: Receiver
    n_open: int


class EngineWorker:
    """One engine, and the thread that owns it and its runner. All methods may be called from any thread.

    The thread sleeps while there is nothing to do. It is a daemon, so a worker that nobody closed does not keep a
    program alive.

    Args:
        make_engine: called in the owner thread; what it raises is raised here.
        name: of the model, for messages and the thread.
        max_waiting: requests that may wait to start; those beyond are refused, or their callers wait.
        before_sleep: called in the owner thread whenever it has nothing more to do.

    Raises:
        ParameterError: `max_waiting` is below 1.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str | None = None,
        max_waiting: int = MAX_WAITING,
        before_sleep: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._places, self._before_sleep = name, Places(max_waiting), before_sleep
        self._placed: set[EngineRequest] = set()  # those the engine knows that have a place; the owner thread's alone
        # Reentrant puts: a ticket may be collected, and so cancelled, at any point of any thread.
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._receivers: dict[EngineRequest, _Receiving] = {}
        self._refusal: Callable[[], LLMKitError] | None = None
        self._closing, self._home = threading.Lock(), HomeProcess(name)
        made: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._own, args=(make_engine, made), name=f"llmkit {name}", daemon=True)
        self._thread.start()
        self._engine = made.result()
        self._figures = self._engine.figures()

    @property
    def figures(self) -> EngineFigures:
        """What the engine held and had done after its last step, or after a request was cancelled since."""
        return self._figures

    def submit(self, request: EngineRequest) -> Ticket:
        """Queue a request, once; its deltas come out of the ticket. In a full queue it waits for a place, if it may.

        Raises:
            CacheBudgetExceeded: it can never fit in the memory for keys and values.
            InvalidRequest: it has more choices than sequences may run at once.
            QueueFull: there is no place, and it may not wait.
            ModelClosed: the worker is closed.
            GenerationError: the engine broke down, or this is a forked process.
        """
        events: SimpleQueue[Event | None] = SimpleQueue()
        self.submit_to(events.put, request)
        return Ticket(self, request, events)

    def submit_to(self, receiver: Receiver, request: EngineRequest) -> None:
        """Queue a request whose events go to a function, such as one that wakes an event loop.

        The function is called in the owner thread and should return at once; if it raises, the request is cancelled.
        Errors are those of `submit`.
        """
        try:
            self.take_place(request)
            self.hand_in(receiver, request)
        except BaseException:
            self.cancel(request)
            raise

    def take_place(self, request: EngineRequest) -> None:
        """The first half of `submit_to`: a place in the queue, waiting for it if the request may.

        `cancel` gives it back, should the second half never come.
        """
        self.check_process()
        self._engine.check(request)
        self._places.take(request, wait=request.may_wait)

    async def atake_place(self, request: EngineRequest) -> None:
        """`take_place` for an event loop, which a full queue does not block; cancelled meanwhile, none is taken."""
        self.check_process()
        self._engine.check(request)
        await self._places.atake(request, wait=request.may_wait)

    def hand_in(self, receiver: Receiver, request: EngineRequest) -> None:
        """The second half of `submit_to`, for a request that has its place.

        Raises:
            ModelClosed: the worker is closed.
            GenerationError: the engine broke down, or this is a forked process.
        """
        self._command(partial(self._add, request, receiver))

    def cancel(self, request: EngineRequest) -> None:
        """End a request within a step; its receiver gets None. Returns at once; too late or twice does nothing."""
        # No global is named: a reader may be dropped while the interpreter ends, when they are None already.
        self._inbox.put(lambda: self._cancel(request))

    def run_in_thread(self, function: Callable[[], T]) -> T:
        """Run something in the owner thread between two steps, and wait for it.

        Raises:
            ModelClosed: the worker is closed.
            GenerationError: the engine broke down, or this is a forked process.
        """
        if threading.current_thread() is self._thread:
            return function()
        self.check_process()
        outcome: Future[T] = Future()
        self._command(partial(_settle, outcome, function))
        return outcome.result()

    def forget_and(self, change: Callable[[], None]) -> None:
        """Drop every cached prefix and change the model, in the owner thread between two steps; nothing may run.

        Raises:
            GenerationError: something runs.
            ModelClosed: the worker is closed.
            GenerationError: the engine broke down, or this is a forked process.
        """

        def forget_then_change() -> None:
            self._engine.forget()
            change()

        self.run_in_thread(forget_then_change)

    def close(self) -> None:
        """End all requests with `ModelClosed`, free everything and wait for the thread; safe to call twice.

        From within the owner thread it does not wait; in a forked process it does nothing.
        """
        if not self._home.is_here:
            return
        with self._closing:
            self._refusal = partial(ModelClosed, self._name)
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._places.close(self._refusal)  # should another reason have ended the thread before

    def check_process(self) -> None:
        """Refuse a call from a forked process, which has no owner thread.

        Raises:
            GenerationError: this is one.
        """
        self._home.check()

    def _command(self, command: Callable[[], None]) -> None:
        with self._closing:
            if self._refusal is not None:
                raise self._refusal()
            self._inbox.put(command)

    # --- in the owner thread ----------------------------------------------------------------------------------------

    def _own(self, make_engine: Callable[[], Engine], made: Future[Engine]) -> None:
        """The thread, from making the engine to closing it."""
        _settle(made, make_engine)
        if made.exception() is not None:
            return
        engine, reason = made.result(), partial[LLMKitError](ModelClosed, self._name)
        try:
            self._serve(engine)
        except BaseException as error:  # noqa: BLE001  those who wait for this thread must hear of it, whatever it is
            reason = partial[LLMKitError](_breakdown, error)
        finally:
            self._end_all(reason)
            engine.close()

    def _serve(self, engine: Engine) -> None:
        """Do what is asked, step as long as there is work, sleep otherwise; until closed."""
        while True:
            for command in self._commands(engine.has_work):
                if command is None:
                    return
                command()
            events = engine.step() if engine.has_work else []
            # Before the events go out: whoever has the last token of a text finds it in the figures.
            self._figures = engine.figures()
            for event in events:
                self._deliver(event)
            self._free_places()

    def _commands(self, is_busy: bool) -> Iterator[Callable[[], None] | None]:
        """All that is asked by now; with nothing else to do, sleep until something is."""
        if not is_busy:
            if self._inbox.empty():
                self._before_sleep()
            yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _add(self, request: EngineRequest, receiver: Receiver) -> None:
        self._receivers[request] = _Receiving(receiver, request.n_choices)
        self._placed.add(request)
        self._engine.add(request)

    def _cancel(self, request: EngineRequest) -> None:
        receiving = self._receivers.pop(request, None)
        if receiving is not None:
            self._engine.cancel(request)
            self._figures = self._engine.figures()
            _last_word(receiving.receiver)
        self._give_back(request)  # also of one that was never handed in

    def _deliver(self, event: Event) -> None:
        """Hand an event to whom it is for, and end what it ends."""
        receiving = self._receivers.get(event.request)
        if receiving is None:
            return
        try:
            receiving.receiver(event)
        except Exception:  # noqa: BLE001  nobody is there any more, a closed event loop for example
            self._cancel(event.request)
            return
        if isinstance(event, Failure) or event.finish_reason is not None:
            receiving.n_open -= 1
        if isinstance(event, Failure) or not receiving.n_open:
            del self._receivers[event.request]
            _last_word(receiving.receiver)

    def _free_places(self) -> None:
        """Give back the places of requests that wait no more: they started or failed."""
        if len(self._placed) > self._engine.n_waiting:
            for request in [one for one in self._placed if not self._engine.awaits_start(one)]:
                self._give_back(request)

    def _give_back(self, request: EngineRequest) -> None:
        self._placed.discard(request)
        self._places.give_back(request)

    def _end_all(self, reason: Callable[[], LLMKitError]) -> None:
        """Refuse what comes from now on, and end all that is here or on its way, each with an error of its own."""
        with self._closing:
            self._refusal = refusal = self._refusal or reason
        for command in self._commands(is_busy=True):
            if command is not None:
                command()
        for request in list(self._receivers):
            self._deliver(Failure(request, reason()))
        self._places.close(refusal)


def _breakdown(cause: BaseException) -> GenerationError:
    error = GenerationError(f"the engine broke down, load the model again: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error


def _settle(outcome: Future[T], function: Callable[[], T]) -> None:
    """Run a function for somebody who waits for what it returns or raises."""
    try:
        outcome.set_result(function())
    except BaseException as error:  # noqa: BLE001  it is the waiting one's to handle
        outcome.set_exception(error)


def _last_word(receiver: Receiver) -> None:
    try:
        receiver(None)
    except Exception:  # noqa: BLE001  nobody is there any more
        return
