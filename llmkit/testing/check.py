"""Runs the conformance kit on an installed backend, outside of any project.

What pytest collects is in `installed.py`; the name of the model reaches it through the environment.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from llmkit.errors import ExtraUnavailable

MODEL_VARIABLE = "LLMKIT_CHECK_MODEL"


def check(model: str) -> bool:
    """Whether a model's backend passes every test of the kit; pytest reports on stdout.

    Args:
        model: as `llmkit.load` takes it: `backend:` for the backend's default model, or `backend:model`.

    Raises:
        ExtraUnavailable: pytest is not installed.
    """
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise ExtraUnavailable("checking a backend", "pytest", "dev") from error
    # Neither files nor caches of the caller's project take part.
    isolated = ["-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib"]
    os.environ[MODEL_VARIABLE] = model
    try:
        with tempfile.TemporaryDirectory() as folder:
            tests = str(Path(__file__).with_name("installed.py"))
            sys.stdout.flush()
            return pytest.main([*isolated, f"--rootdir={folder}", "-q", tests]) == pytest.ExitCode.OK
    finally:
        del os.environ[MODEL_VARIABLE]
