"""What makes a row's bits independent of its neighbours: matrix products and activations in forms that do not see them.

The rules of the attention tile are in `flat_attention.py`, the padding of rows in `runner.py`, quantised layers in
`quantized.py` and mixtures of experts in `experts.py`; this module knows neither requests nor buffers. What was
probed, and on which processor, is in `docs/lab-log.md`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit_transformers import experts, packed, quantized
from llmkit_transformers.products import (
    FEW_ROWS,
    few_rows_product,
    is_for_few_rows,
    row_product,
)


def _silu(x: Tensor) -> Tensor:
    return x / torch.neg(x).exp_().add_(1)  # in place: one new tensor instead of three


def _quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


COMPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "FastGELUActivation": _gelu_tanh,
    "GELUTanh": _gelu_tanh,
    "NewGELUActivation": _gelu_tanh,
    "QuickGELUActivation": _quick_gelu,
    "SiLU": _silu,
    "SiLUActivation": _silu,
}
"""Activations by class, in forms made of `exp` and `tanh`: the fused kernels treat a vector's lanes and its remainder
differently, and where the remainder begins moves with the number of rows and threads."""


class _Mode(threading.local):
    """How this thread computes; where neither is set, as the model's own layers do."""

    reproducible = False
    few_rows = False


_mode = _Mode()


@contextmanager
def reproducible_numerics(active: bool, *, n_rows: int = 0) -> Generator[None]:
    """Compute in the forms that do not depend on neighbours, in this thread, or as fast as can be.

    Args:
        active: whether in those forms.
        n_rows: for so many rows, where speed counts.
    """
    before = _mode.reproducible, _mode.few_rows
    _mode.reproducible, _mode.few_rows = active, not active and n_rows in FEW_ROWS
    try:
        yield
    finally:
        _mode.reproducible, _mode.few_rows = before


def make_switchable(model: PreTrainedModel) -> None:
    """Let the model's layers follow the mode of `reproducible_numerics`.

    Only `forward` of single layers is replaced, so names, weights and what else holds them stay as they are. Layers
    that follow it already are left alone; a copy of one, which would compute with the other's weights, gets its own.
    """
    for module in model.modules():
        switched = getattr(module.__dict__.get("forward"), "switched", None)
        if switched is module:
            continue
        if switched is not None:
            del module.forward
        independent = independent_form(module)
        if independent is not None:
            _switch(module, independent)


def independent_form(module: nn.Module) -> Callable[..., Tensor] | None:
    """How to compute a layer so that its rows do not see one another; None where it needs no other form.

    Args:
        module: a layer whose `forward` is its class's.
    """
    kind = type(module).__name__
    if kind in COMPOSED:
        return COMPOSED[kind]
    if isinstance(module, (nn.Linear, Conv1D)) and type(module) in (nn.Linear, Conv1D):
        packed.prepare(module)
        return partial(packed.packed_product, module)
    if kind in quantized.PRODUCTS and not hasattr(module, "base_layer"):  # peft's wrappers have the same names
        return partial(quantized.PRODUCTS[kind], module, module.forward)
    if experts.are_experts(module):
        return partial(experts.grouped_by_expert, module)
    if _multiplies_by_itself(module):
        return partial(_with_row_products, module.forward)
    return None


def _switch(module: nn.Module, independent: Callable[..., Any]) -> None:
    plain, is_linear = module.forward, type(module) is nn.Linear

    def forward(*tensors: Tensor) -> Any:
        if _mode.reproducible:
            return independent(*tensors)
        if _mode.few_rows and is_linear and is_for_few_rows(tensors[0], cast("Tensor", module.weight)):
            return few_rows_product(tensors[0], cast("Tensor", module.weight), cast("Tensor | None", module.bias))
        return plain(*tensors)

    cast("Any", forward).switched = module
    module.forward = forward


def _multiplies_by_itself(module: nn.Module) -> bool:
    """Whether a layer that is no `Linear` has a matrix of its own, as the routers of experts have."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, (nn.Embedding, nn.Linear, Conv1D))


class _RowProducts(TorchFunctionMode):
    """Sends `linear` to the product whose rows are independent."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (row_product if func is linear else func)(*args, **(kwargs or {}))


def _with_row_products(forward: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with _RowProducts():
        return forward(*tensors)
