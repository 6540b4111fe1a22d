"""`llmkit task`: a GPT task in, its response out, both as JSON.

It knows where the JSON comes from and goes; what a task may say is checked where it is parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

# `run_task` is resolved when it is used: it needs pydantic, and `llmkit --help` does not.
import llmkit
from llmkit.cli.terminal import emit_json, read_source, working

if TYPE_CHECKING:
    from llmkit.wire import GPTTaskStreamChunk


def task(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The task's JSON; - reads stdin.", show_default=False)],
    stream: Annotated[bool, typer.Option("--stream", help="Print a line of JSON for each piece as it comes.")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Print the response on one line.")] = False,
) -> None:
    """Run a GPT task and print its response."""
    text = read_source(file, "'FILE'")
    if stream:
        print_pieces(text)
    else:
        with working("Running the task ..."):
            response = llmkit.run_task(text)
        emit_json(response.model_dump(mode="json"), compact=compact)


def print_pieces(task_json: str) -> None:
    """Run a task and print each piece of its response on a line of its own."""
    with working("Loading the model ...") as loaded:

        def print_piece(piece: GPTTaskStreamChunk) -> None:
            loaded()
            emit_json(piece.model_dump(mode="json"), compact=True)

        llmkit.run_task(task_json, stream_callback=print_piece)
