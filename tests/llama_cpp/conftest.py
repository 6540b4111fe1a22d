"""The embedded GGUF, loaded once; nothing is collected where llama-cpp-python is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("llama_cpp") is None else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/llama_cpp/" in item.path.as_posix():
            item.add_marker(pytest.mark.llama_cpp)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower with two threads, and much slower on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmkit_llama_cpp.llm.default_threads", lambda: 1)
        yield


@pytest.fixture(scope="package")
def llm(one_thread: None) -> Iterator[Any]:
    """The embedded model, shared by all tests that do not change it."""
    from llmkit_llama_cpp import LlamaCppLLM

    with LlamaCppLLM() as shared:
        yield shared
