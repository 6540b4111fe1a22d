"""Calls that come at once, and what reproducible numerics cost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from benchmarks.batches import text_of
from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.random_llama import random_llama
from llmkit import GenerationParams, Request
from llmkit_transformers import TransformersLLM

N_ROUNDS = 7
N_CALLS, N_PROMPT, N_NEW = 16, 32, 32


class _Texts:
    """Prompts redrawn at each use, so that no side finds them in a cache."""

    def __init__(self) -> None:
        self._draw = random.Random(11)

    def new(self, n: int) -> list[str]:
        return [text_of(N_PROMPT, self._draw) for _ in range(n)]


def concurrency() -> list[Row]:
    """Sixteen `arun` at once over sixteen in turn."""
    with random_llama() as llm:
        llm.max_tokens, texts = N_NEW, _Texts()

        async def at_once() -> list[str]:
            return list(await asyncio.gather(*(llm.arun(text, raw=True) for text in texts.new(N_CALLS))))

        async def in_turn() -> list[str]:
            return [await llm.arun(text, raw=True) for text in texts.new(N_CALLS)]

        seconds = interleaved(
            {"at once": lambda: asyncio.run(at_once()), "in turn": lambda: asyncio.run(in_turn())}, N_ROUNDS
        )
    workload = f"{N_CALLS} concurrent arun, {N_NEW} tokens each"
    return [
        row(workload, "in turn", "s", seconds["in turn"]),
        row(workload, "at once / in turn", "x", ratios(seconds["at once"], seconds["in turn"]), 1 / 3),
    ]


def reproducible() -> list[Row]:
    """Greedy with a seed over greedy without one, for a lone sequence and for sixteen."""
    with random_llama() as llm:
        return [row for n, limit in ((1, 1.6), (16, 1.3)) for row in _costs(llm, n, limit)]


def _costs(llm: TransformersLLM, n: int, limit: float) -> list[Row]:
    texts = _Texts()

    def side(seed: int | None) -> Callable[[], object]:
        params = GenerationParams(max_tokens=N_NEW, temperature=0.0, seed=seed)
        return lambda: llm.complete_batch([Request(text, params, raw=True) for text in texts.new(n)])

    seconds = interleaved({"fast": side(None), "reproducible": side(1)}, N_ROUNDS)
    workload = f"reproducible mode, batch of {n}"
    return [
        row(workload, "fast", "s", seconds["fast"]),
        row(workload, "reproducible / fast", "x", ratios(seconds["reproducible"], seconds["fast"]), limit),
    ]
