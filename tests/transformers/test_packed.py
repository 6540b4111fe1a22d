"""Products on weights in oneDNN's layout: each layer's own, whether it multiplies by itself or together with others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers import packed
from llmkit_transformers.numerics import make_switchable, reproducible_numerics
from llmkit_transformers.products import row_product
from llmkit_transformers.runner import FlatRunner
from tests.transformers.flat_models import FLAT, built


class OneBlock(nn.Module):
    """Something that reads rows with layers, as models do."""

    device = torch.device("cpu")

    def __init__(self, use: Callable[[OneBlock, Tensor], object], *, biases: tuple[bool, ...] = (False,) * 3) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = torch.randn(8, 96, generator=draw)
        self.layers = nn.ModuleList(nn.Linear(96, n, bias=b) for n, b in zip((64, 40, 33), biases, strict=True))
        self.use = use

    def forward(self, input_ids: Tensor, **_: object) -> object:
        return self.use(self, self.table[input_ids])


def joined(block: OneBlock) -> list[list[int]]:
    """Which layers multiply together, by their numbers."""
    make_switchable(cast("Any", block))
    packed.join(cast("Any", block))
    groups: dict[int, list[int]] = {}
    for number, layer in enumerate(block.layers):
        groups.setdefault(id(layer.__dict__["_llmkit_packed"]), []).append(number)
    return sorted(groups.values())


def all_three(block: OneBlock, x: Tensor) -> list[Tensor]:
    return [layer(x) for layer in block.layers]


def changed_between(block: OneBlock, x: Tensor) -> list[Tensor]:
    return [block.layers[0](x), block.layers[1](x.mul_(2)), block.layers[2](x)]


def one_of_them_twice(block: OneBlock, x: Tensor) -> list[Tensor]:
    return [block.layers[0](x), block.layers[1](x), block.layers[2](x), block.layers[0](2 * x)]


def copies(block: OneBlock, x: Tensor) -> list[Tensor]:
    return [block.layers[0](x), block.layers[1](x.clone()), block.layers[2](x + 0)]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (all_three, [[0, 1, 2]]),
        (changed_between, [[0], [1], [2]]),
        (one_of_them_twice, [[0], [1, 2]]),
        (copies, [[0], [1], [2]]),
    ],
)
def test_layers_join_that_are_called_once_with_one_unchanged_tensor(use: Any, expected: list[list[int]]) -> None:
    assert joined(OneBlock(use)) == expected


def test_layers_with_and_without_a_bias_do_not_join() -> None:
    assert joined(OneBlock(all_three, biases=(True, False, True))) == [[0, 2], [1]]


@pytest.mark.parametrize("biases", [(False,) * 3, (True,) * 3], ids=["plain", "with biases"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0)], ids=str)
@torch.inference_mode()
def test_each_layer_gives_its_own_product_in_whatever_order_they_are_asked(
    biases: tuple[bool, ...], order: tuple[int, ...]
) -> None:
    block = OneBlock(all_three, biases=biases)
    assert joined(block) == [[0, 1, 2]]
    for n_rows in (2, 6, 40):
        x, other = torch.randn(1, n_rows, 96), torch.randn(1, n_rows, 96)
        with reproducible_numerics(True):
            for number in order:
                layer = cast("nn.Linear", block.layers[number])
                assert torch.equal(layer(x), row_product(x, layer.weight, layer.bias))
                assert torch.equal(layer(other), row_product(other, layer.weight, layer.bias))


@torch.inference_mode()
def test_what_was_read_by_all_is_held_by_nothing() -> None:
    block = OneBlock(all_three)
    joined(block)
    with reproducible_numerics(True):
        for layer in block.layers:
            layer(torch.randn(2, 96))
        x = torch.randn(4, 96)
        all_three(block, x)
    assert packed._waiting.x is None
    assert not packed._waiting.outputs


@torch.inference_mode()
def test_a_new_weight_or_bias_is_used_from_the_next_product_on() -> None:
    block, x = OneBlock(all_three, biases=(True,) * 3), torch.randn(2, 96)
    joined(block)
    with reproducible_numerics(True):
        all_three(block, x)
        layer = cast("nn.Linear", block.layers[1])
        layer.weight = nn.Parameter(torch.randn(40, 96))
        assert torch.equal(all_three(block, x)[1], row_product(x, layer.weight, layer.bias))
        layer.bias = nn.Parameter(torch.randn(40))
        assert torch.equal(all_three(block, x)[1], row_product(x, layer.weight, layer.bias))


def test_a_copy_of_a_model_multiplies_with_its_own_weights() -> None:
    block = OneBlock(all_three)
    joined(block)
    twin = copy.deepcopy(block)
    with torch.inference_mode(), reproducible_numerics(True):
        x = torch.randn(2, 96)
        for layer in twin.layers:
            layer.weight.zero_()
        assert joined(twin) == [[0, 1, 2]]
        assert not any(found.any() for found in all_three(twin, x))
        assert all(found.any() for found in all_three(block, x))


def test_threads_do_not_meet() -> None:
    block = OneBlock(all_three)
    joined(block)

    def tried(seed: int) -> bool:
        draw = torch.Generator().manual_seed(seed)
        with torch.inference_mode(), reproducible_numerics(True):
            for _ in range(50):
                x = torch.randn(2, 96, generator=draw)
                expected = [row_product(x, cast("nn.Linear", layer).weight) for layer in block.layers]
                if not all(map(torch.equal, all_three(block, x), expected)):
                    return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(tried, range(8)))


@pytest.mark.parametrize(("family", "n_products"), [("llama", 2 * 4 + 1), ("opt", 2 * 4 + 1), ("gpt2", 2 * 4 + 1)])
def test_a_models_step_makes_as_few_products_as_it_can(
    family: str, n_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers: queries with keys and values, what attention gives, and two of the MLP; and the output head."""
    model: PreTrainedModel = built(FLAT[family]())
    make_switchable(model)
    apart = FlatRunner(model).logits([Slice(FlatRunner(model).new(), [5, 6, 7], 0, True)])
    packed.join(model)
    n_calls = SimpleNamespace(found=0)
    own_product = packed.own_product

    def counted(*given: Any) -> Tensor:
        n_calls.found += 1
        return own_product(*given)

    monkeypatch.setattr(packed, "own_product", counted)
    together = FlatRunner(model).logits([Slice(FlatRunner(model).new(), [5, 6, 7], 0, True)])
    assert n_calls.found == n_products
    assert torch.equal(together, apart)


def test_narrow_types_and_other_devices_are_left_alone() -> None:
    model = built(FLAT["llama"]()).to(torch.bfloat16)
    make_switchable(model)
    packed.join(model)
    assert all(
        module.__dict__["_llmkit_packed"].layers == (module,) for module in model.modules() if type(module) is nn.Linear
    )
