"""How structured output is asked for over HTTP: the fields of a body, by server and kind of constraint.

The server does the work; nothing is compiled here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from llmkit.structured import Constraint, Kind

Writers: TypeAlias = Mapping[Kind, Callable[[Constraint], dict[str, Any]]]

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST_NAME = 64


def _as_json_schema(constraint: Constraint) -> dict[str, Any]:
    """OpenAI's own way. Not every server keeps to a schema that is not called strict."""
    name = _NOT_IN_NAMES.sub("_", constraint.name)[:_LONGEST_NAME] or "text"
    json_schema = {"name": name, "schema": constraint.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def _as_json_object(constraint: Constraint) -> dict[str, Any]:
    return {"response_format": {"type": "json_object", "schema": constraint.schema}}


AS_RESPONSE_FORMAT: Writers = {"schema": _as_json_schema}
AS_OBJECT: Writers = {"schema": _as_json_object}
# https://docs.vllm.ai/en/latest/features/structured_outputs/. Which dialect of grammar it reads depends on its backend.
AS_STRUCTURED_OUTPUTS: Writers = {
    "schema": lambda constraint: {"structured_outputs": {"json": constraint.schema}},
    "regex": lambda constraint: {"structured_outputs": {"regex": constraint.source}},
    "choice": lambda constraint: {"structured_outputs": {"choice": list(constraint.choices)}},
}
