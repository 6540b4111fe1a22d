"""bitsandbytes' layers in forms whose rows do not see one another. It knows neither models nor modes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmkit_transformers.products import padded_rows, row_product


def _product_4bit(layer: Any, fast: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The fused kernel, where the processor has one, treats each row alone; elsewhere the weights are unpacked."""
    state = layer.weight.quant_state
    if x.device.type != "cpu" or getattr(state, "packing_format_for_cpu", False):
        return fast(x)
    from bitsandbytes.functional import dequantize_4bit

    rows = x.to(layer.compute_dtype or x.dtype)
    bias: Tensor | None = layer.bias
    weight = dequantize_4bit(layer.weight.data, state).to(rows.dtype)
    return row_product(rows, weight, None if bias is None else bias.to(rows.dtype)).to(x.dtype)


def _product_8bit(layer: Any, _: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) with outliers by element instead of by column.

    bitsandbytes takes a column out of the integer product for all rows as soon as one of them is an outlier there. Here
    a row's own outliers alone are taken out of it, and multiplied with the whole weight in float32.
    """
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    state, rows = layer.state, x.reshape(-1, x.shape[-1]).to(torch.float16)
    outliers = rows.abs() >= state.threshold if state.threshold > 0 else torch.zeros_like(rows, dtype=torch.bool)
    quantised, row_scales, _ = _ops().int8_vectorwise_quant(rows.masked_fill(outliers, 0), 0.0)
    bias: Tensor | None = None if layer.bias is None else layer.bias.to(torch.float16)
    out: Tensor = _ops().int8_scaled_mm(quantised, state.CB, row_scales, state.SCB, bias=bias, dtype=torch.float16)
    with_outliers = outliers.any(dim=1).nonzero()[:, 0]
    if with_outliers.numel():
        own = padded_rows(torch.where(outliers, rows, 0)[with_outliers].float())
        more = row_product(own, state.CB.float() * (state.SCB[:, None] / 127))[: with_outliers.shape[0]]
        out[with_outliers] = (out[with_outliers].float() + more).to(out.dtype)
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)


PRODUCTS: dict[str, Callable[[Any, Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "Linear4bit": _product_4bit,
    "Linear8bitLt": _product_8bit,
}
"""How a quantised layer multiplies, by its class: called with the layer, its own `forward` and the input."""


@contextmanager
def states_left_alone(model: nn.Module) -> Generator[None]:
    """Leave 4-bit layers out of the model's state meanwhile: to read theirs packs their weights anew, with loss."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    layers = [layer for layer in layers if not hasattr(layer, "base_layer")]  # peft's wrappers have the same name
    for layer in layers:
        layer._save_to_state_dict = _save_nothing
    try:
        yield
    finally:
        for layer in layers:
            del layer._save_to_state_dict


def _save_nothing(*_: object) -> None:
    pass


def _ops() -> Any:
    return torch.ops.bitsandbytes
