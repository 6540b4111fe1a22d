"""The peers: `model.generate` in padded batches and transformers' continuous batching, each on its best setting.

They get token ids and give token ids, greedy, and never end a text by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager

from benchmarks.measure import elapsed_s, in_own_thread

Tokens = list[list[int]]


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts, and how many new tokens each is to get."""

    prompts: Tokens
    n_new: list[int]


def generated(model: PreTrainedModel, job: Job, batch_size: int) -> Tokens:
    """By `generate`: sorted by length, padded on the left; a batch goes on until its longest text is done."""
    order = sorted(range(len(job.prompts)), key=lambda index: -len(job.prompts[index]))
    found: Tokens = [[] for _ in job.prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        texts = _padded_batch(model, [job.prompts[index] for index in rows], max(job.n_new[index] for index in rows))
        for index, text in zip(rows, texts, strict=True):
            found[index] = text[: job.n_new[index]]
    return found


def _padded_batch(model: PreTrainedModel, prompts: Sequence[list[int]], n_new: int) -> Tokens:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(do_sample=False, max_new_tokens=n_new, pad_token_id=0)
    return model.generate(ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()


def best_batch_size(model: PreTrainedModel, job: Job, sizes: Sequence[int]) -> int:
    """The batch size with which `generate` is fastest, each tried once after a warm-up."""
    in_own_thread(lambda: _padded_batch(model, job.prompts[:2], 2))
    return min(sizes, key=lambda size: elapsed_s(lambda: generated(model, job, size)))


@contextmanager
def continuous_batching(model: PreTrainedModel, **settings: int) -> Generator[ContinuousBatchingManager]:
    """A manager of transformers' continuous batching that stays warm between jobs."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    config = GenerationConfig(do_sample=False, max_new_tokens=256, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**settings)
    )
    manager.start()
    try:
        # Its thread changes the model's attention when it begins, which must not happen while another side runs.
        batched_continuously(manager, Job([[1, 2, 3]], [2]))
        yield manager
    finally:
        manager.stop(block=True)


def batched_continuously(manager: ContinuousBatchingManager, job: Job) -> Tokens:
    """By a warm manager of continuous batching."""
    names = [
        manager.add_request(prompt, max_new_tokens=n, eos_token_id=-1)
        for prompt, n in zip(job.prompts, job.n_new, strict=True)
    ]
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("continuous batching ended by itself")
        if result is not None and result.error is not None:
            raise RuntimeError(f"continuous batching failed: {result.error}")
        if result is not None and result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    return [found[name] for name in names]
