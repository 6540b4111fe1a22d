"""A line on stderr while a batch runs: finished requests, tokens a second, and the time left.

It is there only where a person can see it, on a terminal. What a request is, and where tokens come from, is unknown.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, cast

from tqdm import tqdm

from llmkit.errors import ParameterError

_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} requests [{elapsed}<{remaining}{postfix}]"


class BatchProgress:
    """Shows how far a batch has come, inside its `with` block. One thread uses it.

    The time left is the time so far, scaled by the share of requests that are not finished.

    Args:
        n_requests: how many there are.
        wanted: whether anything is shown at all; on what is no terminal nothing is, in any case.

    Raises:
        ParameterError: `wanted` is no flag.
    """

    def __init__(self, n_requests: int, *, wanted: bool) -> None:
        if not isinstance(wanted, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"progress must be true or false, got {wanted!r}")
        self._n_requests, self._n_tokens, self._started = n_requests, 0, time.perf_counter()
        self._bar = self._new_bar() if wanted and _is_terminal() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.close()
            except OSError:
                return

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees what is added."""
        return self._bar is not None

    def add(self, *, n_tokens: int = 0, n_finished: int = 0) -> None:
        """Count what came; the line is written anew ten times a second at most."""
        if self._bar is None:
            return
        self._n_tokens += n_tokens
        try:
            self._bar.set_postfix_str(self._speed(), refresh=False)
            self._bar.update(n_finished)
        except OSError:
            self._bar.disable = True  # the terminal has gone, and the batch is worth more than its line
            self._bar = None

    def _speed(self) -> str:
        """Tokens a second from the beginning; nothing where no tokens are counted."""
        return f"{self._n_tokens / (time.perf_counter() - self._started):.0f} tokens/s" if self._n_tokens else ""

    def _new_bar(self) -> Any:
        # Smoothing over the last requests would jump: those that run together end together.
        options = {"smoothing": 0, "miniters": 0, "dynamic_ncols": True, "bar_format": _FORMAT}
        return cast("Any", tqdm)(total=self._n_requests, file=sys.stderr, **options)


def _is_terminal() -> bool:
    """Whether stderr is one; a program without a console may have no stderr at all."""
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]
