"""The slash commands of a chat.

Each changes or reads the session that it is given; none of them knows the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.cli.transcript import save_transcript
from llmkit.errors import did_you_mean

if TYPE_CHECKING:
    from llmkit.cli.chat_session import ChatSession

HELP = """\
/clear        forget the conversation; the system prompt stays
/system TEXT  set the system prompt; without TEXT, remove it
/save FILE    write the conversation as JSON lines, one message a line
/help         show this
/exit         leave, as Ctrl-D does, and Ctrl-C on an empty line
//...         say something that begins with a slash
Ctrl-C during an answer drops that turn."""


def run_command(session: ChatSession, line: str) -> None:
    """Do what a line that begins with a slash says, or name the command that it may have meant."""
    name, _, argument = line.partition(" ")
    if name in COMMANDS:
        COMMANDS[name](session, argument.strip())
    else:
        session.say(f"unknown command {name!r}{did_you_mean(name, [*COMMANDS, '/exit'])} (/help lists them all)")


def _clear(session: ChatSession, _: str) -> None:
    session.history = []
    session.say("(the conversation is empty)")


def _set_system(session: ChatSession, text: str) -> None:
    session.system = text or None
    session.say("(system prompt set)" if text else "(system prompt removed)")


def _save(session: ChatSession, name: str) -> None:
    if not name:
        session.say("error: /save needs a file: /save FILE")
        return
    path = Path(name).expanduser()
    try:
        save_transcript(path, session.messages)
    except OSError as error:
        session.say(f"error: cannot save to {str(path)!r}: {error.strerror or error}")
    else:
        session.say(f"(saved {len(session.messages)} messages to {path})")


def _help(session: ChatSession, _: str) -> None:
    session.say(HELP)


COMMANDS: Mapping[str, Callable[[ChatSession, str], None]] = {
    "/clear": _clear,
    "/system": _set_system,
    "/save": _save,
    "/help": _help,
}
