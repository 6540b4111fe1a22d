"""What was read once is not read again: choices that share a prompt, and turns of a conversation."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from transformers import GenerationConfig

from benchmarks.batches import text_of
from benchmarks.measure import Row, elapsed_s, in_own_thread, interleaved, ratios, row
from benchmarks.random_llama import random_llama
from llmkit_transformers import TransformersLLM

N_ROUNDS = 9
N_CHOICES, N_PROMPT, N_NEW = 8, 768, 16
HISTORIES, N_TURN = (256, 1024, 1792), 40
LEAST_SAVING, MOST_GROWTH = 20, 1.3


def choices() -> list[Row]:
    """Eight choices of one prompt against `generate(num_return_sequences=8)`; both sample, so texts differ."""
    draw, workload = random.Random(3), f"n = {N_CHOICES}, prompt of {N_PROMPT} tokens, {N_NEW} new"
    with random_llama() as llm:
        prompt = _Prompt(llm, N_PROMPT, draw)
        sides: dict[str, Callable[[], object]] = {
            "llmkit": lambda: (
                llm.complete(
                    prompt.text, raw=True, n=N_CHOICES, max_tokens=N_NEW, temperature=1.0
                ).usage.completion_tokens
            ),
            "generate": lambda: prompt.generated(N_NEW, do_sample=True, top_k=0, num_return_sequences=N_CHOICES),
        }
        prompt.draw()
        n_tokens = {name: in_own_thread(side) for name, side in sides.items()}
        if set(n_tokens.values()) != {N_CHOICES * N_NEW}:
            raise RuntimeError(f"both sides must give {N_CHOICES * N_NEW} tokens, got {n_tokens}")
        seconds = interleaved(sides, N_ROUNDS, prompt.draw)
    return [
        row(workload, "generate", "s", seconds["generate"]),
        row(workload, "llmkit / generate", "x", ratios(seconds["llmkit"], seconds["generate"]), 1 / 4.5),
    ]


def chat() -> list[Row]:
    """The first token of a turn of 40 tokens, after a history that was read before; against reading it again."""
    with random_llama() as llm:
        reused: dict[int, list[float]] = {n: [] for n in HISTORIES}
        reread: dict[int, list[float]] = {n: [] for n in HISTORIES}
        for n_round in range(N_ROUNDS + 1):  # the first one warms up
            for n_history in HISTORIES:
                found = _turn(llm, n_history, random.Random(100 * n_round + n_history))
                if n_round:
                    reused[n_history].append(found[0])
                    reread[n_history].append(found[1])
    return _chat_rows(reused, reread)


def _chat_rows(reused: dict[int, list[float]], reread: dict[int, list[float]]) -> list[Row]:
    workload, longest = f"chat, a turn of {N_TURN} tokens: the first token", HISTORIES[-1]
    rows = [row(workload, f"after {n:,} tokens", "s", seconds) for n, seconds in reused.items()]
    for n in HISTORIES:
        limit = 1 / LEAST_SAVING if n == longest else None
        rows.append(row(workload, f"reused / read again, {n:,} tokens", "x", ratios(reused[n], reread[n]), limit))
    growth = ratios(reused[longest], reused[HISTORIES[0]])
    return [*rows, row(workload, f"{longest:,} / {HISTORIES[0]} tokens", "x", growth, MOST_GROWTH)]


def _turn(llm: TransformersLLM, n_history: int, draw: random.Random) -> tuple[float, float]:
    """Seconds to the first token with the history in the cache, and with `generate`, which reads all of it."""
    history = _Prompt(llm, n_history, draw)
    history.draw()
    llm.run(history.text, raw=True, max_tokens=1)
    turn = _Prompt(llm, 0, draw)
    turn.text = history.text + text_of(N_TURN, draw)
    tokens: list[tuple[int, ...]] = []
    reused_s = elapsed_s(
        lambda: tokens.append(llm.complete(turn.text, raw=True, max_tokens=1).choices[0].token_ids or ())
    )
    reread_s = elapsed_s(lambda: turn.generated(1, do_sample=False))
    if list(tokens[0]) != turn.last:
        raise RuntimeError(f"both sides must give the same first token, got {tokens[0]} and {turn.last}")
    return reused_s, reread_s


class _Prompt:
    """A random prompt, redrawn for each round, so that no cache knows it."""

    def __init__(self, llm: TransformersLLM, n_tokens: int, draw: random.Random) -> None:
        self._llm, self._n_tokens, self._draw = llm, n_tokens, draw
        self.text, self.last = "", [0]

    def draw(self) -> None:
        self.text = text_of(self._n_tokens, self._draw)

    def generated(self, n_new: int, **settings: object) -> int:
        """New tokens, all sequences together; `last` gets the first sequence's."""
        ids = torch.tensor([self._llm.tokenizer(self.text)["input_ids"]])
        config = GenerationConfig(max_new_tokens=n_new, pad_token_id=0, **settings)
        found = self._llm.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        new = found[:, ids.shape[1] :]
        self.last = new[0].tolist()
        return new.numel()
