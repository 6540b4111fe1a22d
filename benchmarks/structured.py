"""What structured output costs: a batch that is kept to a schema of 50 fields, over the same batch left free.

Both sides generate the same number of tokens on the same model; the texts are too long for the tokens, so none ends
early. The schema is compiled before, as it is once for all calls.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import llmkit
from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.random_llama import save_random_llama
from llmkit import Request
from llmkit.structured import Constraint

N_TASKS = 16
N_FIELDS = 50
N_NEW_TOKENS = 400
N_ROUNDS = 5
LIMIT = 1 / (1 - 0.15)
"""At most 15 % of the tokens per second may be lost."""

KINDS: tuple[dict[str, Any], ...] = (
    {"type": "string", "maxLength": 40},
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "number"}, "maxItems": 8},
    {"enum": ["north", "south", "east", "west"]},
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {f"field_{n}": KINDS[n % len(KINDS)] for n in range(N_FIELDS)},
    "required": [f"field_{n}" for n in range(N_FIELDS)],
    "additionalProperties": False,
}


def structured() -> list[Row]:
    """A batch under a schema over a free one, on a random model of 32 M parameters."""
    tasks = [f"Describe the weather station number {n} of the northern coast:" for n in range(N_TASKS)]
    free = [Request(task) for task in tasks]
    kept = [Request(task, constraint=Constraint.of(schema=SCHEMA)) for task in tasks]
    with tempfile.TemporaryDirectory() as folder:
        path = str(save_random_llama(Path(folder)))
        with llmkit.load(path, device="cpu", max_tokens=N_NEW_TOKENS, eos_token_id=[]) as llm:
            sides = {"free": lambda: _generate(llm, free), "schema": lambda: _generate(llm, kept)}
            seconds = interleaved(sides, N_ROUNDS)
    workload = f"{N_TASKS} x {N_NEW_TOKENS} tokens, {N_FIELDS} fields"
    return [
        row(workload, "free batch", "s", seconds["free"]),
        row(workload, "schema / free", "x", ratios(seconds["schema"], seconds["free"]), LIMIT),
    ]


def _generate(llm: llmkit.BackendLLM, requests: list[Request]) -> None:
    n_tokens = [len(completion.choices[0].token_ids) for completion in llm.complete_batch(requests)]
    if n_tokens != [N_NEW_TOKENS] * N_TASKS:
        raise RuntimeError(f"every text must have {N_NEW_TOKENS} tokens, got {n_tokens}")
