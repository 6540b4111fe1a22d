"""The calls that read from one loaded model, so that it is freed after the last of them when another takes its place.

It knows neither models nor requests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock


class OpenCalls:
    """Counts calls from their first chunk to their last. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = 0
        self._then: Callable[[], object] | None = None

    @contextmanager
    def one_more(self) -> Generator[None]:
        """While one call reads."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
            self._act_on_none()

    def after_the_last(self, then: Callable[[], object]) -> None:
        """Do something once no call is open: now, or when the last ends, in its thread."""
        with self._lock:
            self._then = then
        self._act_on_none()

    def _act_on_none(self) -> None:
        with self._lock:
            then = None if self._open else self._then
            if then is not None:
                self._then = None
        if then is not None:
            then()
