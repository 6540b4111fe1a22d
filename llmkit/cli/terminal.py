"""What the commands share of the terminal: reading an argument, writing data, and a word while something takes long.

It knows neither commands nor models.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer
from rich.console import Console


def emit(text: str) -> None:
    """Write data to stdout at once, so that a reader sees a stream as it comes, and a reader that left ends it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def emit_json(value: object, *, compact: bool = False) -> None:
    """Write a value as JSON: indented, or on one line."""
    emit(json.dumps(value, ensure_ascii=False, indent=None if compact else 2) + "\n")


def say(words: str) -> None:
    """Write a line for the person to stderr."""
    print(words, file=sys.stderr, flush=True)


def read_stdin(hint: str) -> str:
    """Everything on stdin.

    Raises:
        typer.BadParameter: it is not UTF-8.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"stdin is not UTF-8 text: {error}", param_hint=hint) from error


def read_source(name: str, hint: str) -> str:
    """The text of a file, or of stdin for `-`.

    Raises:
        typer.BadParameter: it cannot be read, or is not UTF-8.
    """
    if name == "-":
        return read_stdin(hint)
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"cannot read {name!r}: {error.strerror}", param_hint=hint) from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name!r} is not UTF-8 text: {error}", param_hint=hint) from error


@contextmanager
def working(words: str) -> Generator[Callable[[], None]]:
    """Show words on stderr while the block runs, if a terminal is there to show them.

    Yields:
        A function that takes the words away early; calling it twice is harmless.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with Console(stderr=True).status(words) as status:
        yield status.stop


def speak_utf8() -> None:
    """UTF-8 on all three streams, whatever the locale; a terminal on Windows has its own way and is left alone."""
    streams: tuple[TextIO, ...] = (sys.stdin, sys.stdout, sys.stderr)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not (os.name == "nt" and stream.isatty()):
            # A stray byte that is typed is no reason to end a conversation; in a file it is an error.
            stream.reconfigure(encoding="utf-8", errors="replace" if stream.isatty() else "strict")


def flush_stdout() -> None:
    """Hand over what is buffered; a reader that has left (`| head`) is no reason for Python to complain at its exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
