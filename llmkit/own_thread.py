"""A thread that runs groups of requests one after another, and hands their chunks to whoever reads them.

It knows neither models nor backends: a group's work is a function that emits chunks.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from llmkit.errors import GenerationError, ModelClosed
from llmkit.home_process import HomeProcess
from llmkit.places import MAX_WAITING, Places
from llmkit.types import Chunk

T = TypeVar("T")
Work = Callable[[Callable[[Chunk], None], threading.Event], None]
"""Emits chunks, and looks at the event now and then: once it is set, nobody reads any more."""
_Commands = SimpleQueue[Callable[[], None] | None]


class _Job:
    """A work, and what is known between its reader and the thread.

    Args:
        work: what is to be done.
        put: takes the chunks, then None.
    """

    def __init__(self, work: Work, put: Callable[[Chunk | None], None]) -> None:
        self.work, self.put = work, put
        self.cancelled = threading.Event()
        self.has_started = False
        self.error: BaseException | None = None


class OwnThread:
    """One thread, for work that must not run twice at a time. It starts with the first, and keeps no program alive.

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
        initializer: Callable[[], None] = lambda: None,
        passed_on: tuple[type[Exception], ...] = (),
        max_waiting: int = MAX_WAITING,
        after_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._after_work = name, after_work
        self._passed_on = (MemoryError, *passed_on)
        self._places, self._home = Places(max_waiting), HomeProcess(name)
        self._running: _Job | None = None
        self._closing, self._is_closed = threading.Lock(), False
        self._commands: _Commands = SimpleQueue()
        self._thread = threading.Thread(
            target=_serve, args=(initializer, self._commands), name="llmkit-generate", daemon=True
        )
        weakref.finalize(self, self._commands.put, None)

    def chunks(self, work: Work, *, may_wait: bool = True) -> Iterator[Chunk]:
        """What the work emits, as it comes; leaving early cancels it.

        Args:
            work: what is to be done.
            may_wait: whether to wait for a place where as many works wait as may.

        Raises:
            GenerationError: the work failed, or this is a forked process.
            ModelClosed: the thread was closed.
            QueueFull: there is no place, and it may not wait.
        """
        self._home.check()
        chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        job = _Job(work, chunks.put)
        try:
            self._places.take(job, wait=may_wait)
            self._hand_in(partial(self._do, job))
            while (chunk := chunks.get()) is not None:
                yield chunk
            self._raise_failure(job)
        finally:
            self._leave(job)

    async def achunks(self, work: Work, *, may_wait: bool = True) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop, without another thread; who is cancelled while it waits is gone at once."""
        self._home.check()
        loop, chunks = asyncio.get_running_loop(), asyncio.Queue[Chunk | None]()

        def put(chunk: Chunk | None) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        job = _Job(work, put)
        try:
            await self._places.atake(job, wait=may_wait)
            self._hand_in(partial(self._do, job))
            while (chunk := await chunks.get()) is not None:
                yield chunk
            self._raise_failure(job)
        finally:
            self._leave(job)

    def run(self, function: Callable[[], T]) -> T:
        """Run something in the thread after all that was handed in before, and wait for it.

        Raises:
            GenerationError: this is a forked process.
            ModelClosed: the thread was closed.
        """
        self._home.check()
        outcome: Future[T] = Future()
        self._hand_in(partial(self._settle, outcome, function))
        return outcome.result()

    def _hand_in(self, command: Callable[[], None]) -> None:
        with self._closing:
            self._refuse_if_closed()
            if self._thread.ident is None:
                self._thread.start()
            self._commands.put(command)

    def _leave(self, job: _Job) -> None:
        """End a job for a reader who goes; one that has started needs no lock, for its reader may go at any point."""
        job.cancelled.set()
        if not job.has_started:
            self._places.give_back(job)

    def _raise_failure(self, job: _Job) -> None:
        """Raise what ended a work early; its reader is still here."""
        error, job.error = job.error, None  # whose traceback holds the job
        if isinstance(error, (ModelClosed, *self._passed_on)):
            raise error
        if error is not None:
            raise GenerationError(f"{self._name!r} failed while generating: {error}") from error

    def close(self) -> None:
        """End what runs, refuse what waits, and wait for the thread, unless this is a forked process."""
        if not self._home.is_here:
            return
        with self._closing:
            self._is_closed = True
            self._commands.put(None)
        running = self._running
        if running is not None:
            running.cancelled.set()
        self._places.close(partial(ModelClosed, self._name))
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ModelClosed(self._name)

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _do(self, job: _Job) -> None:
        """Run a job whose reader is still here."""
        job.has_started, self._running = True, job
        self._places.give_back(job)
        try:
            self._refuse_if_closed()
            if not job.cancelled.is_set():
                job.work(job.put, job.cancelled)
        except BaseException as error:  # noqa: BLE001  it is the reader's to handle
            job.error = error
        self._running = None
        if job.cancelled.is_set() and self._is_closed:
            job.error = ModelClosed(self._name)  # it may have been cut
        self._after_work()
        with suppress(RuntimeError):  # the reader's event loop is closed
            job.put(None)

    def _settle(self, outcome: Future[T], function: Callable[[], T]) -> None:
        """Run a function for somebody who waits for what it returns or raises."""
        try:
            self._refuse_if_closed()
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  it is the waiting one's to handle
            outcome.set_exception(error)
        self._after_work()


def _serve(initializer: Callable[[], None], commands: _Commands) -> None:
    """The thread. It does not hold its owner, so that one who is dropped unclosed ends it."""
    initializer()
    while (command := commands.get()) is not None:
        command()
        del command
