"""`llmkit chat`: a conversation at the terminal, or with a script on the other side of a pipe.

It joins the terminal to a `ChatSession`, which does everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import typer

from llmkit.cli.chat_session import ChatSession
from llmkit.cli.options import ModelOptions, open_model, takes_model_options
from llmkit.cli.terminal import emit, say
from llmkit.registry import EMBEDDED_MODEL

PROMPT = "> "


@takes_model_options
def chat(*, options: ModelOptions) -> None:
    """Talk with a model; /help lists what else can be typed."""
    values = options.values()
    system = values.pop("system_prompt", None)
    at_terminal = sys.stdin.isatty()
    with open_model(options.model, values) as llm:
        if at_terminal:
            say(f"{options.model or EMBEDDED_MODEL}: /help lists the commands, Ctrl-D leaves.")
        session = ChatSession(llm, terminal_reader() if at_terminal else input, emit, say, system)
        session.converse()
    # A person has seen what failed; a script learns it from the exit code.
    if session.n_failed and not at_terminal:
        raise typer.Exit(1)


def terminal_reader() -> Callable[[], str]:
    """A reader that shows a prompt, with line editing where the platform has it.

    Ctrl-C takes back what was typed so far; where nothing was, the reader raises KeyboardInterrupt.
    """
    typed = _start_line_editing()

    def read() -> str:
        while True:
            try:
                return _ask()
            except EOFError:
                say("")
                raise
            except KeyboardInterrupt:
                say("")
                if not typed():
                    raise

    return read


def _ask() -> str:
    """The next line; its prompt is for the person, so it never goes into a redirected stdout."""
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def _start_line_editing() -> Callable[[], str]:
    """Make `input` edit and remember lines; returns a function that tells what has been typed."""
    try:
        # Importing it is what changes `input`, hence only here; it does not exist on Windows.
        return import_module("readline").get_line_buffer
    except ImportError:
        return str
