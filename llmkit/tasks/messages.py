"""Messages and labels that the built-in tasks share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmkit.errors import InvalidRequest, ParameterError
from llmkit.tasks.task import ChatType


def system_message(text: str | None) -> ChatType:
    """A list of one system message, or of none."""
    return [{"role": "system", "content": text}] if text else []


def user_message(text: object, what: str = "an instruction") -> dict[str, str]:
    """A user's message.

    Raises:
        InvalidRequest: the text is not a string, or empty.
    """
    return {"role": "user", "content": checked_text(text, what)}


def checked_text(text: object, what: str) -> str:
    """The text, if it is one.

    Raises:
        InvalidRequest: it is not a string, or empty.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(f"{what} must be a non-empty string, got {text!r}")
    return text


def checked_labels(labels: Sequence[str]) -> None:
    """Refuse what is not a list of labels.

    Raises:
        ParameterError: fewer than two, one that is no text, or two that differ in case alone.
    """
    if isinstance(labels, str) or len(labels) < 2 or not all(isinstance(x, str) and x.strip() for x in labels):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"labels must be at least two non-empty strings, got {labels!r}")
    if len({label.casefold() for label in labels}) < len(labels):
        raise ParameterError(f"labels must differ in more than their case, got {labels!r}")


def find_label(text: str, labels: Sequence[str]) -> str:
    """The label that a text means: the one its first line is or begins with, else the only one that it names.

    Case does not matter, and a label counts only as a whole word.

    Raises:
        InvalidRequest: it names none of them, or several.
    """
    lines = text.strip().splitlines()
    opening = [label for label in labels if lines and _word(label).match(lines[0].lstrip("\"'*( "))]
    if opening:
        return max(opening, key=len)
    named = [label for label in labels if _word(label).search(text)]
    if len(named) != 1:
        raise InvalidRequest(f"the text must name one of {', '.join(labels)}, got {text!r}")
    return named[0]


def _word(label: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(label.strip())}(?!\w)", re.IGNORECASE)
