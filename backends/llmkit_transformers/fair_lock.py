"""A lock that goes round: who waits longest has it next, and who holds it long can let the others in between.

It knows nothing of models; a step of the engine and a step of `model.generate` take turns by it.
"""

from __future__ import annotations

from collections import deque
from threading import Lock


class FairLock:
    """A lock, for `with`; not reentrant. Threads get it in the order in which they ask."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._is_held = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return
            own = Lock()
            own.acquire()
            self._waiting.append(own)
        own.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False

    def let_others(self) -> None:
        """Called by the holder: let whoever waits now have a turn each; returns as the holder again."""
        if self._waiting:
            self.__exit__()
            self.__enter__()
