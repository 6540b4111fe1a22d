"""TransformersLLM keeps the contract on both of its routes."""

from __future__ import annotations

from typing import Any

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract


class TestEngine(BackendContract):
    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load("transformers:", **params)


class TestGenerate(BackendContract):
    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load("transformers:", engine=False, **params)
