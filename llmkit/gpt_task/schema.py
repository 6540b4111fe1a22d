"""The JSON schema of GPT tasks, made from the wire shapes.

It reads no file; `tools/schema.py` writes what is made here into `schema.json`.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from llmkit.wire import GPTTask, GPTTaskResponse, GPTTaskStreamChunk

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One document, draft 2020-12, that a task validates against.

    A response validates against its `#/$defs/GPTTaskResponse`, a piece of a stream against
    `#/$defs/GPTTaskStreamChunk`.
    """
    _, schema = models_json_schema(
        [(GPTTask, "validation"), (GPTTaskResponse, "serialization"), (GPTTaskStreamChunk, "serialization")]
    )
    return {"$schema": DIALECT, "title": "GPT task", "$ref": "#/$defs/GPTTask", "$defs": schema["$defs"]}
