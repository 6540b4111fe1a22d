"""A plug-in named `scripted`, installed the way any third party's is: a distribution with an entry point."""

from pathlib import Path
from types import ModuleType

import pytest

PLUGIN = '''
import threading
from typing import Any

from llmkit.errors import ModelDownloadError
from llmkit.testing import ScriptedLLM


class OutOfMemoryError(RuntimeError):
    """Carries the name of torch's own."""


LOADED: list[ScriptedLLM] = []
OPTIONS: list[dict[str, Any]] = []
USED = threading.Lock()


def answer(prompt):
    if prompt == "out of memory":
        raise OutOfMemoryError("no room for a tensor")
    if prompt == "host out of memory":
        raise MemoryError("no room at all")
    if prompt == "fail":
        raise KeyError("deep down")
    return ["\\n\\nParis is the capital.", "It is Paris.", "Paris, h\\u00e9llo \\U0001f600!"]


class Plugin(ScriptedLLM):
    def __init__(self, model_name, *, dtype=None, quantize_bits=None, **params):
        if model_name == "unreachable":
            raise ModelDownloadError("the hub could not be reached")
        with USED:
            OPTIONS.append({"dtype": dtype, "quantize_bits": quantize_bits})
            LOADED.append(self)
        super().__init__(answer, model_name=model_name, context_length=64, **params)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plug-in's module; `LOADED` and `OPTIONS` list what was loaded with what."""
    info = tmp_path / "scripted_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmkit.backends]\nscripted = scripted_plugin:Plugin\n")
    (tmp_path / "scripted_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "scripted_plugin", raising=False)
    import scripted_plugin  # pyright: ignore[reportMissingImports]

    return scripted_plugin
