"""Fitting a conversation into the window, counted by the model's own tokenizer and template.

It decides which messages go; it knows no tokenizer, only a function that counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmkit.errors import ContextLengthExceeded
from llmkit.types import Message

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class FittedConversation:
    """What is sent, and what was left out for it."""

    messages: Messages
    dropped: Messages


def fit_conversation(
    messages: Messages, count: Callable[[Messages], int], max_prompt_tokens: int
) -> FittedConversation:
    """Drop the oldest turns until the prompt fits; system messages and the last turn always stay.

    A turn is a user message with everything up to the next one, so that an answer never loses its question, nor a
    tool's result its call.

    Args:
        messages: the conversation, its last turn being the one to answer.
        count: tokens of a conversation as the model reads it; it grows with the number of turns.
        max_prompt_tokens: what the prompt may have.
    """
    system = tuple(m for m in messages if m.role == "system")
    turns = _turns([m for m in messages if m.role != "system"])

    def kept(n_dropped: int) -> Messages:
        return system + tuple(m for turn in turns[n_dropped:] for m in turn)

    if len(turns) < 2 or count(messages) <= max_prompt_tokens:
        return FittedConversation(messages, ())
    n_dropped = bisect_left(range(len(turns) - 1), True, key=lambda n: count(kept(n)) <= max_prompt_tokens)
    dropped = tuple(m for turn in turns[:n_dropped] for m in turn)
    return FittedConversation(kept(n_dropped), dropped)


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def room_for_new_tokens(
    prompt_tokens: int, *, max_tokens: int | None, max_length: int | None, context_length: int | None
) -> int | None:
    """New tokens that may be generated after a prompt: the tightest of all limits; None where there is none.

    Raises:
        ContextLengthExceeded: there is room for none.
    """
    limits = [limit for limit in (max_length, context_length) if limit is not None]
    if not limits:
        return max_tokens
    limit = min(limits)
    if prompt_tokens >= limit:
        raise ContextLengthExceeded(prompt_tokens, max_tokens, limit)
    room = limit - prompt_tokens
    return room if max_tokens is None else min(room, max_tokens)


def limit_new_tokens(prompt_tokens: int, context_length: int) -> int:
    """The most new tokens that a prompt leaves room for in a window: 1,900 of 2,048 leave 148.

    Raises:
        ContextLengthExceeded: there is room for none.
    """
    return (
        room_for_new_tokens(prompt_tokens, max_tokens=context_length, max_length=None, context_length=context_length)
        or 0
    )
