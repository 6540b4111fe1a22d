"""The example of a third party's backend, found through its entry point, keeps the contract; the CLI says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract


class TestMarkov(BackendContract):
    prompts = ("the model ", "a call ", "an error ")
    n_tokens = 16

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load("markov:", **params)


def checked(name: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("llmkit"), "backends", "--check", name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_checks_an_installed_backend() -> None:
    done = checked("markov")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_command_line_names_an_unknown_backend() -> None:
    done = checked("markow")
    assert done.returncode == 2
    assert "markow" in done.stderr
