"""The progress line: on a terminal where asked for, and never in the way."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest
from tqdm import tqdm

from llmkit import BaseLLM, GenerationParams, Request
from llmkit.errors import GenerationError, ParameterError
from llmkit.testing import ScriptedLLM


class Terminal:
    """A pseudo-terminal of 80 columns in the place of stderr, and what was written to it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stderr = os.fdopen(slave, "w", encoding="utf-8")
        self._written: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self.master, 4096):
                self._written.append(piece)
        except OSError:
            return

    def text(self) -> str:
        """All that was written; nothing can be written after."""
        self.stderr.close()
        self._reader.join(10)
        return b"".join(self._written).decode()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    shown = Terminal()
    yield shown
    shown.stderr.close()
    os.close(shown.master)


class Plain(BaseLLM):
    """A model that only runs."""

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        return f"{task} and more"


TASKS = ["one", "two", "three"]
REQUESTS = [Request(task, GenerationParams(n=2, temperature=1.0)) for task in TASKS]
WAYS: dict[str, Callable[..., Any]] = {
    "batch_run": lambda **how: ScriptedLLM("a b c").batch_run(TASKS, **how),
    "abatch_run": lambda **how: asyncio.run(ScriptedLLM("a b c").abatch_run(TASKS, **how)),
    "complete_batch": lambda **how: ScriptedLLM("a b c").complete_batch(REQUESTS, **how),
    "acomplete_batch": lambda **how: asyncio.run(ScriptedLLM("a b c").acomplete_batch(REQUESTS, **how)),
    "plain batch_run": lambda **how: Plain().batch_run(TASKS, **how),
    "plain abatch_run": lambda **how: asyncio.run(Plain().abatch_run(TASKS, **how)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_terminal_shows_requests_tokens_a_second_and_the_time_left(
    way: str, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with redirect_stderr(terminal.stderr):
        WAYS[way](progress=True)
    first, last = (lines := terminal.text().split("\r"))[1], lines[-2]
    assert "0/3 requests [00:00<?" in first
    assert "100%" in last
    assert "3/3 requests [00:00<00:00, " in last
    assert "tokens/s]" in last
    assert max(len(line) for line in lines) <= 80
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_shown_unless_asked_for(way: str, terminal: Terminal) -> None:
    with redirect_stderr(terminal.stderr):
        WAYS[way]()
    assert terminal.text() == ""


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_shown_where_there_is_no_terminal(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    WAYS[way](progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_program_without_a_stderr_runs_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert ScriptedLLM("ok").batch_run(TASKS, progress=True) == ["ok"] * 3


class Leaving(Plain):
    """The terminal goes away with the second task."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        if task == "two":
            full = os.open("/dev/full", os.O_WRONLY)  # every write fails from here on
            os.dup2(full, self.terminal.stderr.fileno())
            os.close(full)
            time.sleep(0.15)  # longer than the line is left as it is
        return f"{task}!"


def _show_a_bar_elsewhere() -> None:
    """All bars of a process share one lock, also those of other libraries."""
    elsewhere = threading.Thread(target=lambda: list(tqdm(range(3), file=io.StringIO())), daemon=True)
    elsewhere.start()
    elsewhere.join(10)
    assert not elsewhere.is_alive()


def test_a_terminal_that_goes_away_does_not_stop_the_batch(terminal: Terminal) -> None:
    tasks = ["one", "two", *(f"task {n}" for n in range(300))]
    with redirect_stderr(terminal.stderr):
        assert Leaving(terminal).batch_run(tasks, progress=True) == [f"{task}!" for task in tasks]
    _show_a_bar_elsewhere()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, terminal.stderr.fileno())  # what is still buffered has somewhere to go
    os.close(null)


def test_a_batch_that_fails_ends_its_line_and_raises(terminal: Terminal) -> None:
    with redirect_stderr(terminal.stderr), pytest.raises(GenerationError):
        ScriptedLLM("a b", fail_on="b").batch_run(TASKS, progress=True)
    assert "0/3 requests" in (text := terminal.text())
    assert text.endswith("\n")


@pytest.mark.parametrize("bad", [1, "yes", None])
def test_progress_is_a_flag(bad: Any) -> None:
    for llm in (Plain(), ScriptedLLM()):
        with pytest.raises(ParameterError, match="progress must be true or false"):
            llm.batch_run(TASKS, progress=bad)
