"""A thread that runs groups of requests one after another, and hands their chunks to whoever reads them.

It knows neither models nor backends: a group's work is a function that emits chunks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from llmkit.errors import GenerationError, ModelClosed
from llmkit.places import MAX_WAITING, Places
from llmkit.types import Chunk

T = TypeVar("T")
Work = Callable[[Callable[[Chunk], None], threading.Event], None]
"""Emits chunks, and looks at the event now and then: once it is set, nobody reads any more."""


class OwnThread:
    """One thread, for work that must not run twice at a time.

    Args:
        name: the model's, for messages.
        initializer: called in the thread before anything else.
        passed_on: errors of a work that its reader gets as they are; `MemoryError` always is.
        max_waiting: works that may wait to start.
        after_work: called in the thread after each work.
    """

    def __init__(
        self,
        name: str | None,
        initializer: Callable[[], None] | None = None,
        passed_on: tuple[type[Exception], ...] = (),
        max_waiting: int = MAX_WAITING,
        after_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._after_work = name, after_work
        self._passed_on = (MemoryError, *passed_on)
        self._places = Places(max_waiting)
        self._running: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._executor = ThreadPoolExecutor(1, "llmkit-generate", initializer)
        self._is_closed = False

    def chunks(self, work: Work, *, may_wait: bool = True) -> Iterator[Chunk]:
        """What the work emits, as it comes; leaving early cancels it.

        Args:
            work: what is to be done.
            may_wait: whether to wait for a place where as many works wait as may.

        Raises:
            GenerationError: the work failed.
            ModelClosed: the thread was closed.
            QueueFull: there is no place, and it may not wait.
        """
        chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        cancelled = threading.Event()

        def was_cut() -> bool:
            work(chunks.put, cancelled)
            return cancelled.is_set()

        future = self._queued(was_cut, may_wait)
        future.add_done_callback(lambda _: chunks.put(None))
        self._running.add(cancelled)
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            self._raise_failure(future)
        finally:
            cancelled.set()
            future.cancel()

    def run(self, function: Callable[[], T]) -> T:
        """Run something in the thread after all that was handed in before, and wait for it.

        Raises:
            ModelClosed: the thread was closed.
        """
        return self._submitted(function).result()

    def _queued(self, work: Callable[[], bool], may_wait: bool) -> Future[bool]:
        """The work in the queue; its place is free once it starts, or is cancelled before."""

        def start() -> bool:
            self._places.give_back(work)
            return work()

        self._places.take(work, wait=may_wait)
        future = self._submitted(start)
        future.add_done_callback(lambda done: self._places.give_back(work) if done.cancelled() else None)
        return future

    def _submitted(self, work: Callable[[], T]) -> Future[T]:
        def then_rest() -> T:
            try:
                return work()
            finally:
                self._after_work()

        try:
            return self._executor.submit(then_rest)
        except RuntimeError as error:
            raise ModelClosed(self._name) from error

    def _raise_failure(self, future: Future[bool]) -> None:
        """Raise what ended a work early; its reader is still here, so only closing can have cut it."""
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or (error is None and future.result()) or (error is not None and self._is_closed):
            raise ModelClosed(self._name)
        if isinstance(error, self._passed_on):
            raise error
        if error is not None:
            raise GenerationError(f"{self._name!r} failed while generating: {error}") from error

    def close(self) -> None:
        """End what runs, refuse what waits, and wait for the thread."""
        self._is_closed = True
        for cancelled in list(self._running):
            cancelled.set()
        self._places.close(partial(ModelClosed, self._name))
        self._executor.shutdown(wait=True, cancel_futures=True)
