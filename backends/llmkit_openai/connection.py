"""Posting over HTTP and reading streams of events: connections, a limit, timeouts, and retries before a stream begins.

It knows nothing of what is posted, nor of what the events say. All of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import stamina

from llmkit.errors import GenerationError, LLMKitError
from llmkit.fingerprint import library_versions
from llmkit_openai.address import Address, Key
from llmkit_openai.events import EventReader
from llmkit_openai.failures import Refusal

_CONNECT_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_DRAIN_S = 0.25
_IDLE_S = 30.0
_LARGEST_REFUSAL = 1 << 16
_USER_AGENT = f"llmkit/{library_versions('llmkit')['llmkit']}"
_DONE = b"[DONE]"
_LOST = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How patient a connection is.

    Attributes:
        timeout_s: the longest silence of the server, before its answer and within it.
        max_retries: attempts after the first.
        max_concurrency: posts on their way at once; others wait their turn.
    """

    timeout_s: float
    max_retries: int
    max_concurrency: int


class Connection:
    """The way to one server. It is used on one event loop, and may be made outside of it."""

    def __init__(self, address: Address, key: Key, options: ConnectionOptions) -> None:
        self._url, self._key, self._options = address.base_url, key, options
        timeout = httpx.Timeout(options.timeout_s, connect=min(_CONNECT_S, options.timeout_s), pool=None)
        headers = {"Accept": "text/event-stream", "User-Agent": _USER_AGENT, **key.headers()}
        self._clients = _Clients(headers, timeout, options.max_concurrency)

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """The data of each event of the answer to a post, up to the event that says it is done.

        Closing the iterator closes the connection, which tells the server to stop.

        Raises:
            LLMKitError: as in `failures`, where the server refuses; what it says is in the message.
            GenerationError: it cannot be reached, is silent for too long, or the connection is lost.
        """
        async with self._clients.one() as client:
            response = await self._accepted(client, f"{self._url}/{path}", body)
            is_coded = "content-encoding" in response.headers
            reader, pieces = EventReader(), response.aiter_bytes() if is_coded else response.aiter_raw()
            try:
                async for piece in pieces:
                    for data in reader.feed(piece):
                        if data == _DONE:
                            await _drained(pieces)
                            return
                        yield self._key.hidden_in(data)
                for data in reader.end():
                    if data != _DONE:
                        yield self._key.hidden_in(data)
            except httpx.TimeoutException as error:
                raise GenerationError(self._silent()) from error
            except (httpx.TransportError, httpx.DecodingError) as error:
                raise GenerationError(f"the connection to {self._url} was lost: {_described(error)}") from error
            finally:
                await response.aclose()

    async def _accepted(self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> httpx.Response:
        """The answer whose stream begins; until then, and never after, a failure that may pass is tried again."""
        try:
            async for attempt in stamina.retry_context(
                on=_wait_before_retry,
                attempts=1 + self._options.max_retries,
                timeout=None,
                wait_initial=_FIRST_WAIT_S,
                wait_jitter=_FIRST_WAIT_S,
                wait_max=_LONGEST_WAIT_S,
            ):
                with attempt:
                    return await self._posted(client, url, body)
        except Refusal as refusal:
            raise self._as_error(refusal, body) from None
        except httpx.TimeoutException as error:
            raise GenerationError(self._silent()) from error
        except httpx.TransportError as error:
            raise GenerationError(f"cannot reach {self._url}: {_described(error)}") from error
        raise AssertionError("retry_context returns or raises")

    async def _posted(self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> httpx.Response:
        response = await client.send(client.build_request("POST", url, json=body), stream=True)
        content_type = response.headers.get("content-type", "")
        if response.status_code == 200 and content_type.startswith("text/event-stream"):
            return response
        try:
            text = self._key.hidden_in(await _beginning(response)).decode(errors="replace")
        finally:
            await response.aclose()
        if response.status_code == 200:
            raise GenerationError(
                f"{url} must answer with text/event-stream, got {content_type or 'no content type'!r}: {text[:200]!r}"
            )
        raise Refusal(response.status_code, text, response.headers.get("retry-after"))

    def _as_error(self, refusal: Refusal, body: Mapping[str, Any]) -> LLMKitError:
        max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
        return refusal.as_error(self._url, max_tokens)

    def _silent(self) -> str:
        return f"{self._url} was silent for {self._options.timeout_s:g} s"


class _Clients:
    """HTTP clients of one connection each, at most so many at once; who comes later waits for one.

    The pool of one client compares all connections with all others at every request, which for 64 of them takes longer
    than the requests. The connection that was used last is used first, and those that lie idle for long are closed.
    """

    def __init__(self, headers: Mapping[str, str], timeout: httpx.Timeout, max_clients: int) -> None:
        self._headers, self._timeout = headers, timeout
        self._ssl = httpx.create_ssl_context()
        self._slots = asyncio.Semaphore(max_clients)
        self._idle = deque[tuple[float, httpx.AsyncClient]]()

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[httpx.AsyncClient]:
        """A client for one request, whose answer is closed before it is given back."""
        async with self._slots:
            client = self._idle.pop()[1] if self._idle else self._new()
            try:
                yield client
            finally:
                self._idle.append((time.monotonic(), client))
            while self._idle and time.monotonic() - self._idle[0][0] > _IDLE_S:
                await self._idle.popleft()[1].aclose()

    async def close(self) -> None:
        """Close all that are given back."""
        while self._idle:
            await self._idle.pop()[1].aclose()

    def _new(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncClient(headers=self._headers, timeout=self._timeout, limits=limits, verify=self._ssl)


def _wait_before_retry(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds where the server says it."""
    if not isinstance(error, Refusal):
        return isinstance(error, _LOST)
    if not error.is_passing or error.retry_after_s is None:
        return error.is_passing
    # Not all at the same moment; and a server that asks for more patience than we have is not asked again.
    return error.retry_after_s < _LONGEST_WAIT_S and error.retry_after_s + random.uniform(0, _FIRST_WAIT_S)


async def _drained(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the last event, so that the connection can be used again; a server that stays is left."""
    with contextlib.suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in pieces:
                pass


async def _beginning(response: httpx.Response) -> bytes:
    """The body of a refusal, as far as it may reasonably go."""
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _LARGEST_REFUSAL:
            break
    return content[:_LARGEST_REFUSAL]


def _described(error: Exception) -> str:
    return str(error) or type(error).__name__
