"""Counts of rows, failures and tokens.

They know neither tasks nor models.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.types import Completion


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a task did since it was made; tokens are counted where the model tells them.

    Attributes:
        rows: rows that came in.
        failures: rows that gave None, for one generation at least.
        prompt_tokens: tokens that the model read.
        completion_tokens: tokens that it generated.
    """

    rows: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.rows + other.rows,
            self.failures + other.failures,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def token_counts(completion: Completion, choice: int) -> dict[str, int | None]:
    """Tokens of one choice, as a row's metadata has them; None where they are unknown."""
    n_tokens: int | None = len(completion.choices[choice].token_ids)
    if not n_tokens:
        n_tokens = completion.usage.completion_tokens if len(completion.choices) == 1 else None
    return {"input_tokens": completion.usage.prompt_tokens, "output_tokens": n_tokens}
