"""Which request takes which route: the engine, or alone where its bits must not depend on others.

It knows what each route needs, and nothing of how it generates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Literal, cast

import psutil

from llmkit.engine.calls import EngineCalls, NumberedRequest
from llmkit.engine.engine import Engine, EngineFigures
from llmkit.engine.sequence import Delta, EngineRequest
from llmkit.open_calls import OpenCalls
from llmkit.own_thread import OwnThread
from llmkit.resources import format_bytes
from llmkit.types import Chunk, Request, TokenLogprob
from llmkit_llama_cpp.alone import Alone
from llmkit_llama_cpp.choices import new_choice
from llmkit_llama_cpp.context import MAX_SEQUENCES, N_BATCH, Context
from llmkit_llama_cpp.encoding import PromptEncoder
from llmkit_llama_cpp.model import GGUFModel
from llmkit_llama_cpp.runner import CellRunner
from llmkit_llama_cpp.sampling import ChoiceSampler
from llmkit_llama_cpp.settings import Sizes

MAX_RUNNING = 64
"""Sequences that run at once; beyond it a step grows longer rather than the whole faster."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which route a model takes.

    Attributes:
        route: `engine`, or `alone` for all requests.
        reason: why it is not the engine; empty where it is.
        reproducible: seeded requests run one at a time.
        kv_cache_bytes: what the engine's keys and values may take.
    """

    route: Literal["engine", "alone"]
    reason: str
    reproducible: Literal["alone"]
    kv_cache_bytes: int


class Routes:
    """The routes of one loaded model. Safe to use from many threads and event loops.

    Args:
        model: the model; closed with the routes.
        encoder: decodes its tokens.
        sizes: how much it may hold.
        n_threads: threads that compute.
        name: the model's, for messages.
        adapter: the LoRA adapter to begin with, or None.
        max_waiting: requests that may wait to start on the engine; equally, those that wait to run alone.
    """

    def __init__(
        self,
        model: GGUFModel,
        encoder: PromptEncoder,
        sizes: Sizes,
        *,
        n_threads: int,
        name: str,
        adapter: Any,
        max_waiting: int,
    ) -> None:
        self._model, self._encoder, self._sizes, self._n_threads = model, encoder, sizes, n_threads
        self._computing, self._swapping, self._calls = Lock(), Lock(), OpenCalls()
        self._thread = OwnThread(name, max_waiting=max_waiting)
        self._alone = Alone(partial(self._context, sizes.window, 1), encoder.decode, self._newest, self._computing)
        self._alone.use_adapter(adapter)
        self._engine: EngineCalls | None = None
        if model.has_cells:
            self._cells = self._context(sizes.n_cells, MAX_SEQUENCES)
            self._cells.use_adapter(adapter)
            self._runner = CellRunner(self._cells, sizes, self._computing)
            self._engine = EngineCalls(self._make_engine, name=name, max_waiting=max_waiting, logprobs=self._newest_of)

    @property
    def info(self) -> EngineInfo:
        """Which route the model takes, and why."""
        if self._engine is None:
            return EngineInfo("alone", "its state cannot be kept for a part of a text", "alone", 0)
        return EngineInfo("engine", "", "alone", self._sizes.n_bytes)

    @property
    def figures(self) -> EngineFigures | None:
        """What the engine holds and has done; None where there is none."""
        return None if self._engine is None else self._engine.figures

    def chunks(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        """The chunks of all requests, each on its route; leaving early cancels the rest."""
        with self._calls.one_more():
            yield from self._chunks(requests)

    def _chunks(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        for_engine, others = self._divided(requests)
        if self._engine is not None and for_engine:
            yield from self._engine.chunks(for_engine)
        for index, request in others:
            may_wait = request.when_full == "wait"
            yield from self._thread.chunks(partial(self._alone.run, index, request), may_wait=may_wait)

    async def achunks(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop."""
        with self._calls.one_more():
            async for chunk in self._achunks(requests):
                yield chunk

    async def _achunks(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        for_engine, others = self._divided(requests)
        if self._engine is not None and for_engine:
            async for chunk in self._engine.achunks(for_engine):
                yield chunk
        for index, request in others:
            may_wait = request.when_full == "wait"
            async for chunk in self._thread.achunks(partial(self._alone.run, index, request), may_wait=may_wait):
                yield chunk

    def use_adapter(self, handle: Any) -> None:
        """Compute with an adapter from now on, or without one; what runs ends first.

        Raises:
            ModelClosed: the model was closed.
        """
        with self._swapping:
            self._thread.run(partial(self._alone.use_adapter, handle))
            if self._engine is not None:
                self._engine.exclusively(partial(self._cells.use_adapter, handle))

    def _divided(self, requests: Sequence[Request]) -> tuple[list[NumberedRequest], list[tuple[int, Request]]]:
        """The requests that take the engine, and the others."""
        for_engine: list[NumberedRequest] = []
        others: list[tuple[int, Request]] = []
        for index, request in enumerate(requests):
            if self._takes_engine(request):
                for_engine.append((index, self._engine_request(request)))
            else:
                others.append((index, request))
        return for_engine, others

    def _takes_engine(self, request: Request) -> bool:
        """Reproducible requests do not, nor do more choices than fit at once."""
        if self._engine is None or request.reproducible or request.params.n > MAX_RUNNING:
            return False
        n_tokens = len(request.prompt_ids or ()) + (request.params.max_tokens or 1)
        return request.params.n * self._runner.bytes_for(n_tokens) <= self._sizes.n_bytes

    def _engine_request(self, request: Request) -> EngineRequest:
        choices = [new_choice(request, choice, self._encoder.decode) for choice in range(request.params.n)]
        return EngineRequest(
            prompt_ids=request.prompt_ids or (),
            samplers=[choice.sampler for choice in choices],
            outputs=[choice.text for choice in choices],
            reproducible=False,
            max_tokens=request.params.max_tokens or 1,
            may_wait=request.when_full == "wait",
            streamed=request.streamed,
        )

    def _context(self, n_cells: int, n_sequences: int) -> Context:
        """A context, if there is memory for it; llama.cpp would find out too late.

        Raises:
            MemoryError: there is not.
        """
        needed, free = n_cells * self._sizes.cell_bytes, psutil.virtual_memory().available
        if needed > free:
            raise MemoryError(
                f"{n_cells} tokens of keys and values need {format_bytes(needed)}, {format_bytes(free)} are free"
            )
        return Context(self._model, n_cells=n_cells, n_sequences=n_sequences, n_threads=self._n_threads)

    def _make_engine(self) -> Engine:
        return Engine(
            self._runner,
            kv_budget_bytes=self._sizes.n_bytes,
            tokens_per_step=N_BATCH,
            max_running=MAX_RUNNING,
            max_cached_bytes=self._runner.bytes_for(self._sizes.window),
        )

    def _newest_of(self, delta: Delta) -> tuple[TokenLogprob, ...] | None:
        return self._newest(cast("ChoiceSampler", delta.request.samplers[delta.choice]))

    def _newest(self, sampler: ChoiceSampler) -> tuple[TokenLogprob, ...] | None:
        """The log-probabilities of a sampler's oldest token that nobody has fetched."""
        return (self._encoder.spelt(sampler.scored.popleft()),) if sampler.scored else None

    def retire(self, end: Callable[[], object]) -> None:
        """Wait until all that was handed in has ended; call `end` then, or after calls that have more to hand in."""
        if self._engine is not None:
            self._engine.exclusively(lambda: None)
        self._thread.run(lambda: None)
        self._calls.after_the_last(end)

    def close(self) -> None:
        """End everything, and free cells and weights."""
        if self._engine is not None:
            self._engine.close()
        self._thread.close()
        self._alone.close()
        self._model.close()
