"""Which request takes which route, and why: the engine where a proof allows it, `model.generate` for the rest.

It knows what each route needs, and nothing of how it generates.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Literal

import psutil
import torch
from transformers import PreTrainedModel

from llmkit.engine.engine import EngineFigures
from llmkit.errors import ModelInvalid
from llmkit.open_calls import OpenCalls
from llmkit.own_thread import OwnThread
from llmkit.types import Chunk, Request
from llmkit_transformers import compute_threads, packed
from llmkit_transformers.adapters import AdapterFiles, Adapters
from llmkit_transformers.engine_route import MAX_RUNNING, EngineRoute, default_kv_bytes
from llmkit_transformers.fair_lock import FairLock
from llmkit_transformers.generate_route import Decode, GenerateRoute, Numbered, batches
from llmkit_transformers.loading import LoadedModel
from llmkit_transformers.logprobs import TokenSpelling
from llmkit_transformers.numerics import make_switchable, switch_callers
from llmkit_transformers.products import FastWays, fast_ways
from llmkit_transformers.proof import may_narrow, why_not_flat
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.self_test import Verdict, self_test
from llmkit_transformers.settings import ModelSettings

MAX_ROWS = 16
"""Rows that `model.generate` gets together by default."""

COPIES_SHARE = 0.2
"""The part of the free memory at load that second copies of weights may take where they only save time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """How a model's routes are set up.

    Attributes:
        engine: use the engine where it can be used.
        kv_cache_bytes: what keys and values may take; None for a share of the free memory.
        batch_size: sequences that run at once; None for what suits the route.
        n_threads: torch threads.
        max_waiting: requests that may wait to start on the engine; equally, groups of them on `model.generate`.
    """

    engine: bool
    kv_cache_bytes: int | None
    batch_size: int | None
    n_threads: int
    max_waiting: int

    @property
    def max_running(self) -> int:
        """Sequences that the engine runs at once."""
        return self.batch_size or MAX_RUNNING

    @property
    def max_rows(self) -> int:
        """Rows that `model.generate` gets together; padding costs more the more there are."""
        return self.batch_size or MAX_ROWS


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which route a model takes.

    Attributes:
        route: `engine`, or `generate` for all requests.
        reason: why it is not the engine; empty where it is.
        reproducible: whether seeded requests share steps (`batched`) or run one at a time (`alone`).
        kv_cache_bytes: what the engine's keys and values may take.
        self_test_s: what it took to find out whether seeded requests may share steps.
    """

    route: Literal["engine", "generate"]
    reason: str
    reproducible: Literal["batched", "alone"]
    kv_cache_bytes: int
    self_test_s: float = 0.0


class NotReproducibleWarning(UserWarning):
    """The self-test found that a batch changes this model's bits; seeded requests run alone."""


