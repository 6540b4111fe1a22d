"""Functions of torch in forms whose rows do not see one another, and which modules of a model call them by themselves.

The fused kernels of some activations treat a vector's lanes and its remainder differently, and where the remainder
begins moves with the number of rows and threads (`docs/lab-log.md`). It knows neither modes nor layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from llmkit_transformers.products import padded_rows, row_product


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    found = x / torch.neg(x).exp_().add_(1)  # in place: two new tensors instead of four
    return x.copy_(found) if inplace else found


def _quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return _gelu_tanh(x) if approximate == "tanh" else gelu(x)


def _sigmoid(x: Tensor) -> Tensor:
    return torch.neg(x.float()).exp_().add_(1).reciprocal_().to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if not len(rows):
        return linear(x, weight, bias)
    return row_product(padded_rows(rows), weight, bias)[: len(rows)].reshape(*x.shape[:-1], -1)


def _matmul(x: Tensor, other: Tensor) -> Tensor:
    """Rows times one matrix; batches of matrices, where rows may look at one another, stay as they are."""
    return _linear(x, other.t().contiguous()) if _is_by_one_matrix(x, other) else torch.matmul(x, other)


def _is_by_one_matrix(x: Any, other: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(other, Tensor) and x.dim() > 1 and other.dim() == 2


COMPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "FastGELUActivation": _gelu_tanh,
    "GELUTanh": _gelu_tanh,
    "NewGELUActivation": _gelu_tanh,
    "QuickGELUActivation": _quick_gelu,
    "SiLU": _silu,
    "SiLUActivation": _silu,
}
"""Activations by class, in forms made of `exp` and `tanh`."""

_INDEPENDENT: dict[Any, Callable[..., Tensor]] = {
    gelu: _gelu,
    linear: _linear,
    silu: _silu,
    torch.matmul: _matmul,
    torch.sigmoid: _sigmoid,
    torch.special.expit: _sigmoid,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.sigmoid: _sigmoid,
}


_N_TOKENS = 16


class IndependentFunctions(TorchFunctionMode):
    """Sends calls to the forms whose rows do not see one another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form = cast("Callable[..., Any]", _INDEPENDENT.get(func, func))
        return form(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Reads:
    """What a module is called with: one tensor of rows, and nothing else.

    Attributes:
        width: its columns, the last dimension.
        n_dims: `(T, width)` or `(1, T, width)`.
    """

    width: int
    n_dims: int


def callers(model: PreTrainedModel) -> dict[nn.Module, Reads | None]:
    """The modules that call such functions themselves, and others of their classes, as a short forward pass shows.

    Not every expert is asked in it, and none of some layers. None where a module is called with other arguments.
    """
    config: Any = model.config.get_text_config()
    tokens = torch.arange(_N_TOKENS, device=model.device) % config.vocab_size
    watch = _Watch()
    hooks = [module.register_forward_pre_hook(watch.enter, with_kwargs=True) for module in model.modules()]
    hooks += [module.register_forward_hook(watch.leave, always_call=True) for module in model.modules()]
    try:
        with torch.inference_mode(), watch:
            cast("Any", model)(input_ids=tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    kinds = {type(module) for module in watch.found}
    return {module: watch.found.get(module) for module in model.modules() if type(module) in kinds}


class _Watch(TorchFunctionMode):
    """Notes which module runs where one of the functions is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[nn.Module, Reads | None] = {}
        self._running: list[tuple[nn.Module, Reads | None]] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        reads = None
        if len(args) == 1 and not named and isinstance(args[0], Tensor) and args[0].is_floating_point():
            reads = Reads(args[0].shape[-1], args[0].dim()) if args[0].dim() in (2, 3) else None
        self._running.append((module, reads))

    def leave(self, *_: object) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        has_form = func in _INDEPENDENT and (_INDEPENDENT[func] is not _matmul or _is_by_one_matrix(*args[:2]))
        if has_form and self._running:
            module, reads = self._running[-1]
            self.found[module] = reads
        return func(*args, **(kwargs or {}))
