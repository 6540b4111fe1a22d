"""Owns the model's shape and its optimisation: seeded, bounded by passes over the data and by a time cap.

It does not know what the examples say, and writes no files.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tools.tiny.batches import Batch, Document, batches, pad_id
from tools.tiny.data import BOS, EOS
from tools.tiny.tokenizer import MAX_LENGTH, VOCAB_SIZE


@dataclass(frozen=True)
class Recipe:
    """How long and how hard to train. `cap_s` shortens the run on a slow machine, at the price of accuracy.

    A round is one pass over the data with a warm-up and a decay of its own; each starts from the weights of the one
    before, at 0.7 of its learning rate.
    """

    rounds: int = 3
    peak_rate: float = 2.5e-3
    warmup: float = 0.04
    weight_decay: float = 0.05
    cap_s: float = 1500.0
    seed: int = 3
    threads: int = 2


@dataclass
class Progress:
    """Where the run stands; `fraction` is of the steps or of the time cap, whichever is further."""

    recipe: Recipe
    n_steps: int
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since training began."""
        return time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return max(self.step / self.n_steps, self.elapsed_s / (self.recipe.cap_s / self.recipe.rounds))

    @property
    def rate(self) -> float:
        """The learning rate: a linear warm-up, then linearly down to nought."""
        done = min(self.fraction, 1.0)
        return self.recipe.peak_rate * min(done / self.recipe.warmup, (1.0 - done) / (1.0 - self.recipe.warmup))


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Builds the untrained model of about three million parameters."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=pad_id(tokenizer),
    )
    return LlamaForCausalLM(config)


def train(documents: Sequence[Document], tokenizer: Tokenizer, recipe: Recipe) -> LlamaForCausalLM:
    """Trains a new model; equal seeds, threads and machine give equal weights unless the time cap bites."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    rng = random.Random(recipe.seed)
    model = new_model(tokenizer).train()
    for n in range(recipe.rounds):
        plan = list(batches(documents, pad_id(tokenizer), rng))
        train_round(model, plan, replace(recipe, peak_rate=recipe.peak_rate * 0.7**n))
    return model.eval()


def train_round(model: LlamaForCausalLM, plan: Sequence[Batch], recipe: Recipe) -> None:
    """Trains the model on the batches, or on as many as its share of the time allows."""
    optimizer = _optimizer(model, recipe)
    progress = Progress(recipe, len(plan))
    for batch in plan:
        if progress.fraction >= 1.0:
            break
        loss = _step(model, optimizer, batch, progress.rate)
        progress.step += 1
        _report(progress, loss)


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [one for one in model.parameters() if one.dim() > 1]
    gains = [one for one in model.parameters() if one.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98), fused=True)


def _step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    # Padding is on the right and attention looks left, so no mask is needed.
    logits = model(batch.inputs, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _report(progress: Progress, loss: float) -> None:
    if progress.step % 50 == 0 or progress.step == progress.n_steps:
        line = f"step {progress.step}/{progress.n_steps}  loss {loss:.3f}  {progress.elapsed_s:.0f} s"
        print(line, file=sys.stderr, flush=True)
