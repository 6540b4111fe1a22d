"""llmkit: one class for any language model.

Only names are here; each is imported when it is first used, so `import llmkit` loads no heavy package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from llmkit import errors
    from llmkit.backend import BackendLLM
    from llmkit.base import BaseLLM
    from llmkit.gpt_task import run_task
    from llmkit.params import GenerationParams
    from llmkit.registry import BackendInfo, available_backends, load
    from llmkit.types import Choice, Chunk, Completion, Message, Request, Usage

__all__ = [
    "BackendInfo",
    "BackendLLM",
    "BaseLLM",
    "Choice",
    "Chunk",
    "Completion",
    "GenerationParams",
    "Message",
    "Request",
    "Usage",
    "available_backends",
    "errors",
    "load",
    "run_task",
]

_HOME = {
    "BackendInfo": "registry",
    "BackendLLM": "backend",
    "BaseLLM": "base",
    "Choice": "types",
    "Chunk": "types",
    "Completion": "types",
    "GenerationParams": "params",
    "Message": "types",
    "Request": "types",
    "Usage": "types",
    "available_backends": "registry",
    "load": "registry",
    "run_task": "gpt_task",
}

logger.disable("llmkit")


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("llmkit.errors")
    if name == "__version__":
        return import_module("importlib.metadata").version("llmkit")
    if name not in _HOME:
        raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
    return getattr(import_module(f"llmkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
