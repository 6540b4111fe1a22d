"""Functions in forms whose rows do not see one another, and the modules that are found to call them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedModel

from llmkit_transformers.functions import IndependentFunctions, Reads, callers
from llmkit_transformers.numerics import make_switchable, reads_of, reproducible_numerics, switch_callers
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.self_test import self_test
from tests.transformers.flat_models import FLAT, UNUSUAL, built

SIGMOIDS = (torch.sigmoid, torch.special.expit, Tensor.sigmoid, F.sigmoid)
TANH_GELU = (lambda x: F.gelu(x, approximate="tanh"), lambda x: F.gelu(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [*SIGMOIDS, F.silu, lambda x: F.silu(x, inplace=True), *TANH_GELU])
def test_a_form_gives_what_the_function_gives(function: Any, dtype: torch.dtype) -> None:
    x = torch.linspace(-30, 30, 4001).to(dtype)
    expected = function(x.clone())
    with IndependentFunctions():
        found = function(x.clone())
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("function", [*SIGMOIDS, F.silu, *TANH_GELU])
def test_a_form_gives_a_number_the_same_bits_wherever_it_stands(function: Any) -> None:
    x = torch.randn(4001, generator=torch.Generator().manual_seed(0)) * 5
    with IndependentFunctions():
        whole = function(x)
        for n in (2, 3, 5, 8, 17, 33):  # a tensor of one number takes another way, which no row is
            assert torch.equal(torch.cat([function(part.clone()) for part in x.split(n)]), whole)


def test_silu_changes_its_input_where_it_is_asked_to() -> None:
    x, y = torch.randn(2, 5).unbind()
    with IndependentFunctions():
        assert torch.equal(F.silu(x, inplace=True), x)
        assert not torch.equal(F.silu(y), y)


@pytest.mark.parametrize("shape", [(0, 96), (1, 96), (3, 96), (8, 96), (1, 7, 96), (2, 3, 96)], ids=str)
@pytest.mark.parametrize("bias", [None, torch.randn(40)], ids=["plain", "with a bias"])
def test_linear_takes_any_number_of_rows(shape: tuple[int, ...], bias: Tensor | None) -> None:
    x, weight = torch.randn(shape), torch.randn(40, 96)
    with IndependentFunctions():
        found = F.linear(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias))


MATMULS = (torch.matmul, Tensor.matmul, lambda x, matrix: x @ matrix)


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("shape", [(3, 96), (8, 96), (1, 7, 96)], ids=str)
def test_rows_times_one_matrix_see_no_neighbours(matmul: Any, shape: tuple[int, ...]) -> None:
    x, matrix = torch.randn(shape), torch.randn(96, 40)
    with IndependentFunctions():
        found = matmul(x, matrix)
        assert torch.equal(found, F.linear(x, matrix.t().contiguous()))
        assert torch.equal(found.flatten(0, -2)[:2], matmul(x.flatten(0, -2)[:2], matrix))
    torch.testing.assert_close(found, torch.matmul(x, matrix))


@pytest.mark.parametrize("matmul", MATMULS)
def test_batches_of_matrices_are_multiplied_as_ever(matmul: Any) -> None:
    for x, other in ((torch.randn(2, 5, 8), torch.randn(2, 8, 3)), (torch.randn(8), torch.randn(8, 3))):
        with IndependentFunctions():
            assert torch.equal(matmul(x, other), torch.matmul(x, other))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * x


class Named(nn.Module):
    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return F.silu(x) + other


class Innocent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) @ x.transpose(1, 2) @ x


class Low(nn.Module):
    """A product of its own, as an adapter of an embedding makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterDict({"one": torch.randn(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrices["one"]


class Several(nn.Module):
    """Calls some of its modules, and leaves a gate out, as a model does with experts that nobody chose."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.config = LlamaConfig(vocab_size=5)
        self.gate, self.unseen, self.named, self.innocent = Gate(), Gate(), Named(), Innocent()
        self.low = Low()

    def forward(self, input_ids: Tensor, **_: object) -> object:
        x = self.embedding(input_ids)
        return SimpleNamespace(logits=self.innocent(self.named(self.gate(self.low(x)), other=x)))


def test_modules_that_call_such_functions_are_found_with_their_classes() -> None:
    model = Several()
    found = callers(cast("PreTrainedModel", model))
    assert found == {model.low: Reads(8, 3), model.gate: Reads(8, 3), model.unseen: None, model.named: None}


def test_found_modules_follow_the_mode_with_all_their_arguments() -> None:
    model, x = Several(), torch.randn(3, 8)
    make_switchable(cast("PreTrainedModel", model))
    switch_callers(cast("PreTrainedModel", model))
    assert (reads_of(model.gate), reads_of(model.unseen)) == (Reads(8, 3), None)
    with reproducible_numerics(True):
        assert torch.equal(model.unseen(x), x * (1 / (1 + torch.exp(-x))))
        torch.testing.assert_close(model.named(x, other=x), F.silu(x) + x)
    assert torch.equal(model.named(x, other=x), F.silu(x) + x)
    assert not hasattr(model.innocent.forward, "switched")


def test_a_second_look_changes_nothing() -> None:
    model = built(FLAT["qwen3-moe"]())
    make_switchable(model)
    switch_callers(model)
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    make_switchable(model)
    switch_callers(model)
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards


WITH_ROUTERS = [family for family in UNUSUAL if "moe" in family or "deepseek" in family]


@pytest.mark.parametrize("family", WITH_ROUTERS)
def test_the_self_test_names_what_a_module_does_wrong_by_itself(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router is no layer, and yet it is tried on hundreds of rows."""
    model = built(UNUSUAL[family]())
    make_switchable(model)
    switch_callers(model)
    tried = [module for module in model.modules() if reads_of(module) is not None]
    before = tried[0].forward

    def leaning(*args: Any) -> Any:
        output = before(*args)
        first, *others = output if isinstance(output, tuple) else (output,)
        return (first + 1e-3 * first.mean(), *others)

    monkeypatch.setattr(tried[0], "forward", leaning)
    assert type(tried[0]).__name__ in self_test(model, FlatRunner(model)).problem


def test_what_the_self_test_cannot_try_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(FLAT["llama"]())
    make_switchable(model)

    def broken(*_: Any) -> Any:
        raise ValueError("no such shape")

    monkeypatch.setattr(model.model.layers[0].mlp.down_proj, "forward", broken)
    assert self_test(model, FlatRunner(model)).problem == "the self-test failed: ValueError: no such shape"
