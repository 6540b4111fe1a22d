"""Where a server is, which of its models is meant, and the key that opens it and that nothing may show.

It opens no connection.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from llmkit.errors import InvalidRequest, ParameterError

OPENAI_URL = "https://api.openai.com/v1"

_KEY = re.compile(r"[\x21-\x7e]+")
_SHORTEST_SECRET = 8  # a placeholder such as "EMPTY" is no secret, and hiding it would garble messages


@dataclass(frozen=True, slots=True)
class Address:
    """A model on a server.

    Attributes:
        base_url: up to and without the last slash: `http://localhost:8000/v1`.
        model: the name that the server knows it by.
    """

    base_url: str
    model: str

    @classmethod
    def parse(cls, name: str | None, base_url: str | None = None) -> Address:
        """An address from `http://host/v1#model`, or from a model's name and a URL beside it.

        Without a URL, it is the one in OPENAI_BASE_URL, or OpenAI's own.

        Raises:
            InvalidRequest: no model is named.
            ParameterError: the URL is not one, is given twice, or carries a password or a query.
        """
        url, model = base_url, name or ""
        if model.startswith(("http://", "https://")):
            if base_url is not None:
                raise ParameterError("base_url must not be given where the model's name has a URL")
            url, _, model = model.partition("#")
        if not model:
            raise InvalidRequest("name a model of the server: http://localhost:8000/v1#name")
        return cls(_checked_url(url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL), model)

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server."""
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname


def _checked_url(url: str) -> str:
    """A URL that may be shown: without user, password, query and fragment."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ParameterError("a server's URL must be http:// or https:// and a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The value is not shown: it may hold a password.
        raise ParameterError("a server's URL must have no user, password, query or fragment; pass api_key for a key")
    return url.rstrip("/")


class Key:
    """An API key, or none. It appears in the header of a request and nowhere else.

    Args:
        value: the key; without one it is taken from OPENAI_API_KEY.

    Raises:
        ParameterError: it cannot stand in a header.
    """

    def __init__(self, value: str | None) -> None:
        text = (os.environ.get("OPENAI_API_KEY", "") if value is None else value).strip()
        if text and not _KEY.fullmatch(text):
            raise ParameterError("api_key must be printable ASCII without spaces")
        self._secret = SecretStr(text)

    def __repr__(self) -> str:
        return "Key(***)" if self._secret else "Key(None)"

    def headers(self) -> dict[str, str]:
        """The header that carries the key; empty where there is none."""
        return {"Authorization": f"Bearer {self._secret.get_secret_value()}"} if self._secret else {}

    def hidden_in(self, data: bytes) -> bytes:
        """What a server sent with the key blotted out, in case it repeats it."""
        if len(self._secret) < _SHORTEST_SECRET:
            return data
        return data.replace(self._secret.get_secret_value().encode(), b"***")
