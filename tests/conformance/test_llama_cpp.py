"""LlamaCppLLM keeps the contract."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


class TestLlamaCpp(BackendContract):
    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load("llama_cpp:", n_threads=1, **params)
