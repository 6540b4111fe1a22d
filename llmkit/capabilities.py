"""What a backend honours, declared once and checked before any request runs.

It knows parameter names and nothing about how a backend applies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmkit.errors import ParameterError, UnsupportedFeature, UnsupportedParameter
from llmkit.params import SPECS, GenerationParams
from llmkit.structured import KINDS, Constraint

ALL_PARAMS: frozenset[str] = frozenset(SPECS)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A backend's promise.

    Attributes:
        params: parameters that change its generations.
        streaming: text arrives while it is generated.
        batching: several requests run together.
        tools: tool schemas reach the model.
        structured: kinds of constraints that its texts keep to: `schema`, `regex`, `choice`, `grammar`.
        bounded_queue: only so many requests wait, and who hands one in may ask not to: `when_full`.
        reproducible: where seeded requests give the same bits: `batched` in any company, `alone` because they are run
            singly, `no` where a server decides.
    """

    params: frozenset[str] = frozenset()
    streaming: bool = False
    batching: bool = False
    tools: bool = False
    structured: frozenset[str] = frozenset()
    bounded_queue: bool = False
    reproducible: Literal["batched", "alone", "no"] = "no"

    def __post_init__(self) -> None:
        unknown = sorted(self.params - ALL_PARAMS)
        if unknown:
            raise ParameterError(f"capabilities name unknown parameters: {', '.join(unknown)}")
        unknown = sorted(self.structured - set(KINDS))
        if unknown:
            raise ParameterError(f"capabilities name unknown kinds of structured output: {', '.join(unknown)}")

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

    def check_features(self, *, tools: bool, constraint: Constraint | None, backend: str) -> None:
        """Refuse tools and structured output where they cannot be had.

        Raises:
            UnsupportedFeature: for the first of them.
        """
        if tools and not self.tools:
            raise UnsupportedFeature(f"the {backend} backend cannot pass tools to the model")
        if constraint is not None and constraint.kind not in self.structured:
            can = f"only {', '.join(sorted(self.structured))}" if self.structured else "no structured output"
            raise UnsupportedFeature(f"the {backend} backend cannot keep a text to a {constraint.kind}; it has {can}")
