"""What makes a row's bits independent of its neighbours: matrix products and activations in forms that do not see them.

The rules of the attention tile are in `flat_attention.py`, the padding of rows in `runner.py`, quantised layers in
`quantized.py` and mixtures of experts in `experts.py`; this module knows neither requests nor buffers. What was
probed, and on which processor, is in `docs/lab-log.md`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit_transformers import experts, packed, quantized
from llmkit_transformers.functions import COMPOSED, IndependentFunctions, Reads, callers
from llmkit_transformers.products import FastWays, may_be_fast, turned_product


class _Mode(threading.local):
    """How this thread computes; where neither is set, as the model's own layers do."""

    reproducible = False
    ways: FastWays | None = None


_mode = _Mode()


@contextmanager
def reproducible_numerics(active: bool, *, ways: FastWays | None = None) -> Generator[None]:
    """Compute in the forms that do not depend on neighbours, in this thread, or as fast as can be.

    Args:
        active: whether in those forms.
        ways: what is fastest otherwise; None where nothing takes less time than the model's own layers.
    """
    before = _mode.reproducible, _mode.ways
    _mode.reproducible, _mode.ways = active, ways
    try:
        yield
    finally:
        _mode.reproducible, _mode.ways = before


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


def switch_callers(model: PreTrainedModel) -> None:
    """Let modules follow the mode that call `linear` or activations themselves, as many routers and gates do.

    Args:
        model: made switchable; a short forward pass shows which modules these are.
    """
    for module, reads in callers(model).items():
        is_switched = getattr(module.__dict__.get("forward"), "switched", None) is not None
        if not is_switched:
            _switch(module, partial(_with_independent_functions, module.forward))
        if not is_switched or (type(module) not in (nn.Linear, Conv1D) and _multiplies_by_itself(module)):
            module.__dict__["_llmkit_reads"] = reads


def reads_of(module: nn.Module) -> Reads | None:
    """The rows of a module that calls such functions itself; None for all others."""
    return module.__dict__.get("_llmkit_reads")


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
        return partial(_with_independent_functions, module.forward)
    return None


def _switch(module: nn.Module, independent: Callable[..., Any]) -> None:
    plain = module.forward
    is_product = type(module) in (nn.Linear, Conv1D)
    fast = partial(_fast_product, module, plain) if is_product else plain

    def forward(*tensors: Tensor, **named: Any) -> Any:
        if _mode.reproducible:
            return independent(*tensors, **named)
        return (plain if _mode.ways is None else fast)(*tensors, **named)

    cast("Any", forward).switched = module
    module.forward = forward


def _fast_product(layer: nn.Module, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a `Linear` or `Conv1D` gives, in the way that takes least time for so many rows."""
    ways, size = _mode.ways, packed.packed_size(layer)
    if ways is None or size < ways.least_size:  # asked first: small layers take no longer than this may
        return plain(x)
    weight, n_rows = cast("Tensor", layer.weight), x.numel() // x.shape[-1]
    if may_be_fast(x, weight):
        if n_rows in ways.packed:
            return packed.packed_product(layer, x)
        if n_rows in ways.turned and weight.numel() >= ways.least_size and isinstance(layer, nn.Linear):
            return turned_product(x, weight, layer.bias)
    return plain(x)


def _multiplies_by_itself(module: nn.Module) -> bool:
    """Whether a layer that is no plain `Linear` has a matrix of its own, as routers and some experts have."""
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Embedding) and any(parameter.dim() > 1 for parameter in own)


def _with_independent_functions(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    with IndependentFunctions():
        return forward(*args, **named)
