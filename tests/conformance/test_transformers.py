"""TransformersLLM keeps the contract on both of its routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.testing import BackendContract
from tests.conformance import embedded


class TestEngine(BackendContract):
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def built(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = embedded.as_folder(tmp_path_factory.mktemp("models") / "tools")

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return llmkit.load(str(cls.folder), **params)


class TestGenerate(TestEngine):
    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        return super().load(engine=False, **params)
