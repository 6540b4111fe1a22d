"""The example of a third party's backend, found through its entry point, keeps the contract; the CLI says so."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "custom_backend"


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


def test_the_guide_quotes_the_example_as_it_is() -> None:
    guide = (ROOT / "docs" / "guides" / "write-a-backend.md").read_text(encoding="utf-8")
    module, tests = ((EXAMPLE / name).read_text(encoding="utf-8") for name in ("llmkit_markov.py", "test_markov.py"))
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    methods = [block for block in blocks if block.startswith("def ")]
    assert len(methods) == 3
    assert all(textwrap.indent(method, "    ") in module for method in methods)
    assert sum(block in tests for block in blocks) == 1
