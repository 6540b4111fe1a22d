"""Many requests at once: ragged lengths, and prompts that begin alike; against `generate` and continuous batching."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.measure import Row, in_own_thread, interleaved, ratios, row
from benchmarks.peers import Job, Tokens, batched_continuously, best_batch_size, continuous_batching, generated
from benchmarks.random_llama import random_llama
from llmkit import GenerationParams, Request
from llmkit_transformers import TransformersLLM

_Side = Callable[[], Tokens]

N_ROUNDS = 5
CONTINUOUS = {
    "page_size": 16,
    "num_blocks": 2048,
    "kv_padding_interval_size": 256,
    "q_padding_interval_size": 8,
}
"""The fastest setting of those tried that runs both workloads. Pages of 8 and 32, and 16 without the two intervals,
took up to a fifth more; pages of 64 with key intervals of 64 1.4 times as long, and its own defaults, made for GPUs,
more than twice. With 4,096 blocks of 16 it failed on the ragged prompts; with `num_blocks` alone it asked for more
memory than there was."""


def text_of(n_tokens: int, draw: random.Random) -> str:
    """A text of so many tokens: this model has no token of two small letters."""
    return "".join(draw.choices(string.ascii_lowercase, k=n_tokens))


def ragged_texts(draw: random.Random) -> tuple[list[str], list[int]]:
    """48 prompts of 16 to 200 tokens; 4 to 200 new ones, exponential with mean 40. Lengths are always the same."""
    lengths = random.Random(1)
    n_prompt = [lengths.randint(16, 200) for _ in range(48)]
    n_new = [min(200, max(4, round(lengths.expovariate(1 / 40)))) for _ in range(48)]
    return [text_of(n, draw) for n in n_prompt], n_new


def few_shot_texts(draw: random.Random) -> tuple[list[str], list[int]]:
    """64 prompts that share 400 tokens and have 15 to 40 of their own; 10 new ones."""
    lengths, shared = random.Random(1), text_of(400, draw)
    return [shared + text_of(lengths.randint(15, 40), draw) for _ in range(64)], [10] * 64


@dataclass
class Texts:
    """The prompts of a round, new ones each time, so that no side finds the last round's in a cache."""

    make: Callable[[random.Random], tuple[list[str], list[int]]]
    llm: TransformersLLM
    _draw: random.Random = field(default_factory=lambda: random.Random(7))

    def draw(self) -> None:
        texts, n_new = self.make(self._draw)
        self.job = Job([self.llm.tokenizer(text)["input_ids"] for text in texts], n_new)
        pairs = zip(texts, n_new, strict=True)
        self.requests = [Request(text, GenerationParams(max_tokens=n), raw=True) for text, n in pairs]


def batches() -> list[Row]:
    """llmkit's `complete_batch` over each peer, both workloads."""
    with random_llama() as llm:
        return [
            *_compared(llm, "ragged, 48 prompts", ragged_texts, (8, 16, 32, 48), (1 / 2.3, 1 / 3)),
            *_compared(llm, "few-shot, 64 prompts", few_shot_texts, (8, 16, 32, 64), (1 / 6, 1 / 20)),
        ]


def _compared(
    llm: TransformersLLM,
    workload: str,
    make: Callable[[random.Random], tuple[list[str], list[int]]],
    batch_sizes: tuple[int, ...],
    limits: tuple[float, float],
) -> list[Row]:
    texts = Texts(make, llm)
    texts.draw()
    size = best_batch_size(llm.model, texts.job, batch_sizes)

    def ours() -> Tokens:
        return [list(c.choices[0].token_ids) for c in llm.complete_batch(texts.requests)]

    padded = _seconds(texts, ours, lambda: generated(llm.model, texts.job, size))
    # Its thread keeps an OpenMP pool, which slows the other side down; so it is compared with our time without it.
    with continuous_batching(llm.model, **CONTINUOUS) as manager:
        continuous = _seconds(texts, ours, lambda: batched_continuously(manager, texts.job))
    return [
        row(workload, "llmkit", "s", padded["llmkit"]),
        row(workload, f"generate, batches of {size}", "s", padded["peer"]),
        row(workload, "transformers' continuous batching", "s", continuous["peer"]),
        row(workload, "llmkit / generate", "x", ratios(padded["llmkit"], padded["peer"]), limits[0]),
        row(workload, "llmkit / continuous batching", "x", ratios(padded["llmkit"], continuous["peer"]), limits[1]),
    ]


def _seconds(texts: Texts, ours: _Side, peers: _Side) -> dict[str, list[float]]:
    sides = {"llmkit": ours, "peer": peers}
    _check_equal({name: in_own_thread(side) for name, side in sides.items()})
    return interleaved(sides, N_ROUNDS, texts.draw)


def _check_equal(found: dict[str, Tokens]) -> None:
    """All sides give the same greedy tokens; a text may part ways once, where rounding decides between two tokens."""
    ours = found["llmkit"]
    for name, texts in found.items():
        n_other = sum(a != b for a, b in zip(ours, texts, strict=True))
        if [len(text) for text in texts] != [len(text) for text in ours] or n_other > len(ours) // 10:
            raise RuntimeError(f"both sides must give the same tokens, but {name} has {n_other} other texts")
