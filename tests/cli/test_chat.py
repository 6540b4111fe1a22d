"""The chat as a process, behind a pipe and at a pseudo-terminal."""

import contextlib
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import LLMKIT, Run

SCRIPTED = ["-m", "scripted:x"]
CTRL_C, CTRL_D = b"\x03", b"\x04"


def test_behind_a_pipe_stdout_is_the_answers_alone(llmkit: Run) -> None:
    process = llmkit("chat", *SCRIPTED, stdin="a\nb\n")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "you said a é😀\nyou said b é😀\n"


def test_behind_a_pipe_commands_work_and_words_go_to_stderr(llmkit: Run, tmp_path: Path) -> None:
    process = llmkit("chat", *SCRIPTED, "--system", "be kind", stdin="a\n/helpp\n/save chat.jsonl\n/exit\nb\n")
    assert (process.returncode, process.stdout) == (0, "you said a é😀\n")
    assert "did you mean '/help'?" in process.stderr
    assert len((tmp_path / "chat.jsonl").read_text().splitlines()) == 3


def test_behind_a_pipe_a_failed_turn_shows_in_the_exit_code(llmkit: Run) -> None:
    process = llmkit("chat", *SCRIPTED, stdin="BOOM\na\n")
    assert process.returncode == 1
    assert process.stderr == "error: scripted to fail on 'BOOM'\n"
    assert process.stdout.endswith("you said a é😀\n"), "the turns after it are answered"


class Terminal:
    """A process at a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        # The first of a session to open a terminal owns it: only then does typing Ctrl-C send the signal.
        shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave)]
        self.process = subprocess.Popen([*shell, *arguments], env=environment, cwd=folder, start_new_session=True)
        self._slave = slave
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def wait_for(self, pattern: bytes, timeout_s: float = 60) -> bytes:
        """What was shown up to the end of the pattern; it is not looked at again."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come, only {self.seen!r}"
            self.seen += os.read(self._master, 4096)
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def chat(environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal([LLMKIT, "chat", *SCRIPTED, "-p", "pause_s=0.1"], environment, tmp_path)
    terminal.wait_for(rb"/help.*\r\n")
    terminal.wait_for(rb"> $")
    yield terminal
    terminal.close()


def test_ctrl_c_during_an_answer_drops_the_turn_and_returns_to_the_prompt(chat: Terminal, tmp_path: Path) -> None:
    chat.type(b"count\r")
    chat.wait_for(rb"one two")
    chat.type(CTRL_C)
    shown = chat.wait_for(rb"\(dropped\)\r\n> ")
    assert b"ten" not in shown
    chat.type(b"hi\r")
    chat.wait_for(rb"you said hi.*\r\n> ")
    chat.type(b"/save chat.jsonl\r")
    chat.wait_for(rb"saved 2 messages.*\r\n> ")
    assert "count" not in (tmp_path / "chat.jsonl").read_text()
    chat.type(CTRL_D)
    assert chat.process.wait(timeout=30) == 0


def interrupt(chat: Terminal, has_worked: Callable[[], object]) -> None:
    """Type Ctrl-C; again after a while, for Python's line editor loses a signal that comes just before it waits."""
    for _ in range(6):
        time.sleep(0.2)
        chat.type(CTRL_C)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            has_worked()
            return
    raise AssertionError(f"Ctrl-C did nothing, only {chat.seen!r} was shown")


def test_ctrl_c_takes_back_what_was_typed_and_on_an_empty_line_leaves(chat: Terminal) -> None:
    chat.type(b"never sent")
    chat.wait_for(rb"never sent")
    interrupt(chat, lambda: chat.wait_for(rb"> ", timeout_s=5))
    chat.type(b"hi\r")
    chat.wait_for(rb"you said hi.*\r\n> ")
    interrupt(chat, lambda: chat.process.wait(timeout=5))
    assert chat.process.returncode == 0


def test_an_error_at_the_terminal_is_shown_and_the_chat_goes_on(chat: Terminal) -> None:
    chat.type(b"BOOM\r")
    chat.wait_for(rb"error: scripted to fail on 'BOOM'\r\n> ")
    chat.type(b"hi\r")
    chat.wait_for(rb"you said hi.*\r\n> ")
    chat.type(b"/exit\r")
    assert chat.process.wait(timeout=30) == 0


def test_the_prompt_does_not_go_into_a_redirected_stdout(environment: dict[str, str], tmp_path: Path) -> None:
    command = f"exec {LLMKIT} chat -m scripted:x > answers"
    terminal = Terminal(["sh", "-c", command], environment, tmp_path)
    terminal.wait_for(rb"> $")
    terminal.type(b"hi\r")
    terminal.wait_for(rb"> $")
    terminal.type(CTRL_D)
    assert terminal.process.wait(timeout=30) == 0
    assert (tmp_path / "answers").read_text(encoding="utf-8") == "you said hi é😀\n"
    terminal.close()


def test_the_embedded_model_answers_in_a_chat(llmkit: Run) -> None:
    process = llmkit("chat", stdin="What is the capital of France?\n")
    assert (process.returncode, process.stderr) == (0, "")
    assert "Paris" in process.stdout
