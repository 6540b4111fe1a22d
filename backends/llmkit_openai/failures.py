"""Answers that are refusals: what they say, whether trying again may help, and which of llmkit's errors they are.

It knows the shapes that servers give their errors, and no connection.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any, cast

from llmkit.errors import ContextLengthExceeded, GenerationError, InvalidRequest, LLMKitError, ModelError

_LONGEST_MESSAGE = 500
_WINDOW = re.compile(r"maximum context length (?:is|of) (\d+)")
_PROMPT = re.compile(r"(\d+) (?:in the messages|in your prompt|input tokens)|resulted in (\d+) tokens")


class Refusal(Exception):
    """An answer with another status than 200.

    Attributes:
        status: the HTTP status.
        message: the server's words.
        retry_after_s: how long the server asks to wait; None where it does not say.
    """

    def __init__(self, status: int, body: str, retry_after: str | None = None) -> None:
        self.status = status
        self.message = error_message(body)
        self.retry_after_s = _seconds(retry_after)
        super().__init__(f"status {status}: {self.message}")

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be answered a little later."""
        return self.status in (408, 429) or self.status >= 500

    def as_error(self, url: str, max_tokens: int | None) -> LLMKitError:
        """The error of llmkit's hierarchy that says the same."""
        said = f"{url} answered with status {self.status}: {self.message}"
        if self.status in (401, 403, 404):
            return ModelError(said)
        if 400 <= self.status < 500 and self.status not in (408, 429):
            return _too_long(self.message, max_tokens) or InvalidRequest(said)
        return GenerationError(said if self.retry_after_s is None else f"{said} (retry after {self.retry_after_s:g} s)")


def error_message(body: str) -> str:
    """The server's words in the body of a refusal, or in an event that is an error."""
    try:
        found: object = json.loads(body)
    except ValueError:
        found = body
    for key in ("error", "message", "detail"):
        if isinstance(found, Mapping):
            found = cast("Mapping[str, Any]", found).get(key, found)
    text = found if isinstance(found, str) else json.dumps(found)
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


def _too_long(message: str, max_tokens: int | None) -> ContextLengthExceeded | None:
    window, prompt = _WINDOW.search(message), _PROMPT.search(message)
    if window is None or prompt is None:
        return None
    return ContextLengthExceeded(int(prompt[1] or prompt[2]), max_tokens, int(window[1]))


def _seconds(retry_after: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
