"""LlamaCppLLM keeps the contract."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract
from tests.conformance import embedded

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


class TestLlamaCpp(BackendContract):
    file: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def built(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.file = embedded.as_gguf(tmp_path_factory.mktemp("models") / "tools.gguf")

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load(str(cls.file), n_threads=1, **params)
