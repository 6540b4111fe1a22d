"""A thread that runs groups of requests one after another, and hands their chunks to whoever reads them.

It knows neither models nor routes: a group's work is a function that emits chunks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from llmkit.errors import GenerationError, ModelClosed
from llmkit.types import Chunk

Work = Callable[[Callable[[Chunk], None], threading.Event], None]
"""Emits chunks, and looks at the event now and then: once it is set, nobody reads any more."""


class OwnThread:
    """One thread, with the number of torch threads of its maker, which a new thread would not take over.

    Args:
        name: the model's, for messages.
        n_threads: torch threads.
    """

    def __init__(self, name: str | None, n_threads: int) -> None:
        self._name = name
        self._running: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._executor = ThreadPoolExecutor(1, "llmkit-generate", torch.set_num_threads, (n_threads,))
        self._is_closed = False

    def chunks(self, work: Work) -> Iterator[Chunk]:
        """What the work emits, as it comes; leaving early cancels it.

        Raises:
            GenerationError: the work failed.
            ModelClosed: the thread was closed.
        """
        chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        cancelled = threading.Event()
        future = self._submitted(lambda: work(chunks.put, cancelled))
        future.add_done_callback(lambda _: chunks.put(None))
        self._running.add(cancelled)
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            self._raise_failure(future)
        finally:
            cancelled.set()
            future.cancel()

    def _submitted(self, work: Callable[[], None]) -> Future[None]:
        try:
            return self._executor.submit(work)
        except RuntimeError as error:
            raise ModelClosed(self._name) from error

    def _raise_failure(self, future: Future[None]) -> None:
        if future.cancelled() or self._is_closed:
            raise ModelClosed(self._name)
        error = future.exception()
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise error
        if error is not None:
            raise GenerationError(f"{self._name!r} failed while generating: {error}") from error

    def close(self) -> None:
        """End what runs, refuse what waits, and wait for the thread."""
        self._is_closed = True
        for cancelled in list(self._running):
            cancelled.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
