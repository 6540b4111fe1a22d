"""What makes a row's bits independent of its neighbours: matrix products and activations in forms that do not see them.

The rules of the attention tile are in `flat_attention.py`, the padding of rows in `runner.py`; this module knows
neither requests nor buffers. What was probed, and on which processor, is in `docs/lab-log.md`.
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
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


COMPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "FastGELUActivation": _gelu_tanh,
    "GELUTanh": _gelu_tanh,
    "NewGELUActivation": _gelu_tanh,
    "SiLU": _silu,
    "SiLUActivation": _silu,
}
"""Activations by class, in forms made of `exp` and `tanh`: the fused kernels treat a vector's lanes and its remainder
differently, and where the remainder begins moves with the number of rows and threads."""


class _Mode(threading.local):
    reproducible = False


_mode = _Mode()


@contextmanager
def reproducible_numerics(active: bool) -> Generator[None]:
    """Compute in the forms that do not depend on neighbours, in this thread, or as fast as can be."""
    before, _mode.reproducible = _mode.reproducible, active
    try:
        yield
    finally:
        _mode.reproducible = before


def make_switchable(model: PreTrainedModel) -> None:
    """Let the model's layers follow the mode of `reproducible_numerics`.

    Only `forward` of single layers is replaced, so names, weights and what else holds them stay as they are.
    """
    for module in model.modules():
        composed = COMPOSED.get(type(module).__name__)
        if composed is not None:
            _switch(module, composed)
        elif type(module) in (nn.Linear, Conv1D):
            _switch(module, partial(_packed_product, module))


def _switch(module: nn.Module, reproducible: Callable[[Tensor], Tensor]) -> None:
    fast = module.forward

    def forward(x: Tensor) -> Tensor:
        return reproducible(x) if _mode.reproducible else fast(x)

    module.forward = forward


def _packed_product(layer: nn.Module, x: Tensor) -> Tensor:
    """`x @ W + b` by oneDNN, whose float32 kernels give a row the same bits in any company of two rows or more.

    MKL's, behind `linear`, choose by the number of rows, and by threads where they split the inner dimension. Narrower
    types go through oneDNN anyway.
    """
    weight: Tensor = cast("Any", layer).weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return type(layer).forward(layer, x)
    bias: Tensor | None = cast("Any", layer).bias
    return _onednn()._linear_pointwise(x, _packed(layer, weight), bias, "none", [], "")


def _packed(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight in oneDNN's layout, made at the first reproducible step and kept beside the weight it was made of."""
    made: tuple[Tensor, Tensor] | None = layer.__dict__.get("_llmkit_packed")
    if made is None or made[0] is not weight:
        outputs_first = weight.t() if isinstance(layer, Conv1D) else weight
        made = (weight, _onednn()._reorder_linear_weight(outputs_first.detach().contiguous()))
        layer.__dict__["_llmkit_packed"] = made
    return made[1]


def _onednn() -> Any:
    return torch.ops.mkldnn
