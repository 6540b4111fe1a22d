"""What llmkit costs on top of `model.generate`: the same model object, the same tokens in, the same tokens out.

The raw side starts from token ids and decodes nothing; llmkit's side takes text, encodes, generates, decodes, matches
stop strings and counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig

import llmkit
from benchmarks.measure import Row, in_own_thread, interleaved, ratios, row
from benchmarks.random_llama import save_random_llama
from llmkit import BackendLLM

N_NEW_TOKENS = 64
N_ROUNDS = 15
LIMIT = {"embedded": 1.03, "random 32 M": 1.0}
PROMPT = "Here is a list of facts about the countries of the world and their capitals. France: Paris. Japan: Tokyo."


def overhead() -> list[Row]:
    """`run` and `stream` over `model.generate`, on the embedded model and on a random one of 32 M parameters."""
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": None, "random 32 M": str(save_random_llama(Path(folder)))}
        return [row for name, model in models.items() for row in _on_model(name, model)]


def _on_model(name: str, model: str | None) -> list[Row]:
    with llmkit.load(model, device="cpu", max_tokens=N_NEW_TOKENS, eos_token_id=[]) as llm:
        sides = _sides(llm)
        seconds = interleaved(sides, N_ROUNDS)
    raw = seconds["generate"]
    workload = f"{name}, {N_NEW_TOKENS} tokens"
    return [
        row(workload, "model.generate", "s", raw),
        row(workload, "run / generate", "x", ratios(seconds["run"], raw), LIMIT[name]),
        row(workload, "stream / generate", "x", ratios(seconds["stream"], raw)),
    ]


def _sides(llm: BackendLLM) -> dict[str, Callable[[], object]]:
    """The calls that are compared; that they give the same tokens is checked first."""
    ids = torch.tensor([llm.tokenizer(PROMPT)["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = GenerationConfig(do_sample=False, max_new_tokens=N_NEW_TOKENS, pad_token_id=0)

    def generate() -> list[int]:
        return llm.model.generate(**inputs, generation_config=config)[0, ids.shape[1] :].tolist()

    ours, raw = llm.complete(PROMPT, raw=True).choices[0].token_ids, tuple(in_own_thread(generate))
    if ours != raw or len(raw) != N_NEW_TOKENS:
        raise RuntimeError(f"both sides must give the same {N_NEW_TOKENS} tokens, got {ours} and {raw}")
    return {
        "generate": generate,
        "run": lambda: llm.run(PROMPT, raw=True),
        "stream": lambda: "".join(llm.stream(PROMPT, raw=True)),
    }
