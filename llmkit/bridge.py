"""An iterator that blocks, drained by a thread of its own for an event loop. It knows nothing of what it carries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def drained_in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator that blocks, without blocking the event loop.

    Leaving early closes the iterator, if it can be closed, at its next item; an exception of it is raised here, unless
    nobody is here any more.
    """
    close: Callable[[], None] = getattr(items, "close", lambda: None)
    loop, queue, left = asyncio.get_running_loop(), asyncio.Queue[tuple[T] | None](), threading.Event()

    def hand_over(item: tuple[T] | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def drain() -> None:
        try:
            for item in items:
                if left.is_set():
                    break
                hand_over((item,))
        finally:
            close()
            hand_over(None)

    drained = loop.run_in_executor(None, drain)
    try:
        while (item := await queue.get()) is not None:
            yield item[0]
        await drained
    finally:
        left.set()
        drained.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, should nobody be here
