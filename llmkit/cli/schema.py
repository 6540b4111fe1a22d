"""`llmkit schema`: the JSON schemas of the GPT task.

It prints the document that the package ships; what the document says is made in `llmkit.gpt_task`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from importlib.resources import files
from typing import Annotated

import typer

from llmkit.cli.terminal import emit_json


class Shape(StrEnum):
    """What a schema describes."""

    REQUEST = "request"
    RESPONSE = "response"
    CHUNK = "chunk"


_ROOTS = {
    Shape.REQUEST: ("GPTTask", "GPT task"),
    Shape.RESPONSE: ("GPTTaskResponse", "GPT task response"),
    Shape.CHUNK: ("GPTTaskStreamChunk", "GPT task stream chunk"),
}


def schema(
    shape: Annotated[Shape, typer.Argument(help="The task, its response, or a piece of a stream.")] = Shape.REQUEST,
) -> None:
    """Print the JSON schema of GPT tasks."""
    document = json.loads((files("llmkit") / "gpt_task" / "schema.json").read_text(encoding="utf-8"))
    definition, title = _ROOTS[shape]
    emit_json({**document, "title": title, "$ref": f"#/$defs/{definition}"})
