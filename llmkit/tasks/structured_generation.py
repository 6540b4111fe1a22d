"""StructuredGeneration: an instruction in, JSON of a given shape out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmkit.errors import InvalidRequest
from llmkit.structured import Constraint
from llmkit.tasks.messages import system_message, user_message
from llmkit.tasks.step import Columns, Row
from llmkit.tasks.task import ChatType, Task


class StructuredGeneration(Task):
    """JSON that satisfies a schema.

    Reads `instruction` and, where a row has it, `system_prompt`. Writes `generation`: the JSON as Python holds it. The
    backend keeps the text to the schema where it can; elsewhere the schema is asked for. It is checked in any case.

    Attributes:
        schema: a JSON schema, as a dictionary or a string, or a type that pydantic can read.
        system_prompt: for rows that have none of their own.
    """

    schema: Any
    system_prompt: str | None = None

    @property
    def inputs(self) -> Columns:
        """`instruction`; `system_prompt` is optional."""
        return {"instruction": True, "system_prompt": False}

    @property
    def outputs(self) -> Columns:
        """`generation`."""
        return ["generation", "model_name"]

    def check(self) -> None:
        """The schema must be one.

        Raises:
            InvalidConstraint: it is not.
        """
        self._constraint = _schema(self.schema)

    def format_input(self, input: Row) -> ChatType:
        """The instruction; below it the schema, where the backend does not keep to it by itself."""
        system = system_message(input.get("system_prompt") or self.system_prompt)
        asked = user_message(input["instruction"])
        if not self.request_fields(input):
            asked["content"] += f"\n\nAnswer with JSON alone that satisfies this schema: {self._constraint.source}"
        return [*system, asked]

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """The schema, where the backend can keep to it."""
        return self.constraint("schema", self.schema)

    def format_output(self, output: str | None, input: Row) -> Row:
        """The JSON, also out of a fenced block.

        Raises:
            StructuredOutputInvalid: it is none, or does not satisfy the schema.
        """
        text = _unfenced(output or "")
        self._constraint.parse(text)
        return {"generation": json.loads(text)}


def _schema(schema: Any) -> Constraint:
    constraint = Constraint.of(schema=schema)
    if constraint is None:
        raise InvalidRequest("schema must be a JSON schema or a type, got None")
    return constraint


def _unfenced(text: str) -> str:
    """The contents of a Markdown code block, where the text is one."""
    text = text.strip()
    if not text.startswith("```") or not text.endswith("```"):
        return text
    return text.removesuffix("```").partition("\n")[2].strip()
