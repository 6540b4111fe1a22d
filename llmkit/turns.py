"""The turns of a conversation, one at a time, from threads and event loops alike.

What is said in a turn is unknown here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

from llmkit.errors import InvalidRequest

_RETRY_S = 0.005

_entered: ContextVar[tuple[object, ...]] = ContextVar("llmkit_turns", default=())
"""The turns that the code here runs for; a thread that `asyncio.to_thread` starts for them has them, too."""


class Turns:
    """Lets one turn in after another. A turn that waits for one it is part of would wait forever, and is refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: object | None = None

    @contextmanager
    def taken(self) -> Generator[None]:
        """A turn, once those before it are over.

        Raises:
            InvalidRequest: it is asked for from within a turn of the same conversation.
        """
        self._refuse_nested()
        with self._lock, self._marked():
            yield

    @asynccontextmanager
    async def ataken(self) -> AsyncGenerator[None]:
        """`taken` without blocking the event loop; waiting for it can be cancelled."""
        self._refuse_nested()
        while not self._lock.acquire(blocking=False):
            await asyncio.sleep(_RETRY_S)
        try:
            with self._marked():
                yield
        finally:
            self._lock.release()

    def _refuse_nested(self) -> None:
        if self._current in _entered.get():
            raise InvalidRequest(
                "a tool must not call chat of the object whose turn it serves, since either would wait for the other; "
                "use run, or another object"
            )

    @contextmanager
    def _marked(self) -> Generator[None]:
        """Make the turn known to all that runs for it; what outlives it, such as a task, is free afterwards."""
        before = _entered.get()
        self._current = object()
        _entered.set((*before, self._current))
        try:
            yield
        finally:
            # Set, not reset: a coroutine may be closed in another context than it ran in.
            _entered.set(before)
            self._current = None
