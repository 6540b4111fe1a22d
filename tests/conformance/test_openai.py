"""OpenAILLM keeps the contract, with a real server on loopback: llama-cpp-python's, with the embedded GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract
from tests.conformance import embedded
from tests.openai.conftest import serving_llama_cpp

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


class TestOpenAI(BackendContract):
    url: ClassVar[str]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("llama_cpp")
        for cls.url in serving_llama_cpp(folder, embedded.as_gguf(folder / "tools.gguf")):
            yield

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load(f"{cls.url}#tiny", server="llama-cpp-python", **params)
