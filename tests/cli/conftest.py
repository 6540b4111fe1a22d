"""The real command in processes of its own, and a scripted backend that it finds through a real entry point."""

import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

LLMKIT = str(Path(sysconfig.get_path("scripts")) / "llmkit")

PLUGIN = """
import warnings

from llmkit.testing import ScriptedLLM


def answer(prompt):
    if prompt == "bug":
        raise RuntimeError("not an error of llmkit")
    if prompt == "warn":
        warnings.warn("mind the gap")
    if prompt == "count":
        return "one two three four five six seven eight nine ten"
    return [f"you said {prompt} \\u00e9\\U0001f600", "another answer"]


class Scripted(ScriptedLLM):
    def __init__(self, model_name=None, *, pause_s=0.0, **params):
        super().__init__(answer, model_name=model_name or "scripted", delay_s=pause_s, fail_on="BOOM", **params)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables under which the command finds the backend `scripted`."""
    folder = tmp_path / "plugin"
    info = folder / "scripted_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmkit.backends]\nscripted = scripted_plugin:Scripted\n")
    (folder / "scripted_plugin.py").write_text(PLUGIN, encoding="utf-8")
    # A locale that knows no accents: the command speaks UTF-8 all the same.
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "100"}


@pytest.fixture
def llmkit(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs `llmkit` to its end; stdin is empty unless `stdin` is given."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LLMKIT, *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**environment, **variables},
            timeout=120,
        )

    return run