class Routes:
    """The routes of one loaded model. Safe to use from many threads and event loops.

    Args:
        loaded: the model.
        settings: its generation config, taken apart.
        decode: token ids to text.
        options: how to set the routes up.
        adapters: the model's.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: ModelSettings,
        decode: Decode,
        options: RouteOptions,
        adapters: Adapters,
    ) -> None:
        self._loaded, self._options, self._adapters = loaded, options, adapters
        lock, name = FairLock(), loaded.files.name
        self._spelling = TokenSpelling(loaded.tokenizer)
        self.generate = GenerateRoute(loaded, decode, self._spelling, settings.config, lock)
        self._thread = OwnThread(
            name,
            partial(torch.set_num_threads, options.n_threads),
            (torch.OutOfMemoryError,),
            options.max_waiting,
            after_work=compute_threads.give_back,
        )
        self._lock, self._testing, self._calls = lock, Lock(), OpenCalls()
        self._verdicts: dict[AdapterFiles | None, Verdict] = {}
        self._proved: set[AdapterFiles] = set()
        self._reason = why_not_flat(loaded.model) if options.engine else "it was turned off"
        if self._reason is None:
            make_switchable(loaded.model)
        self._narrow = self._reason is None and may_narrow(loaded.model)
        self._runner = FlatRunner(loaded.model, lock, narrow=self._narrow, ways=affordable_ways(loaded.model))
        self._kv_bytes = options.kv_cache_bytes or default_kv_bytes(loaded.model)
        self._engine = self._make_engine(settings, decode) if self._reason is None else None
        compute_threads.give_back()  # of the thread that loaded the model, which goes on with other things

    def _make_engine(self, settings: ModelSettings, decode: Decode) -> EngineRoute:
        self._watch()
        self._runner.bytes_for(1)  # learnt here, since callers' threads ask for it later
        return EngineRoute(
            self._runner,
            decode,
            self._spelling,
            settings.config,
            kv_cache_bytes=self._kv_bytes,
            max_running=self._options.max_running,
            n_threads=self._options.n_threads,
            max_waiting=self._options.max_waiting,
            name=self._loaded.files.name,
        )

    @property
    def info(self) -> EngineInfo:
        """Which route the model takes, and why; runs the self-test if it was not needed yet."""
        if self._engine is None:
            return EngineInfo("generate", self._reason or "", "alone", 0)
        verdict = self._tested()
        claim = "alone" if verdict.problem else "batched"
        return EngineInfo("engine", "", claim, self._kv_bytes, verdict.elapsed_s)

    @property
    def has_engine(self) -> bool:
        """Whether the model runs on the engine at all."""
        return self._engine is not None

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
        for group in batches(others, self._options.max_rows, self.generate.shared):
            may_wait = all(one.request.when_full == "wait" for one in group)
            yield from self._thread.chunks(partial(self.generate.run, group), may_wait=may_wait)

    async def achunks(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        """`chunks` for an event loop, which neither the self-test nor `model.generate` holds up."""
        with self._calls.one_more():
            async for chunk in self._achunks(requests):
                yield chunk

    async def _achunks(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        if self._adapters.active not in self._verdicts and any(request.reproducible for request in requests):
            await asyncio.to_thread(self._tested)
        for_engine, others = self._divided(requests)
        if self._engine is not None and for_engine:
            async for chunk in self._engine.achunks(for_engine):
                yield chunk
        for group in batches(others, self._options.max_rows, self.generate.shared):
            may_wait = all(one.request.when_full == "wait" for one in group)
            async for chunk in self._thread.achunks(partial(self.generate.run, group), may_wait=may_wait):
                yield chunk

    def _divided(self, requests: Sequence[Request]) -> tuple[list[Numbered], list[Numbered]]:
        """The requests that take the engine, and the others."""
        divided: tuple[list[Numbered], list[Numbered]] = ([], [])
        for index, request in enumerate(requests):
            divided[not self._takes_engine(request)].append(Numbered(index, request))
        return divided

    def _takes_engine(self, request: Request) -> bool:
        if self._engine is None or request.params.uses_beams:
            return False
        return not request.reproducible or not self._tested().problem

    def use_adapter(self, files: AdapterFiles | None) -> None:
        """Generate with an adapter from now on, or without one.

        What runs ends first, who comes meanwhile waits, and cached prefixes are dropped.

        Raises:
            ModelInvalid: it does not fit the model; the one before stays.
            ModelClosed: the routes were closed.
        """
        self._exclusively(partial(self._switch, files))

    def without_adapter(self, action: Callable[[], None]) -> None:
        """Do something with the model as it was loaded; where an adapter is in use, nothing runs meanwhile."""
        if self._adapters.active is None:
            action()
            return

        def act() -> None:
            with self._adapters.taken_away():
                action()

        self._exclusively(act)

    def _exclusively(self, change: Callable[[], None]) -> None:
        """In the thread of the other route, so that neither generates meanwhile, nor does the self-test run."""
        engine = self._engine
        self._thread.run(change if engine is None else partial(engine.exclusively, change))

    def _switch(self, files: AdapterFiles | None) -> None:
        with self._adapters.changed_to(files):
            if self._engine is not None and files is not None and files not in self._proved:
                self._prove_with(files)

    def _prove_with(self, files: AdapterFiles) -> None:
        """Repeat the proof, with the adapter in its place.

        Raises:
            ModelInvalid: the model cannot run in flat steps any more.
        """
        make_switchable(self._loaded.model)
        reason = why_not_flat(self._loaded.model)
        if reason is None and self._narrow and not may_narrow(self._loaded.model):
            reason = "its last layer needs all rows now"
        if reason is not None:
            what = f"with the adapter {str(files.path)!r}, {self._loaded.files.name!r} cannot run on the engine"
            raise ModelInvalid(f"{what}: {reason}; load it with engine=False")
        self._watch()
        self._proved.add(files)

    def _watch(self) -> None:
        """Learn from forward passes what classes do not tell: who calls functions itself, and who reads the same."""
        switch_callers(self._loaded.model)
        packed.join(self._loaded.model)

    def _tested(self) -> Verdict:
        """What the self-test says of the model as it is; it runs once, when the first request asks for equal bits."""
        with self._testing:
            found = self._verdicts.get(self._adapters.active)
            return self._self_test() if found is None else found

    def _self_test(self) -> Verdict:
        """Test the model in a thread with the engine's number of torch threads, and a runner of its own."""
        if self._engine is None:
            return Verdict("it has no engine", 0.0)
        model, name = self._loaded.model, self._loaded.files.name

        def test() -> Verdict:
            verdict = self_test(model, FlatRunner(model, self._lock, narrow=self._narrow))
            self._verdicts[self._adapters.active] = verdict
            return verdict

        verdict = self._thread.run(test)
        _log.info(
            "self-test of %r: %.1f s, %s", name, verdict.elapsed_s, verdict.problem or "equal bits in any company"
        )
        if verdict.problem:
            problem = f"a batch changes the bits of {name!r} here ({verdict.problem}); seeded requests run alone"
            if model.device.type == "cpu" and torch.backends.mkl.is_available() and "MKL_CBWR" not in os.environ:
                problem += "; MKL_CBWR=AUTO,STRICT in the environment, set before Python starts, may change that"
            warnings.warn(problem, NotReproducibleWarning, stacklevel=2)
        return verdict

    def retire(self, end: Callable[[], object]) -> None:
        """Wait until all that was handed in has ended; call `end` then, or after calls that have more to hand in."""
        if self._engine is not None:
            self._engine.exclusively(lambda: None)
        self._thread.run(lambda: None)
        self._calls.after_the_last(end)

    def close(self) -> None:
        """End everything, and free the keys and values."""
        if self._engine is not None:
            self._engine.close()
        self._thread.close()


def affordable_ways(model: PreTrainedModel) -> FastWays:
    """The fastest ways to multiply here; without second copies of the weights where there is little room for them."""
    ways, free = fast_ways(), psutil.virtual_memory().available
    return ways if packed.all_packed_bytes(model) <= free * COPIES_SHARE else ways.without_copies
