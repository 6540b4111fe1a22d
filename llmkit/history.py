"""The conversation that a model object keeps, and the forms in which callers pass one.

It knows nothing of windows (`context.py`) or templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from llmkit.types import Message, Role, as_messages

PastTurns: TypeAlias = "str | Sequence[Message | Mapping[str, object]]"

_SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "<human>": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "<bot>": "assistant",
}
_OTHER_SIDE: Mapping[str, Role] = {"user": "assistant", "assistant": "user"}
_TURN = re.compile(rf"^({'|'.join(map(re.escape, _SPEAKERS))}):[ \t]*", re.IGNORECASE | re.MULTILINE)


def parse_history(history: PastTurns) -> list[Message]:
    """Messages from a list, or from a transcript with `User:` and `Assistant:` at the beginnings of lines.

    A string without such marks is one user message.

    Raises:
        InvalidRequest: an entry of the list is no message.
    """
    if not isinstance(history, str):
        return list(as_messages(history))
    if not _TURN.match(history.lstrip()):
        return [Message("user", history)] if history.strip() else []
    _, *parts = _TURN.split(history.lstrip())
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(_SPEAKERS[speaker.lower()], text.strip()) for speaker, text in turns]


def with_turn(past: Sequence[Message], turn: Message) -> tuple[Message, ...]:
    """The past and the new turn; two turns of one side become one, since most templates want them to alternate."""
    if past and past[-1].role == turn.role:
        return (*past[:-1], Message(turn.role, f"{past[-1].content}\n{turn.content}"))
    return (*past, turn)


def seen_from(role: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation as the given side sees it: for `user`, the sides are swapped."""
    if role != "user":
        return tuple(messages)
    return tuple(replace(message, role=_OTHER_SIDE.get(message.role, message.role)) for message in messages)


def with_system(system_prompt: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation under a system prompt, unless it has one of its own."""
    if not system_prompt or any(m.role == "system" for m in messages):
        return tuple(messages)
    return (Message("system", system_prompt), *messages)


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with its system messages put before the first user message's text."""
    system = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(messages)
    at = next((index for index, message in enumerate(rest) if message.role == "user"), None)
    if at is None:
        return (Message("user", "\n\n".join(system)), *rest)
    opened = Message("user", "\n\n".join([*system, rest[at].content]))
    return (*rest[:at], opened, *rest[at + 1 :])
