"""The route through the engine: what a request means to the runner, its samplers and its texts.

It knows neither tensors nor steps, nor how a call reaches the engine's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import cast

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel

from llmkit.engine.calls import EngineCalls
from llmkit.engine.engine import Engine, EngineFigures
from llmkit.engine.sequence import Delta, EngineRequest
from llmkit.types import Chunk, TokenLogprob
from llmkit_transformers import compute_threads
from llmkit_transformers.generate_route import Decode, Numbered
from llmkit_transformers.logprobs import TokenSpelling
from llmkit_transformers.runner import ChoiceSampler, FlatRunner
from llmkit_transformers.sampling import Sampler

FREE_MEMORY_SHARE = 0.3
"""The part of the free memory at load that keys and values may take by default."""

MAX_RUNNING = 64
"""Sequences that run at once; beyond it a step grows longer rather than the whole faster."""


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
        spelling: single tokens, for log-probabilities.
        settings: the model's generation config.
        kv_cache_bytes: what keys and values may take.
        max_running: sequences that run at once.
        n_threads: of torch, for the engine's thread, which does not take over the caller's number by itself.
        max_waiting: requests that may wait to start.
        name: the model's, for messages.
    """

    def __init__(
        self,
        runner: FlatRunner,
        decode: Decode,
        spelling: TokenSpelling,
        settings: GenerationConfig,
        *,
        kv_cache_bytes: int,
        max_running: int,
        n_threads: int,
        max_waiting: int,
        name: str | None,
    ) -> None:
        def make_engine() -> Engine:
            torch.set_num_threads(n_threads)
            return Engine(runner, kv_budget_bytes=kv_cache_bytes, max_running=max_running)

        self._decode, self._spelling, self._settings = decode, spelling, settings
        self._max_running = max_running
        passed_on = (torch.OutOfMemoryError,)
        self._calls = EngineCalls(
            make_engine,
            name=name,
            max_waiting=max_waiting,
            logprobs=self._logprobs,
            passed_on=passed_on,
            before_sleep=compute_threads.give_back,
        )

    @property
    def figures(self) -> EngineFigures:
        """What the engine holds and has done."""
        return self._calls.figures

    def chunks(self, requests: Sequence[Numbered]) -> Iterator[Chunk]:
        """The chunks of all requests as they come; leaving early cancels what has not come yet."""
        return self._calls.chunks(self._engine_requests(requests))

    def achunks(self, requests: Sequence[Numbered]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop, without a thread of its own."""
        return self._calls.achunks(self._engine_requests(requests))

    def _engine_requests(self, requests: Sequence[Numbered]) -> Iterator[tuple[int, EngineRequest]]:
        """What the engine gets for each; several for one that has more choices than may run at once."""
        for one in requests:
            for first in range(0, one.params.n, self._max_running):
                choices = range(first, min(first + self._max_running, one.params.n))
                yield one.index, self._engine_request(one, choices)

    def _engine_request(self, one: Numbered, choices: range) -> EngineRequest:
        params, max_tokens = one.params, one.params.max_tokens or 1
        samplers = [Sampler(params, choice, self._settings, one.matcher()) for choice in choices]
        return EngineRequest(
            prompt_ids=one.prompt_ids,
            samplers=[ChoiceSampler(sampler, one.prompt_ids) for sampler in samplers],
            outputs=[one.output(self._decode, max_tokens, sampler.matcher) for sampler in samplers],
            reproducible=one.request.reproducible,
            max_tokens=max_tokens,
            may_wait=one.request.when_full == "wait",
            streamed=one.request.streamed,
            first_choice=choices.start,
        )

    def _logprobs(self, delta: Delta) -> tuple[TokenLogprob, ...] | None:
        sampler = cast("ChoiceSampler", delta.request.samplers[delta.choice])
        return (self._spelling.spelt(sampler.scored.popleft()),) if sampler.scored else None

    def exclusively(self, change: Callable[[], None]) -> None:
        """Let what runs end, forget every cached prefix, change the model and go on; who comes meanwhile waits."""
        self._calls.exclusively(change)

    def close(self) -> None:
        """End everything and free the memory."""
        self._calls.close()
