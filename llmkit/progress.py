"""A line on stderr while long work runs, and what it says of a batch: finished requests, tokens a second, time left.

It is there only where a person can see it, on a terminal. What a request is, and where tokens come from, is unknown.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

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
        # Smoothing over the last requests would jump: those that run together end together.
        options = {"smoothing": 0, "miniters": 0, "dynamic_ncols": True, "bar_format": _FORMAT}
        self._bar = new_bar(total=n_requests, **options) if wanted and is_terminal() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees what is added."""
        return self._bar is not None

    def add(self, *, n_tokens: int = 0, n_finished: int = 0) -> None:
        """Count what came; the line is written anew ten times a second at most."""
        if self._bar is None:
            return
        self._n_tokens += n_tokens
        self._bar.set_postfix_str(self._speed(), refresh=False)
        self._bar.update(n_finished)

    def _speed(self) -> str:
        """Tokens a second from the beginning; nothing where no tokens are counted."""
        return f"{self._n_tokens / (time.perf_counter() - self._started):.0f} tokens/s" if self._n_tokens else ""


class _LossyFile:
    """A text file that drops what cannot be written, for a terminal may go away and the work is worth more than a line.

    tqdm must not see such an error: it would keep its lock, which all bars of the process share, and the next one of
    any library would wait for ever.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def new_bar(**options: Any) -> Any:
    """A bar on stderr that outlives its terminal.

    Args:
        options: tqdm's.
    """
    return cast("Any", tqdm)(file=_LossyFile(sys.stderr), **options)


def is_terminal() -> bool:
    """Whether stderr is one; a program without a console may have no stderr at all."""
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]
