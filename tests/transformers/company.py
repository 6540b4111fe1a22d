"""Rows in random company: sequences read, decoded, cached, forked, cut back and dropped beside others.

What each row's logits must be is known from reading its prompt alone, token by token, in one thread.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers.compute_threads import threads
from tests.transformers.flat_models import runner_of

N_THREADS = (1, 2, 3, 4, 6, 8)
STEP_SIZES = (1, 2, 3, 4, 7, 16, 33, 64)


@dataclass(eq=False)
class Live:
    """A sequence: the first `at` tokens of one of the prompts, with their keys and values."""

    prompt: int
    kept: Any
    at: int = 0


class Company:
    """Reads prompts in random company and compares every row's logits with those of the prompt read alone.

    Args:
        model: made switchable.
        lengths: of the prompts; some beyond a tile's end.
        seed: of the prompts and of everything random.
    """

    def __init__(self, model: PreTrainedModel, lengths: tuple[int, ...] = (3, 70, 130), seed: int = 0) -> None:
        self.draw, self.runner = random.Random(seed), runner_of(model)
        self.n_vocab: int = model.config.get_text_config().vocab_size
        self.prompts = [[self.draw.randrange(3, self.n_vocab) for _ in range(n)] for n in lengths]
        with threads(1):
            self.alone = [self._alone(prompt) for prompt in self.prompts]
        self.live: list[Live] = []
        self.n_made = self.n_different = 0
        self.sizes: set[int] = set()

    def _alone(self, prompt: list[int]) -> list[torch.Tensor]:
        kept = self.runner.new()
        return [self.runner.logits([Slice(kept, [token], at, True)])[0] for at, token in enumerate(prompt)]

    def compare(self, n_comparisons: int) -> None:
        """Run steps until so many rows were compared."""
        while self.n_made < n_comparisons:
            with threads(self.draw.choice(N_THREADS)):
                self.step(self.draw.choice(STEP_SIZES))

    def step(self, n_rows: int) -> None:
        """One step of so many sequences, old and new, in random order."""
        self._drop_some()
        going = self.draw.sample(self.live, min(n_rows, len(self.live)))
        going += [self._begun() for _ in range(n_rows - len(going))]
        slices = [self._slice(live) for live in going]
        logits = self.runner.logits(slices)
        for live, piece, row in zip(going, slices, logits, strict=True):
            live.at += len(piece.token_ids)
            self.n_made += 1
            self.n_different += not torch.equal(row, self.alone[live.prompt][live.at - 1])
        self.live = [live for live in dict.fromkeys([*self.live, *going]) if live.at < len(self.prompts[live.prompt])]
        self.sizes.add(n_rows)

    def _slice(self, live: Live) -> Slice:
        n_left = len(self.prompts[live.prompt]) - live.at
        n = min(n_left, self.draw.choice([1, 1, 1, 2, 3, 5, 17, 64, n_left]))
        return Slice(live.kept, self.prompts[live.prompt][live.at : live.at + n], live.at, True)

    def _begun(self) -> Live:
        """A sequence without tokens, or a copy of the beginning of another, as the prefix cache makes them."""
        source = self.draw.choice(self.live) if self.live and self.draw.random() < 0.4 else None
        if source is None or source.at < 2:
            return Live(self.draw.randrange(len(self.prompts)), self.runner.new())
        n_kept = self.draw.randrange(1, source.at)
        return Live(source.prompt, self.runner.fork(source.kept, n_kept), n_kept)

    def _drop_some(self) -> None:
        """Cancel some sequences, and cut some back, as adopting a cached prefix does."""
        for live in list(self.live):
            fate = self.draw.random()
            if fate < 0.1:
                self.runner.free(live.kept)
                self.live.remove(live)
            elif fate < 0.2 and live.at > 1:
                live.at = self.draw.randrange(1, live.at)
                self.runner.truncate(live.kept, live.at)
