"""Tiny models on disk and loaded, built once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit_transformers import TransformersLLM
from tests import tiny_models


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of 32 columns are slower with two threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a family's plain model, built at first use."""
    root, built = tmp_path_factory.mktemp("models"), {}

    def folder(family: str = "llama") -> Path:
        if family not in built:
            built[family] = tiny_models.build(root / family, family)
        return built[family]

    return folder


@pytest.fixture(scope="package")
def loaded(model_folder: Callable[..., Path], one_thread: None) -> Iterator[Callable[..., TransformersLLM]]:
    """A family's plain model, shared by all tests that do not change it."""
    ready: dict[str, TransformersLLM] = {}

    def load(family: str = "llama") -> TransformersLLM:
        if family not in ready:
            ready[family] = TransformersLLM(str(model_folder(family)))
        return ready[family]

    yield load
    for llm in ready.values():
        llm.close()


@pytest.fixture(scope="package")
def llm(loaded: Callable[..., TransformersLLM]) -> TransformersLLM:
    """The shared Llama."""
    return loaded("llama")


class ForwardCounter:
    """Counts a model's forward calls, and can hold them at a gate."""

    def __init__(self, llm: TransformersLLM) -> None:
        self.n_calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.first = threading.Event()
        self._handle = llm.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.n_calls += 1
        self.first.set()
        assert self.gate.wait(60)

    def remove(self) -> None:
        self.gate.set()
        self._handle.remove()


@pytest.fixture
def forwards(llm: TransformersLLM) -> Iterator[ForwardCounter]:
    counter = ForwardCounter(llm)
    yield counter
    counter.remove()
