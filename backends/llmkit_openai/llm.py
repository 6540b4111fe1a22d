"""OpenAILLM: a model behind any server that speaks OpenAI's HTTP API.

It joins the parts: address, kind of server, bodies, connection and answers.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from llmkit.backend import BackendLLM
from llmkit.capabilities import Capabilities
from llmkit.errors import GenerationError, ParameterError, UnsupportedFeature, did_you_mean
from llmkit.types import Chunk, Request
from llmkit.wire import GPTTask
from llmkit_openai.address import Address, Key
from llmkit_openai.answers import AnswerReader, UsageTally
from llmkit_openai.body import BodyWriter, Post
from llmkit_openai.connection import Connection, ConnectionOptions
from llmkit_openai.loop_thread import LoopThread, Put
from llmkit_openai.servers import KINDS, ServerKind, ServerName

_PATIENCE_S = 0.05
_DELAY_S = 0.002


class OpenAILLM(BackendLLM):
    """A model on a server.

    A string is one user message of a chat, since the server keeps the template to itself; `raw=True` goes to the
    completions endpoint. Loading opens no connection. May be used from many threads and event loops; requests of all of
    them share one pool of connections.

    Args:
        model_name: `http://host:8000/v1#name`, or the name alone.
        base_url: the server, where the name is alone; OPENAI_BASE_URL or OpenAI's own by default.
        api_key: the server's key; OPENAI_API_KEY by default. It is shown nowhere.
        server: the kind of server, which decides what beyond the common API can be asked; `openai` for OpenAI's own,
            `generic` for others by default.
        extra_body: fields that go into every request as they are.
        timeout_s: the longest silence of the server, in seconds.
        max_retries: how often a request is tried again that was refused for the moment (408, 429, 5xx) or did not
            reach the server; an answer that has begun is never started again.
        max_concurrency: requests on their way at once, others wait their turn; 64 by default, and 1 for
            `llama-cpp-python` and `transformers`, whose requests disturb each other.
        params: the parameters of `BaseLLM`.

    Raises:
        InvalidRequest: no model is named.
        ParameterError: an option breaks its rule.
    """

    backend_name: ClassVar[str] = "openai"
    capabilities: Capabilities = KINDS["generic"].capabilities

    def __init__(
        self,
        model_name: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        server: ServerName | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 3,
        max_concurrency: int | None = None,
        **params: Any,
    ) -> None:
        self._address = Address.parse(model_name, base_url)
        self._kind = _kind(server or ("openai" if self._address.is_openai else "generic"))
        self.capabilities = self._kind.capabilities
        super().__init__(model_name, **params)
        _refuse_device(self.device)
        self._base_url, self._extra_body = base_url, dict(extra_body or {})
        self._writer = BodyWriter(self._address.model, self._kind, self._extra_body)
        limit = self._kind.max_concurrency if max_concurrency is None else max_concurrency
        options = _checked(ConnectionOptions(timeout_s, max_retries, limit))
        self._connection = Connection(self._address, Key(api_key), options)
        self._thread = LoopThread(self._address.model, self._connection.close)
        # A model that is dropped without close() ends its thread, too.
        self._end_thread = weakref.finalize(self, self._thread.close)

    def _rebind(self, model_name: str | None, device: str | None) -> None:
        self._check_open()
        _refuse_device(device)
        address = Address.parse(model_name, self._base_url)
        if address.base_url != self._address.base_url:
            # Its key must not follow a name, which a checkpoint's file may have brought, to another server.
            raise ParameterError(f"a model object stays with its server, {self._address.base_url}; load another one")
        self._address, self._writer = address, BodyWriter(address.model, self._kind, self._extra_body)

    # --- generating -------------------------------------------------------------------------------------------------

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        posts = self._posts(requests)
        return self._thread.stream(lambda put: self._fetch_all(requests, posts, put), delay_s=_delay_s(requests))

    def _agenerate(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        posts = self._posts(requests)
        return self._thread.astream(lambda put: self._fetch_all(requests, posts, put), delay_s=_delay_s(requests))

    def _posts(self, requests: Sequence[Request]) -> list[list[Post]]:
        """The posts of each request, all written before the first is sent."""
        return [self._writer.posts(index, request) for index, request in enumerate(requests)]

    async def _fetch_all(self, requests: Sequence[Request], posts: list[list[Post]], put: Put[Chunk]) -> None:
        """Answer all requests at once; the first failure ends them all."""
        if len(posts) == len(posts[0]) == 1:
            return await self._fetch(posts[0][0], requests[0], UsageTally(posts[0][0].request, 1), put)
        try:
            async with asyncio.TaskGroup() as group:
                for request, parts in zip(requests, posts, strict=True):
                    tally = UsageTally(parts[0].request, len(parts))
                    for post in parts:
                        group.create_task(self._fetch(post, request, tally, put))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__

    async def _fetch(self, post: Post, request: Request, tally: UsageTally, put: Put[Chunk]) -> None:
        reader, due_s = AnswerReader(post, request), 0.0
        async with aclosing(self._connection.events(post.path, post.body)) as events:
            async for data in events:
                reader.add(data)
                # Where nobody reads along, the first goes at once, for it is timed, and others wait for one another.
                if request.streamed or time.monotonic() >= due_s:
                    for chunk in reader.take():
                        put(chunk)
                        due_s = time.monotonic() + _PATIENCE_S
        for chunk in reader.take():
            put(chunk)
        if not reader.is_whole:
            raise GenerationError(
                f"{self._address.base_url} ended its answer before the text was finished, without a reason; "
                "a prompt that is too long makes some servers do so"
            )
        usage = tally.add(reader.usage)
        if usage is not None:
            put(usage)

    # --- GPT tasks, life --------------------------------------------------------------------------------------------

    def _task_mismatch(self, task: GPTTask) -> str | None:
        if task.dtype != "auto" or task.quantize_bits is not None:
            return "dtype and quantize_bits are the server's to decide"
        return super()._task_mismatch(task)

    def _release(self) -> None:
        self._end_thread()


def _delay_s(requests: Sequence[Request]) -> float:
    """Seconds by which a chunk may come late: where nobody reads along, a short answer then comes in one piece."""
    return 0.0 if any(request.streamed for request in requests) else _DELAY_S


def _kind(name: str) -> ServerKind:
    if name not in KINDS:
        raise ParameterError(f"server must be one of {', '.join(KINDS)}, got {name!r}{did_you_mean(name, KINDS)}")
    return KINDS[name]


def _refuse_device(device: str | None) -> None:
    if device is not None:
        raise UnsupportedFeature(f"the server decides where its model runs, got device={device!r}")


def _checked(options: ConnectionOptions) -> ConnectionOptions:
    if not options.timeout_s > 0:
        raise ParameterError(f"timeout_s must be > 0, got {options.timeout_s!r}")
    for name, least in (("max_retries", 0), ("max_concurrency", 1)):
        value: object = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(f"{name} must be an integer >= {least}, got {value!r}")
    return options
