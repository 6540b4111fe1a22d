"""`llmkit run`: one prompt, one answer.

It knows how an answer is printed, and leaves everything about the model to the shared options.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import ModelOptions, open_model, takes_model_options
from llmkit.cli.terminal import emit, emit_json, read_stdin

if TYPE_CHECKING:
    from llmkit.base import BaseLLM
    from llmkit.types import Completion


@takes_model_options
def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads stdin.", show_default=False)],
    *,
    options: ModelOptions,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print the answer as it comes; on for a single choice.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole completion as JSON.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Pass the prompt on without the chat template.")] = False,
) -> None:
    """Answer one prompt."""
    if as_json and stream:
        raise typer.BadParameter("--json prints one whole object and cannot stream", param_hint="'--stream'")
    text, values = _prompt(prompt), options.values()
    with open_model(options.model, values) as llm:
        if as_json:
            emit_json(as_record(llm.complete(text, raw=raw)))
        elif stream or (stream is None and llm.params.n == 1):
            print_stream(llm, text, raw=raw)
        else:
            emit("".join(f"{choice.text}\n" for choice in llm.complete(text, raw=raw).choices))


def print_stream(llm: BaseLLM, prompt: str, *, raw: bool) -> None:
    """Print an answer piece by piece, and end the line."""
    for piece in llm.stream(prompt, raw=raw):
        emit(piece)
    emit("\n")


def as_record(completion: Completion) -> dict[str, Any]:
    """A completion as JSON takes it: only the parameters that were set, and messages in their dictionary form."""
    return {
        "text": completion.text,
        "choices": [asdict(choice) for choice in completion.choices],
        "usage": {**asdict(completion.usage), "total_tokens": completion.usage.total_tokens},
        "timings": asdict(completion.timings),
        "params": dict(completion.params),
        "fingerprint": completion.fingerprint,
        "dropped_messages": [message.to_dict() for message in completion.dropped_messages],
        "inert": completion.inert,
    }


def _prompt(argument: str) -> str:
    """The prompt; the line end that a shell's `echo` adds to stdin is not part of it.

    Raises:
        typer.BadParameter: it is empty.
    """
    text = argument if argument != "-" else read_stdin("'PROMPT'").removesuffix("\n").removesuffix("\r")
    if not text:
        raise typer.BadParameter("must not be empty", param_hint="'PROMPT'")
    return text
