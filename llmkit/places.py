"""A bounded number of places, first come, first served: how a queue says that it is full.

It does not know what waits, nor for what.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from llmkit.errors import ParameterError, QueueFull

MAX_WAITING = 1024
"""Requests that may wait to start, where nothing else is said."""


class Places:
    """Places that are taken and given back. All methods may be called from any thread, `atake` from any event loop.

    Args:
        max_waiting: how many places there are.

    Raises:
        ParameterError: `max_waiting` is below 1.
    """

    def __init__(self, max_waiting: int) -> None:
        if max_waiting < 1:
            raise ParameterError(f"max_waiting must be at least 1, got {max_waiting}")
        self._max_waiting, self._n_free = max_waiting, max_waiting
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._refusal: Callable[[], Exception] | None = None

    def take(self, *, wait: bool) -> None:
        """Take a place; where there is none, block until there is one, or raise.

        Raises:
            QueueFull: there is none, and `wait` is false.
            Exception: what `close` was given.
        """
        place = self._asked(wait)
        try:
            place.result()
        except BaseException:
            self._leave(place)
            raise

    async def atake(self, *, wait: bool) -> None:
        """`take` for an event loop: waiting blocks nobody, and who is cancelled leaves no place taken."""
        place = self._asked(wait)
        try:
            await asyncio.wrap_future(place)
        except BaseException:
            self._leave(place)
            raise

    def give_back(self) -> None:
        """Give a place back; who has waited longest gets it."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._n_free += 1

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Raise this for all who wait, and for all who come from now on."""
        with self._lock:
            self._refusal = refusal
            waiting, self._waiting = self._waiting, deque()
        for place in waiting:
            if place.set_running_or_notify_cancel():
                place.set_exception(refusal())

    def _asked(self, wait: bool) -> Future[None]:
        """A future that is done once the place is there."""
        place: Future[None] = Future()
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            if self._n_free:
                self._n_free -= 1
                place.set_result(None)
            elif wait:
                self._waiting.append(place)
            else:
                raise QueueFull(self._max_waiting)
        return place

    def _leave(self, place: Future[None]) -> None:
        """Wait no more; a place that came at the same moment goes to the next one."""
        if not place.cancel() and place.exception() is None:
            self.give_back()
