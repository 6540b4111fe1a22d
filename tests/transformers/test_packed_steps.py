"""Fast steps of many sequences multiply by oneDNN on a second copy of the weights; small ones do not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers import products, runner
from llmkit_transformers.numerics import make_switchable, packed_bytes
from llmkit_transformers.runner import FlatRunner
from tests.transformers.flat_models import FLAT, V, built

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch")
N_NEW = 12


@pytest.fixture
def model() -> PreTrainedModel:
    made = built(FLAT["llama"]())
    make_switchable(made)
    return made


def greedy(model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of all prompts side by side, in the fast mode."""
    one, texts = FlatRunner(model), [list(prompt) for prompt in prompts]
    kept, read = [one.new() for _ in prompts], 0
    for _ in range(N_NEW):
        slices = [
            Slice(b, text[read and len(text) - 1 :], read and len(text) - 1, False)
            for b, text in zip(kept, texts, strict=True)
        ]
        for text, token in zip(texts, one.logits(slices).argmax(-1).tolist(), strict=True):
            text.append(token)
        read = 1
    return [text[-N_NEW:] for text in texts]


def prompts(n: int) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(3, V) for _ in range(draw.randint(5, 70))] for _ in range(n)]


def test_tokens_of_many_sequences_are_those_of_each_alone(model: PreTrainedModel) -> None:
    tasks = prompts(16)
    alone = [greedy(model, [task])[0] for task in tasks]
    assert packed_bytes(model) == 0
    assert greedy(model, tasks) == alone
    assert packed_bytes(model) > 0


@pytest.mark.parametrize(("n", "expected"), [(1, False), (15, False), (16, True), (20, True)])
def test_the_copy_is_made_from_sixteen_sequences_on(n: int, expected: bool, model: PreTrainedModel) -> None:
    greedy(model, prompts(n))
    assert (packed_bytes(model) > 0) is expected


def test_where_memory_is_short_no_copy_is_made(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        available = model.get_memory_footprint() * 4

    monkeypatch.setattr(runner.psutil, "virtual_memory", Short)
    greedy(model, prompts(16))
    assert packed_bytes(model) == 0
    monkeypatch.setattr(Short, "available", model.get_memory_footprint() * 6)
    greedy(model, prompts(16))
    assert packed_bytes(model) > 0


def test_the_products_of_such_a_step_are_onednns(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls, real = [0], products.row_product

    def counted(*tensors: Any) -> torch.Tensor:
        n_calls[0] += 1
        return real(*tensors)

    monkeypatch.setattr("llmkit_transformers.numerics.row_product", counted)
    greedy(model, prompts(3))
    assert n_calls[0] == 0
    greedy(model, prompts(16))
    n_layers: int = model.config.num_hidden_layers
    assert n_calls[0] == N_NEW * (7 * n_layers + 1)
