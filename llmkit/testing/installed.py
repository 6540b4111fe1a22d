"""The conformance kit on the model that the environment names: what `llmkit backends --check` lets pytest collect."""

from __future__ import annotations

import os
from typing import Any

from llmkit.backend import BackendLLM
from llmkit.registry import load
from llmkit.testing import BackendContract
from llmkit.testing.check import MODEL_VARIABLE


class TestInstalledBackend(BackendContract):
    """Inherits every test."""

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        """Another object of the model."""
        return load(os.environ[MODEL_VARIABLE], **params)
