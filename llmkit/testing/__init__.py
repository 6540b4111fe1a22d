"""What the tests of an application or of a backend need: a model without weights, and what every backend must do.

Nothing in llmkit outside this package imports it, but for `llmkit backends --check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit.testing.scripted import ScriptedLLM, characters, words

if TYPE_CHECKING:
    from llmkit.testing.contract import BackendContract

__all__ = ["BackendContract", "ScriptedLLM", "characters", "words"]


def __getattr__(name: str) -> Any:
    """`BackendContract` is imported when it is asked for: it needs pytest, which applications need not have."""
    if name != "BackendContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite("llmkit.testing.contract")
    from llmkit.testing.contract import BackendContract

    return BackendContract
