"""Fast steps multiply and attend in other forms where these take less time; what they find is the same."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers import flat_attention, numerics, packed, products, routes
from llmkit_transformers.flat_step import AttentionKind
from llmkit_transformers.numerics import make_switchable, reproducible_numerics
from llmkit_transformers.packed import all_packed_bytes, join, packed_bytes
from llmkit_transformers.products import FastWays, fast_ways, may_be_fast, turned_product
from llmkit_transformers.runner import FlatRunner
from tests.transformers.flat_models import FLAT, V, built

N_NEW = 12
TURNED = FastWays(turned=range(12, 49), packed=range(0))
PACKED = FastWays(turned=range(2, 65), packed=range(1, 65), least_size=64 * 64)


@pytest.fixture
def model() -> PreTrainedModel:
    made = built(FLAT["llama"]())
    make_switchable(made)
    return made


def greedy(model: PreTrainedModel, prompts: list[list[int]], ways: FastWays) -> list[list[int]]:
    """Greedy tokens of all prompts side by side, in the fast mode."""
    one, texts = FlatRunner(model, ways=ways), [list(prompt) for prompt in prompts]
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


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """How often a function of a module is called from now on."""
    n_calls, real = [0], getattr(module, name)

    def function(*args: Any) -> Any:
        n_calls[0] += 1
        return real(*args)

    monkeypatch.setattr(module, name, function)
    return n_calls


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 40), (1, 41, 40), (2, 3, 7, 40)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_turned_product_is_that_of_linear(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(24, 40), torch.randn(24) if has_bias else None
    found, expected = turned_product(x, weight, bias), linear(x, weight, bias)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    across = x.transpose(-1, -2).contiguous().transpose(-1, -2)  # as such a product leaves its rows to the next
    torch.testing.assert_close(turned_product(across, weight, bias), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_float32_weights_that_are_there_take_other_ways(dtype: torch.dtype) -> None:
    rows, weight = torch.zeros(1, 20, 8, dtype=dtype), torch.zeros(4, 8, dtype=dtype)
    assert may_be_fast(rows, weight) == (dtype == torch.float32)
    assert not may_be_fast(rows, weight.to("meta"))


@pytest.mark.parametrize(("processor", "has_copies"), [("Intel(R) Xeon(R) fma", False), ("AMD EPYC fma", True)])
def test_the_processors_maker_decides(processor: str, has_copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "cpu_model", lambda: processor)
    ways = fast_ways()
    assert [n for n in (1, 11, 12, 48, 49, 64, 65) if ways.serve(n)] == (
        [1, 11, 12, 48, 49, 64] if has_copies else [12, 48]
    )
    assert ways.serve(512, 20)
    assert not ways.serve(512)
    assert bool(ways.packed) == has_copies
    assert not ways.without_copies.packed
    assert ways.without_copies.serve(16)


@pytest.mark.parametrize("ways", [TURNED, PACKED], ids=["turned", "packed"])
def test_tokens_of_many_sequences_are_those_of_each_alone(
    model: PreTrainedModel, ways: FastWays, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = FastWays(range(0), range(0))
    name, module = ("turned_product", numerics) if ways is TURNED else ("packed_product", packed)
    n_calls = counted(monkeypatch, module, name)
    tasks = prompts(16)
    alone = [greedy(model, [task], never)[0] for task in tasks]
    assert n_calls[0] == 0
    assert greedy(model, tasks, ways) == alone
    sizes = [layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    # Prompts are read in a longer step, in which the output head alone has so few rows.
    assert n_calls[0] == (N_NEW - 1) * sum(size >= ways.least_size for size in sizes) + 1


def test_layers_that_multiply_at_once_do_so_in_fast_steps_too(model: PreTrainedModel) -> None:
    task, never = prompts(1), FastWays(range(0), range(0))
    expected = greedy(model, task, never)
    join(model)
    assert greedy(model, task, PACKED) == expected


def test_other_modes_and_other_users_of_the_model_are_left_alone(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_calls = counted(monkeypatch, numerics, "turned_product")
    rows = torch.zeros(1, 20, dtype=torch.long)
    with torch.inference_mode():
        model(input_ids=rows)
        with reproducible_numerics(True, ways=TURNED):
            model(input_ids=rows)
        with reproducible_numerics(False):
            model(input_ids=rows)
        assert n_calls[0] == 0
        with reproducible_numerics(False, ways=TURNED):
            model(input_ids=rows)
    assert n_calls[0] > 0


def test_second_copies_are_made_of_large_weights_alone_and_only_where_they_are_used(model: PreTrainedModel) -> None:
    greedy(model, prompts(20), TURNED)
    assert packed_bytes(model) == 0
    greedy(model, prompts(20), PACKED)
    sizes = [layer.weight.nbytes for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert packed_bytes(model) == sum(size for size in sizes if size >= 4 * PACKED.least_size)
    assert all_packed_bytes(model) == sum(sizes)


@pytest.mark.parametrize(("free", "has_copies"), [(2**40, True), (2**10, False)])
def test_second_copies_that_only_save_time_must_leave_memory(
    model: PreTrainedModel, free: int, has_copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(routes.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert bool(routes.affordable_ways(model).packed) == has_copies


def test_logits_lie_row_by_row(model: PreTrainedModel) -> None:
    for ways in (TURNED, PACKED):
        runner = FlatRunner(model, ways=ways)
        found = runner.logits([Slice(runner.new(), prompt, 0, False) for prompt in prompts(20)])
        assert found.is_contiguous()


# --- attention --------------------------------------------------------------------------------------------------------


def attended(form: Any, n_heads: int, n_groups: int, n_rows: int, n_keys: int, *, n_masked: int = 0) -> Tensor:
    """What rows find that are the last of so many, in one form or the other, with a mask for the last keys or all."""
    torch.manual_seed(n_keys)
    query = torch.randn(1, n_heads, n_groups * n_rows, 16)
    keys, values = torch.randn(2, 1, n_heads, n_keys, 16).unbind()
    unseen = torch.full((n_rows, n_rows), -torch.inf).triu(1)
    mask = torch.cat([torch.zeros(n_rows, n_keys - n_rows), unseen], dim=1).repeat(n_groups, 1)
    kind = AttentionKind(n_heads * n_groups, n_heads, 16, 16, 0.25, None, None)
    return form(query, keys, values, mask[:, -n_masked:], kind)


@pytest.mark.parametrize("sizes", [(4, 2, 41, 1832), (2, 1, 64, 256), (1, 4, 32, 300), (2, 2, 64, 257)])
def test_attention_in_parts_is_attention_in_one(sizes: tuple[int, int, int, int]) -> None:
    expected = attended(flat_attention._scored, *sizes)
    for n_masked in (0, sizes[2], sizes[2] + 7):
        torch.testing.assert_close(attended(flat_attention._scored_unfused, *sizes, n_masked=n_masked), expected)


@pytest.mark.parametrize(("n_before", "n_new", "in_parts"), [(400, 40, True), (100, 40, False), (400, 1, False)])
def test_a_turn_after_a_long_history_attends_in_parts(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, n_before: int, n_new: int, in_parts: bool
) -> None:
    n_calls = counted(monkeypatch, flat_attention, "_scored_unfused")
    runner, draw = FlatRunner(model), random.Random(2)
    text = [draw.randrange(3, V) for _ in range(n_before + n_new)]
    kept = runner.new()
    runner.logits([Slice(kept, text[:n_before], 0, False)])
    found = runner.logits([Slice(kept, text[n_before:], n_before, False)])[0]
    assert n_calls[0] == (model.config.num_hidden_layers if in_parts else 0)
    expected = model(input_ids=torch.tensor([text])).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
