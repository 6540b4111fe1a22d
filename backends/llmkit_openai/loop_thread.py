"""An event loop on a thread of its own, and streams that leave it for other threads and other loops.

All connections live on this one loop, so one pool and one limit serve every caller, whatever thread or event loop it
comes from. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
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
        self._letters = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Letters]()

    def stream(self, produce: Producer[T], *, delay_s: float = 0.0) -> Iterator[T]:
        """The items of a producer, for a thread that may block. Closing the iterator cancels the producer.

        Args:
            produce: what makes them.
            delay_s: how long an item may wait for others to go with, in seconds.

        Raises:
            ModelClosed: `close` was called.
        """
        queue = SimpleQueue[_Parcel[T]]()
        production = self._begun(produce, _Production(queue.put, delay_s))
        try:
            while True:
                parcel = queue.get()
                yield from parcel.items
                if parcel.is_last:
                    self._check(parcel)
                    return
        finally:
            self._end(production)

    async def astream(self, produce: Producer[T], *, delay_s: float = 0.0) -> AsyncIterator[T]:
        """`stream` for another event loop."""
        queue = asyncio.Queue[_Parcel[T]]()
        letters = self._letters_to(asyncio.get_running_loop())

        def send(parcel: _Parcel[T]) -> None:
            letters.post(lambda: queue.put_nowait(parcel))

        production = self._begun(produce, _Production(send, delay_s))
        try:
            while True:
                parcel = await queue.get()
                for item in parcel.items:
                    yield item
                if parcel.is_last:
                    self._check(parcel)
                    return
        finally:
            self._end(production)

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

    def _begun(self, produce: Producer[T], production: _Production[T]) -> _Production[T]:
        with self._lock:
            if self._closed:
                raise ModelClosed(self._name)
            if self._thread is None:
                self._thread = self._started()
            # Under the lock, so that `close` finds the task.
            self._loop.call_soon_threadsafe(production.begin, produce)
            return production

    def _end(self, production: _Production[Any]) -> None:
        # A loop that is closed has ended it already.
        if not production.is_over:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(production.cancel)

    def _letters_to(self, loop: asyncio.AbstractEventLoop) -> _Letters:
        with self._lock:
            return self._letters.setdefault(loop, _Letters(loop))

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

    def _check(self, last: _Parcel[Any]) -> None:
        if isinstance(last.error, asyncio.CancelledError):
            raise ModelClosed(self._name)
        if last.error is not None:
            raise last.error


@dataclass(frozen=True, slots=True)
class _Parcel(Generic[T]):
    """Items that go to the reader together, and how their producer ended, if it did."""

    items: list[T]
    is_last: bool = False
    error: BaseException | None = None


class _Production(Generic[T]):
    """A producer at work on the loop; its reader is woken once a turn of the loop, or less often, not for each item.

    It does not hold the producer, and with it a model: timers of the loop may hold this object beyond its last parcel.

    Args:
        send: hands parcels to the reader; the last one comes always, however the producer ends.
        delay_s: how long an item may wait for others, in seconds.
    """

    def __init__(self, send: Callable[[_Parcel[T]], None], delay_s: float) -> None:
        self._send, self._delay_s = send, delay_s
        self._items: list[T] = []
        self._task: asyncio.Task[None]
        self.is_over = False

    def begin(self, produce: Producer[T]) -> None:
        """Start it; called on the loop, as all else here."""
        self._task = asyncio.get_running_loop().create_task(produce(self._put))
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        """End it early."""
        self._task.cancel()

    def _put(self, item: T) -> None:
        if not self._items:
            loop = asyncio.get_running_loop()
            loop.call_later(self._delay_s, self._flush) if self._delay_s else loop.call_soon(self._flush)
        self._items.append(item)

    def _flush(self) -> None:
        if self._items:
            items, self._items = self._items, []
            self._send(_Parcel(items))

    def _over(self, task: asyncio.Task[None]) -> None:
        self.is_over = True
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._send(_Parcel(self._items, is_last=True, error=error))
        self._items = []


class _Letters:
    """What is to be done on another loop, which is woken once for all that has gathered since it last looked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop is a key of a weak dictionary that holds this object, so it must not be kept alive from here.
        self._loop = weakref.ref(loop)
        self._waiting = deque[Callable[[], None]]()
        self._is_called = False

    def post(self, letter: Callable[[], None]) -> None:
        """Have a function called on the loop, in order; one that is closed has no readers any more."""
        self._waiting.append(letter)
        loop = self._loop()
        if loop is not None and not self._is_called:
            self._is_called = True
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # First, so that whatever is posted from here on calls again.
        self._is_called = False
        while self._waiting:
            self._waiting.popleft()()
