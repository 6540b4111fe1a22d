"""Linear layers on second copies of their weights in oneDNN's layout; those that read the same rows multiply at once.

A product costs oneDNN some time whatever its size, so one for a layer's queries, keys and values takes less than three
(`docs/lab-log.md`). It knows neither modes nor what layers mean.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit_transformers.products import needs_own_product, own_product, reordered

_NAME = "_llmkit_packed"


def prepare(layer: nn.Linear | Conv1D) -> None:
    """Let a layer multiply by `packed_product`, by itself."""
    layer.__dict__[_NAME] = _PackedLayers([layer])


def packed_product(layer: nn.Module, x: Tensor) -> Tensor:
    """`x @ W + b` with the weight in oneDNN's layout, where its kernels are needed.

    Args:
        layer: a prepared one.
        x: `(..., K)`, rows in multiples of `ROW_MULTIPLE`.
    """
    return layer.__dict__[_NAME].product(layer, x)


def join(model: PreTrainedModel) -> None:
    """Let prepared layers multiply at once that the model calls with the same rows; a short forward pass shows which.

    Only for float32 on a processor, where there are second copies; layers that are joined already stay so.
    """
    alone = [layer for layer in model.modules() if _may_join(layer)]
    for layers in _with_the_same_rows(model, alone) if len(alone) > 1 else ():
        joined = _PackedLayers(layers)
        for layer in layers:
            layer.__dict__[_NAME] = joined


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the second copies of weights that have been made so far."""
    found = (module.__dict__.get(_NAME) for module in model.modules())
    return sum(layers.n_bytes for layers in {one for one in found if one is not None})


def all_packed_bytes(model: nn.Module) -> int:
    """Bytes that second copies of all float32 weights would take."""
    weights = (module.weight for module in model.modules() if _NAME in module.__dict__)
    return sum(weight.nbytes for weight in cast("Iterable[Tensor]", weights) if weight.dtype == torch.float32)


def packed_size(layer: nn.Module) -> int:
    """Numbers in the weight of a prepared layer, and in those of layers that multiply at once with it."""
    return layer.__dict__[_NAME].size


@dataclass(frozen=True, slots=True)
class _Copy:
    """What layers multiply with.

    Attributes:
        source: the weight and the bias of each layer, of which it was made.
        weight: `(N, K)` of all layers, in oneDNN's layout.
        bias: `(N,)`.
        sizes: outputs of each layer.
    """

    source: tuple[Tensor | None, ...]
    weight: Tensor
    bias: Tensor | None
    sizes: list[int]


class _PackedLayers:
    """Layers that are called with the same rows, or one by itself. Threads may use them at the same time.

    Args:
        layers: with the same number of inputs; all have a bias or none has.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layers)
        self.size = sum(cast("Tensor", layer.weight).numel() for layer in layers)
        self._parameters: list[dict[str, Tensor | None]] = [cast("Any", layer)._parameters for layer in layers]
        self._copy: _Copy | None = None

    def __deepcopy__(self, _: object) -> _PackedLayers:
        return self  # a copied layer must be prepared anew

    @property
    def n_bytes(self) -> int:
        return 0 if self._copy is None else sum(one.nbytes for one in self._copy.source[::2] if one is not None)

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What one of the layers gives; the first that is asked computes for all."""
        if _waiting.x is x and layer in _waiting.outputs:
            return _waiting.taken(layer)
        copy = self._copy
        source = [of_layer[name] for of_layer in self._parameters for name in ("weight", "bias")]
        if copy is None or not all(map(is_, source, copy.source)):
            if not needs_own_product(x, cast("Tensor", source[0])):
                return type(layer).forward(layer, x)
            copy = self._copy = self._made(source)
        found = own_product(x, copy.weight, copy.bias)
        if len(copy.sizes) == 1:
            return found
        _waiting.x = x
        _waiting.outputs = dict(zip(self.layers, torch.split_with_sizes(found, copy.sizes, -1), strict=True))
        return _waiting.taken(layer)

    def _made(self, source: Sequence[Tensor | None]) -> _Copy:
        weights, biases = ([one.detach() for one in source[at::2] if one is not None] for at in (0, 1))
        if isinstance(self.layers[0], Conv1D):
            weights = [weights[0].t()]
        weight = reordered(torch.cat(weights) if len(weights) > 1 else weights[0].contiguous())
        return _Copy(tuple(source), weight, torch.cat(biases) if biases else None, [len(one) for one in weights])


class _Waiting(threading.local):
    """What was computed for layers that have not asked yet.

    Attributes:
        x: the rows; None where nothing waits.
        outputs: of these layers.
    """

    x: Tensor | None = None

    def __init__(self) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}

    def taken(self, layer: nn.Module) -> Tensor:
        output = self.outputs.pop(layer)
        if not self.outputs:
            self.x = None
        return output


_waiting = _Waiting()


def _may_join(layer: nn.Module) -> bool:
    """Whether a layer is prepared, is by itself, and has its float32 weight on the processor all the time."""
    own = layer.__dict__.get(_NAME)
    if own is None or own.layers != (layer,) or type(layer) is not nn.Linear or hasattr(layer, "_hf_hook"):
        return False
    return layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _with_the_same_rows(model: PreTrainedModel, layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Groups of layers that a forward pass calls with one and the same tensor, once each, and nobody changes it."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    readers: defaultdict[tuple[int, bool], list[nn.Module]] = defaultdict(list)
    n_calls: Counter[nn.Module] = Counter()

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0]
        n_calls[layer] += 1
        _, before = seen.setdefault(id(rows), (rows, rows.clone()))
        if torch.equal(rows, before):
            readers[id(rows), cast("Any", layer).bias is None].append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.inference_mode():
            cast("Any", model)(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    once = ([layer for layer in group if n_calls[layer] == 1] for group in readers.values())
    return [group for group in once if len(group) > 1]
