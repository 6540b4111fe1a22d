"""A bounded number of places, first come, first served: how a queue says that it is full.

It does not know what waits, nor for what.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from llmkit.errors import ParameterError, QueueFull

MAX_WAITING = 1024
"""Requests that may wait to start, where nothing else is said."""


class Places:
    """Places that are taken and given back. All methods may be called from any thread, `atake` from any event loop.

    A place belongs to its owner, who has one at most; so it can be given back whatever happened, and twice.

    Args:
        max_waiting: how many places there are.

    Raises:
        ParameterError: `max_waiting` is below 1.
    """

    def __init__(self, max_waiting: int) -> None:
        if max_waiting < 1:
            raise ParameterError(f"max_waiting must be at least 1, got {max_waiting}")
        self._max_waiting = max_waiting
        self._lock = threading.RLock()  # who waits may be collected, and so leave, at any point of any thread
        self._taken: set[Hashable] = set()
        self._waiting: OrderedDict[Hashable, Future[None]] = OrderedDict()
        self._refusal: Callable[[], Exception] | None = None

    def take(self, owner: Hashable, *, wait: bool) -> None:
        """Take a place; where there is none, block until there is one, or raise.

        Raises:
            QueueFull: there is none, and `wait` is false.
            Exception: what `close` was given.
        """
        try:
            self._asked(owner, wait).result()
        except BaseException:
            self.give_back(owner)
            raise

    async def atake(self, owner: Hashable, *, wait: bool) -> None:
        """`take` for an event loop: waiting blocks nobody, and who is cancelled leaves no place taken."""
        try:
            await asyncio.wrap_future(self._asked(owner, wait))
        except BaseException:
            self.give_back(owner)
            raise

    def give_back(self, owner: Hashable) -> None:
        """Give an owner's place back, or wait for it no more; who has waited longest gets it."""
        with self._lock:
            self._taken.discard(owner)
            self._waiting.pop(owner, None)
            while self._waiting and len(self._taken) < self._max_waiting:
                first, place = self._waiting.popitem(last=False)
                if place.set_running_or_notify_cancel():
                    self._taken.add(first)
                    place.set_result(None)

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Raise this for all who wait, and for all who come from now on."""
        with self._lock:
            self._refusal = refusal
            waiting, self._waiting = self._waiting, OrderedDict()
        for place in waiting.values():
            if place.set_running_or_notify_cancel():
                place.set_exception(refusal())

    def _asked(self, owner: Hashable, wait: bool) -> Future[None]:
        """A future that is done once the place is there."""
        place: Future[None] = Future()
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            if len(self._taken) < self._max_waiting:
                self._taken.add(owner)
                place.set_result(None)
            elif wait:
                self._waiting[owner] = place
            else:
                raise QueueFull(self._max_waiting)
        return place
