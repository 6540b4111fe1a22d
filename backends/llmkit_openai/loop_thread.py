"""An event loop on a thread of its own, and streams that leave it for other threads and other loops.

All connections live on this one loop, so one pool and one limit serve every caller, whatever thread or event loop it
comes from. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from llmkit.errors import ModelClosed

T = TypeVar("T")
Put: TypeAlias = Callable[[T], None]
Producer: TypeAlias = Callable[[Put[T]], Coroutine[Any, Any, None]]
"""A function that makes a coroutine, which hands its items to the function that it is given."""


class LoopThread:
    """Runs coroutines on its own event loop, which starts with the first of them.

    Safe to use from many threads and event loops.

    Args:
        name: the model's, for the thread and for messages.
        on_close: awaited on the loop after everything that ran there was cancelled.
    """

    def __init__(self, name: str, on_close: Callable[[], Awaitable[None]]) -> None:
        self._name, self._on_close = name, on_close
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event

    def stream(self, produce: Producer[T]) -> Iterator[T]:
        """The items of a producer, for a thread that may block. Closing the iterator cancels the producer.

        Raises:
            ModelClosed: `close` was called.
        """
        queue = SimpleQueue[list[T] | None]()
        produced = self._submit(produce(_Outbox(queue.put).put))
        produced.add_done_callback(lambda _: queue.put(None))
        try:
            while (items := queue.get()) is not None:
                yield from items
            self._check(produced)
        finally:
            produced.cancel()

    async def astream(self, produce: Producer[T]) -> AsyncIterator[T]:
        """The items of a producer, for another event loop. Closing the iterator cancels the producer.

        Raises:
            ModelClosed: `close` was called.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[list[T] | None]()

        def send(items: list[T] | None) -> None:
            # A loop that is closed has no reader any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, items)

        produced = self._submit(produce(_Outbox(send).put))
        produced.add_done_callback(lambda _: send(None))
        try:
            while (items := await queue.get()) is not None:
                for item in items:
                    yield item
            self._check(produced)
        finally:
            produced.cancel()

    def close(self) -> None:
        """Cancel what runs, and end loop and thread; safe to call twice."""
        with self._lock:
            thread, is_first = self._thread, not self._closed
            self._closed = True
            if thread is not None and is_first:
                self._loop.call_soon_threadsafe(self._closing.set)
        # Garbage may be collected on the loop's own thread, which cannot wait for itself.
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _submit(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise ModelClosed(self._name)
            if self._thread is None:
                self._thread = self._started()
            # Under the lock, so that `close` finds the task.
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _started(self) -> threading.Thread:
        ready = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name=f"llmkit {self._name}", daemon=True
        )
        thread.start()
        ready.wait()
        return thread

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._closing.wait()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._on_close()

    def _check(self, produced: Future[None]) -> None:
        try:
            produced.result()
        except CancelledError:
            raise ModelClosed(self._name) from None


class _Outbox(Generic[T]):
    """Items on their way to another thread, which is woken once a turn of the loop rather than for each of them."""

    def __init__(self, send: Callable[[list[T]], None]) -> None:
        self._send = send
        self._items: list[T] = []

    def put(self, item: T) -> None:
        if not self._items:
            asyncio.get_running_loop().call_soon(self._flush)
        self._items.append(item)

    def _flush(self) -> None:
        items, self._items = self._items, []
        self._send(items)
