"""What a backend honours, declared once and checked before any request runs.

It knows parameter names and nothing about how a backend applies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmkit.errors import ParameterError, UnsupportedParameter
from llmkit.params import SPECS, GenerationParams

ALL_PARAMS: frozenset[str] = frozenset(SPECS)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A backend's promise.

    Attributes:
        params: parameters that change its generations.
        streaming: text arrives while it is generated.
        batching: several requests run together.
        tools: tool schemas reach the model.
        reproducible: where seeded requests give the same bits: `batched` in any company, `alone` because they are run
            singly, `no` where a server decides.
    """

    params: frozenset[str] = frozenset()
    streaming: bool = False
    batching: bool = False
    tools: bool = False
    reproducible: Literal["batched", "alone", "no"] = "no"

    def __post_init__(self) -> None:
        unknown = sorted(self.params - ALL_PARAMS)
        if unknown:
            raise ParameterError(f"capabilities name unknown parameters: {', '.join(unknown)}")

    def unsupported(self, params: GenerationParams) -> tuple[str, ...]:
        """Parameters that are set to something, and that the backend cannot honour."""
        return tuple(name for name in params.effective() if name not in self.params)

    def check(self, params: GenerationParams, backend: str) -> None:
        """Refuse what cannot be honoured.

        Raises:
            UnsupportedParameter: for the first such parameter.
        """
        for name in self.unsupported(params):
            raise UnsupportedParameter(name, backend)
