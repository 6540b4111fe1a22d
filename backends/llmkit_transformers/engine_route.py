"""The route through the engine: requests become sequences, and their deltas become chunks.

It knows neither tensors nor steps; it carries between a call and the engine's owner thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from queue import SimpleQueue

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel

from llmkit.engine.engine import Engine, EngineFigures
from llmkit.engine.sequence import Delta, EngineRequest, Event
from llmkit.engine.worker import EngineWorker
from llmkit.errors import QueueFull
from llmkit.text import OutputText
from llmkit.types import Chunk
from llmkit_transformers.generate_route import Decode, Numbered
from llmkit_transformers.runner import ChoiceSampler, FlatRunner
from llmkit_transformers.sampling import Sampler

FREE_MEMORY_SHARE = 0.3
"""The part of the free memory at load that keys and values may take by default."""

MAX_RUNNING = 64
"""Sequences that run at once; beyond it a step grows longer rather than the whole faster."""

_Item = tuple[int, Event | None]
_Put = Callable[[_Item], None]


def default_kv_bytes(model: PreTrainedModel) -> int:
    """The default budget of keys and values: a share of what is free on the model's device."""
    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0] * FREE_MEMORY_SHARE)
    return int(psutil.virtual_memory().available * FREE_MEMORY_SHARE)


class EngineRoute:
    """Runs requests on one engine. Safe to use from many threads and event loops; what comes at once batches together.

    Args:
        runner: runs the model.
        decode: token ids to text.
        settings: the model's generation config.
        kv_cache_bytes: what keys and values may take.
        n_threads: of torch, for the engine's thread, which does not take over the caller's number by itself.
        name: the model's, for messages.
    """

    def __init__(
        self,
        runner: FlatRunner,
        decode: Decode,
        settings: GenerationConfig,
        *,
        kv_cache_bytes: int,
        n_threads: int,
        name: str | None,
    ) -> None:
        def make_engine() -> Engine:
            torch.set_num_threads(n_threads)
            return Engine(runner, kv_budget_bytes=kv_cache_bytes, max_running=MAX_RUNNING)

        self._decode, self._settings = decode, settings
        self._worker = EngineWorker(make_engine, name=name)

    @property
    def figures(self) -> EngineFigures:
        """What the engine holds and has done."""
        return self._worker.figures

    def chunks(self, requests: Sequence[Numbered]) -> Iterator[Chunk]:
        """The chunks of all requests as they come; leaving early cancels what has not come yet."""
        events: SimpleQueue[_Item] = SimpleQueue()
        submitted: list[EngineRequest] = []
        try:
            for one in requests:
                self._submit(one, events.put, submitted)
                yield Chunk(one.index, prompt_tokens=len(one.prompt_ids))
            n_open = len(submitted)
            while n_open:
                index, event = events.get()
                n_open -= event is None
                yield from _chunk(index, event)
        finally:
            self._cancel(submitted)

    async def achunks(self, requests: Sequence[Numbered]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop, without a thread of its own."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[_Item]()
        submitted: list[EngineRequest] = []

        def put(item: _Item) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        try:
            for one in requests:
                await self._asubmit(one, put, submitted)
                yield Chunk(one.index, prompt_tokens=len(one.prompt_ids))
            n_open = len(submitted)
            while n_open:
                index, event = await events.get()
                n_open -= event is None
                for chunk in _chunk(index, event):
                    yield chunk
        finally:
            self._cancel(submitted)

    def _submit(self, one: Numbered, put: _Put, submitted: list[EngineRequest], *, wait: bool = True) -> None:
        request = self._engine_request(one)
        self._worker.submit_to(lambda event: put((one.index, event)), request, wait=wait)
        submitted.append(request)

    async def _asubmit(self, one: Numbered, put: _Put, submitted: list[EngineRequest]) -> None:
        """Waits for a place in the queue in another thread, but only where there is none."""
        try:
            self._submit(one, put, submitted, wait=False)
        except QueueFull:
            await asyncio.to_thread(self._submit, one, put, submitted)

    def _cancel(self, submitted: Sequence[EngineRequest]) -> None:
        for request in submitted:
            self._worker.cancel(request)

    def _engine_request(self, one: Numbered) -> EngineRequest:
        params, max_tokens = one.params, one.params.max_tokens or 1
        choices = range(params.n)
        return EngineRequest(
            prompt_ids=one.prompt_ids,
            samplers=[ChoiceSampler(Sampler(params, choice, self._settings), one.prompt_ids) for choice in choices],
            outputs=[self._output(one, max_tokens) for _ in choices],
            reproducible=one.request.reproducible,
            max_tokens=max_tokens,
        )

    def _output(self, one: Numbered, max_tokens: int) -> OutputText:
        params = one.params
        return OutputText(self._decode, stops=params.stop_strings, eos_ids=params.eos_token_ids, max_tokens=max_tokens)

    def close(self) -> None:
        """End everything and free the memory."""
        self._worker.close()


def _chunk(index: int, event: Event | None) -> Iterator[Chunk]:
    """What a reader gets for an event.

    Raises:
        LLMKitError: the request failed.
        MemoryError: there was not enough memory; torch's own error likewise, as it is.
    """
    if isinstance(event, Delta):
        yield Chunk(index, event.choice, event.text, (event.token_id,), event.finish_reason)
    elif event is not None:
        cause = event.error.__cause__
        raise cause if isinstance(cause, (MemoryError, torch.OutOfMemoryError)) else event.error
