"""llmkit on llama.cpp against llama-cpp-python's own loop: the same file, the same threads, the same tokens in and out.

The loop is `Llama.generate` at temperature 0, one prompt after another; it keeps the keys and values of the last prompt
and reads only what differs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

import llmkit
from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.random_gguf import save_gguf
from benchmarks.random_llama import save_random_llama
from llmkit import BackendLLM, Completion, GenerationParams, Request

N_THREADS = 2
N_LONE_TOKENS = 64
N_ROUNDS, N_LONE_ROUNDS = 5, 15
LONE_LIMIT, RAGGED_LIMIT, FEW_SHOT_LIMIT, CONCURRENT_LIMIT = 1.03, 1 / 1.7, 1 / 2.4, 1 / 1.5
LONE_PROMPT = (
    "Here is a list of facts about the countries of the world and their capitals. France: Paris. Japan: Tokyo."
)


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt, and how many tokens are to follow it."""

    prompt: str
    n_new: int


def llama_cpp_loop() -> list[Row]:
    """A lone `run`, ragged and few-shot batches, and concurrent `arun` calls, over llama-cpp-python's loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(save_gguf(save_random_llama(Path(folder))))
        with llmkit.load(path, device="cpu", n_threads=N_THREADS, eos_token_id=[]) as llm:
            peer = Peer(path, llm.context_length or 0)
            return [row for rows in (_lone, _ragged, _few_shot, _concurrent) for row in rows(llm, peer)]


class Peer:
    """llama-cpp-python's own way of generating."""

    def __init__(self, path: str, n_ctx: int) -> None:
        self._llama = llama_cpp.Llama(
            path, n_ctx=n_ctx, n_threads=N_THREADS, n_threads_batch=N_THREADS, flash_attn=True, verbose=False
        )

    def run(self, job: Job) -> str:
        prompt = self._llama.tokenize(job.prompt.encode(), add_bos=False)
        tokens = list(itertools.islice(self._llama.generate(prompt, temp=0.0), job.n_new))
        return self._llama.detokenize(tokens).decode(errors="replace")

    def run_all(self, jobs: Sequence[Job]) -> list[str]:
        return [self.run(job) for job in jobs]


def _lone(llm: BackendLLM, peer: Peer) -> list[Row]:
    job = Job(LONE_PROMPT, N_LONE_TOKENS)

    def run() -> str:
        return llm.run(job.prompt, max_tokens=job.n_new, raw=True)

    if run() != peer.run(job):
        raise RuntimeError(f"both sides must give the same text, got {run()!r} and {peer.run(job)!r}")
    return _rows("a lone run", {"llmkit": run, "loop": lambda: peer.run(job)}, LONE_LIMIT, N_LONE_ROUNDS)


def _ragged(llm: BackendLLM, peer: Peer) -> list[Row]:
    return _batch("ragged, 48 prompts", llm, peer, ragged, RAGGED_LIMIT)


def _few_shot(llm: BackendLLM, peer: Peer) -> list[Row]:
    return _batch("few-shot, 64 prompts", llm, peer, few_shot, FEW_SHOT_LIMIT)


def _concurrent(llm: BackendLLM, peer: Peer) -> list[Row]:
    async def gathered(jobs: Sequence[Job]) -> list[str]:
        return await asyncio.gather(*(llm.arun(job.prompt, max_tokens=job.n_new, raw=True) for job in jobs))

    ours, theirs = (map(concurrent, itertools.count()) for _ in range(2))
    sides = {"llmkit": lambda: asyncio.run(gathered(next(ours))), "loop": lambda: peer.run_all(next(theirs))}
    return _rows("16 concurrent arun", sides, CONCURRENT_LIMIT)


def _batch(name: str, llm: BackendLLM, peer: Peer, jobs_of: Callable[[int], list[Job]], limit: float) -> list[Row]:
    def run(jobs: Sequence[Job]) -> list[Completion]:
        requests = [Request(job.prompt, GenerationParams(max_tokens=job.n_new), raw=True) for job in jobs]
        return llm.complete_batch(requests)

    # Both sides get new prompts in each round, so that none profits from the round before.
    ours, theirs = (map(jobs_of, itertools.count()) for _ in range(2))
    return _rows(name, {"llmkit": lambda: run(next(ours)), "loop": lambda: peer.run_all(next(theirs))}, limit)


def ragged(n_round: int) -> list[Job]:
    """48 prompts of 16-200 tokens, 4-200 new ones (exponential, mean 40)."""
    draw = random.Random(f"ragged {n_round}")
    news = [min(200, max(4, round(draw.expovariate(1 / 40)))) for _ in range(48)]
    return [Job(_text(draw, draw.randint(16, 200)), n_new) for n_new in news]


def few_shot(n_round: int) -> list[Job]:
    """64 prompts of 400 shared and 15-40 own tokens, 10 new ones."""
    draw = random.Random(f"few-shot {n_round}")
    shared = _text(draw, 400)
    return [Job(shared + _text(draw, draw.randint(15, 40)), 10) for _ in range(64)]


def concurrent(n_round: int) -> list[Job]:
    """16 prompts of 32 tokens, 32 new ones."""
    draw = random.Random(f"concurrent {n_round}")
    return [Job(_text(draw, 32), 32) for _ in range(16)]


def _text(draw: random.Random, n_tokens: int) -> str:
    """Text of so many tokens: the random tokenizer joins no letters."""
    return "".join(draw.choices(string.ascii_lowercase, k=n_tokens))


def _rows(
    workload: str, sides: Mapping[str, Callable[[], object]], limit: float, n_rounds: int = N_ROUNDS
) -> list[Row]:
    seconds = interleaved(sides, n_rounds)
    return [
        row(workload, "llama-cpp-python's loop", "s", seconds["loop"]),
        row(workload, "llmkit / loop", "x", ratios(seconds["llmkit"], seconds["loop"]), limit),
    ]
