"""The `llmkit` command: its table of commands, and what the process says when one of them fails.

Owns exit codes, error lines and warnings. What a command does is in the command's own file. Nothing here or there
imports a heavy library before a command needs it: `llmkit` resolves its names lazily.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer

from llmkit.cli.backends import backends
from llmkit.cli.batch import batch
from llmkit.cli.chat import chat
from llmkit.cli.pipeline import pipeline_commands
from llmkit.cli.prepare import prepare
from llmkit.cli.run import run
from llmkit.cli.schema import schema
from llmkit.cli.task import task
from llmkit.cli.terminal import flush_stdout, say, speak_utf8
from llmkit.errors import LLMKitError, ParameterError, PipelineError, UnknownBackend, UnknownDevice, UnknownParameter

COMMANDS = (run, task, chat, batch, prepare, backends, schema)
WRONG_USAGE = (ParameterError, PipelineError, UnknownBackend, UnknownDevice, UnknownParameter)
"""Errors that a different command line avoids; all others mean that the work failed."""

_DEBUG = "LLMKIT_DEBUG"


def main() -> None:
    """Run the command line and leave the process: 0 it worked, 1 it failed, 2 wrong usage, 130 Ctrl-C."""
    # Importing torch and transformers makes a million objects that stay, and looking through them costs a second.
    gc.set_threshold(50_000, 20, 100)
    speak_utf8()
    warnings.showwarning = _show_warning
    try:
        command_line()()
    except LLMKitError as error:
        _leave(error, str(error), exit_code=2 if isinstance(error, WRONG_USAGE) else 1)
    except Exception as error:  # noqa: BLE001 - the outermost layer: a user is to read a line, not a traceback
        _leave(error, f"{type(error).__name__}: {error} ({_DEBUG}=1 shows where)", exit_code=1)
    finally:
        flush_stdout()


def command_line() -> typer.Typer:
    """The application with all commands; its help is plain text where a terminal does not read it."""
    at_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    app = typer.Typer(
        name="llmkit",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if at_terminal else None,
    )
    app.callback()(_llmkit)
    for command in COMMANDS:
        app.command()(command)
    app.add_typer(pipeline_commands(), name="pipeline")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"llmkit {version('llmkit')}")
        raise typer.Exit


def _llmkit(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; {_DEBUG}=1 does too.")] = False,
) -> None:
    """One class for any language model."""
    if debug:
        os.environ[_DEBUG] = "1"


def _leave(error: Exception, message: str, *, exit_code: int) -> None:
    if os.environ.get(_DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    say("error: " + message.replace("\n", "\n  "))
    sys.exit(exit_code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line: the place in the code that Python would add helps nobody here."""
    say(f"warning: {message}")
