"""Whether a batch changes a model's bits here: its layers on rows in different company, then the whole of it in parts.

It knows flat steps and layers; what follows from its verdict is decided in `routes.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit.engine.runner import Slice
from llmkit_transformers.attention_trial import attention_is_independent
from llmkit_transformers.compute_threads import thread_counts, threads
from llmkit_transformers.functions import COMPOSED
from llmkit_transformers.keys_values import TILE, SequenceBuffers
from llmkit_transformers.numerics import reads_of, reproducible_numerics
from llmkit_transformers.runner import FlatRunner

_ROW_COUNTS = (2, 4, 6, 8, 12, 14, 16, 20, 28, 32, 64, 102, 256, 512, 1024)
_ROWS_TRIED = 256
_MOST_STARTS = 16
"""Row counts tried, rows that a layer is tried on, and places where a small company of them begins."""

_MOST_PRODUCTS, _FEW_PRODUCTS = 2**32, 2**28
"""Multiplications of one trial of a layer, and of many small ones: so a large layer is tried on fewer rows, and each
takes less than a second or two."""

_PARTS_AND_NEIGHBOURS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((5, 1, 1), 0),
    ((1, 3, 17), 1),
    ((9, 1, 1, 30), 7),
    ((1, 1, 1, 40), 19),
)
"""How the prompt is cut, and how many others are in each step; what the parts leave is the last part. A part of one
token stands side by side with the others in one tensor, for they go on by one token each."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the self-test found.

    Attributes:
        problem: what has other bits in company; empty where nothing has.
        elapsed_s: what the test took.
    """

    problem: str
    elapsed_s: float


def self_test(model: PreTrainedModel, runner: FlatRunner) -> Verdict:
    """Try whether rows have the same bits in any company, with the torch threads of this thread and with one.

    Layers are tried on random rows, each shape once: row counts from 2 to 1,024, several offsets. Attention is tried by
    itself, each kind once, after some hundred tokens. The model is tried on a prompt alone and in one go, against parts
    of it beside others: keys and values at every layer and position must be equal, which hold all that logits are made
    of. It costs a few forward passes of some hundred tokens.

    Args:
        model: made switchable.
        runner: of that model.
    """
    began = time.perf_counter()
    problems = (
        problem for find in (_layer_problems, _attention_problems, _model_problems) for problem in find(model, runner)
    )
    try:
        with torch.inference_mode():
            problem = next(problems, "")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = f"the self-test failed: {type(error).__name__}: {error}"  # what cannot be tried is not claimed
    return Verdict(problem, time.perf_counter() - began)


# --- layers ---------------------------------------------------------------------------------------------------------


def _layer_problems(model: PreTrainedModel, _: FlatRunner) -> Iterator[str]:
    seen: set[Hashable] = set()
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        width = _width(layer, model)
        outputs = getattr(layer, "out_features", None), getattr(layer, "nf", None)
        shape = (type(layer), width, *outputs, _input_dtype(layer, model))
        if width is not None and shape not in seen:
            seen.add(shape)
            if not _rows_are_independent(layer, width, model):
                yield f"{type(layer).__name__} of {width} inputs ({name}) gives a row other bits in company"


def _width(layer: nn.Module, model: PreTrainedModel) -> int | None:
    """Columns of a layer's input; None for what is tried as a part of the whole model only."""
    reads = reads_of(layer)
    if reads is not None:
        return reads.width
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, Conv1D):
        return cast("int", layer.nx)
    if type(layer).__name__ in COMPOSED:
        config: Any = model.config.get_text_config()
        inner: int | Sequence[int] = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return inner if isinstance(inner, int) else max(inner)  # Gemma 3n has a size for each layer
    return None


def _input_dtype(layer: nn.Module, model: PreTrainedModel) -> torch.dtype:
    """The type of a layer's input: the model's, but that of the weights in adapters, which may be finer."""
    return layer.weight.dtype if type(layer) is nn.Linear else model.dtype


def _rows_are_independent(layer: nn.Module, width: int, model: PreTrainedModel) -> bool:
    """Whether rows in companies of every size have the bits that they have among the most."""
    n_weights = sum(parameter.numel() for parameter in layer.parameters()) or width
    counts = [n for n in _ROW_COUNTS if n * n_weights <= _MOST_PRODUCTS] or [_ROW_COUNTS[0]]
    n_tried = max(1, min(_ROWS_TRIED, _FEW_PRODUCTS // n_weights))
    n_rows = max(counts[-1], n_tried) + _ROWS_TRIED // 2
    rows = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(0)).to(
        model.device, _input_dtype(layer, model)
    )
    rows[::7, ::5] *= 40  # outliers, which 8-bit layers treat apart
    with reproducible_numerics(True):
        expected = _by_row(layer, rows)
        for n_threads, n in product(thread_counts(), counts):
            with threads(n_threads):
                n_starts = max(1, min(n_tried // n, _MOST_STARTS))
                starts = range(n % 13, n % 13 + n_starts * n, n)
                for at in starts:
                    found = _by_row(layer, rows[at : at + n].clone())
                    if not all(torch.equal(a, b[at : at + n]) for a, b in zip(found, expected, strict=True)):
                        return False
    return True


def _by_row(layer: nn.Module, rows: Tensor) -> list[Tensor]:
    """What a layer gives for each row, `(n, ...)`; routers give several tensors, and some blocks `(1, n, ...)`."""
    reads = reads_of(layer)
    is_batch = reads is not None and reads.n_dims > rows.dim()
    output = layer(rows[None] if is_batch else rows)
    outputs: Sequence[Any] = [output] if isinstance(output, Tensor) else output
    tensors = [one[0] if one.shape[:1] == (1,) and len(rows) > 1 else one for one in outputs if isinstance(one, Tensor)]
    return [one for one in tensors if one.shape[:1] == rows.shape[:1]]


# --- attention ------------------------------------------------------------------------------------------------------


def _attention_problems(model: PreTrainedModel, runner: FlatRunner) -> Iterator[str]:
    buffers = runner.new()
    runner.logits([Slice(buffers, [0], 0, True)])
    for kind in dict.fromkeys(runner.last_step.kinds if runner.last_step is not None else ()):
        if not attention_is_independent(kind, model):
            yield f"attention with {kind.n_heads} heads of {kind.size} gives a row other bits in company"


# --- the whole model ------------------------------------------------------------------------------------------------


def _model_problems(model: PreTrainedModel, runner: FlatRunner) -> Iterator[str]:
    config: Any = model.config.get_text_config()
    draw = random.Random(0)
    n_tokens = min(TILE + 6, getattr(config, "max_position_embeddings", None) or TILE)
    prompt = [draw.randrange(config.vocab_size) for _ in range(n_tokens)]
    alone = runner.new()
    logits = runner.logits([Slice(alone, prompt, 0, True)])[0]
    trials = [(torch.get_num_threads(), trial) for trial in _PARTS_AND_NEIGHBOURS]
    for n_threads, (parts, n_others) in [*trials, (1, _PARTS_AND_NEIGHBOURS[-1])]:
        cuts = (*parts, n_tokens - sum(parts))
        with threads(n_threads):
            is_equal = cuts[-1] < 1 or _equal_in_company(runner, prompt, cuts, n_others, alone, logits)
        if not is_equal:
            yield f"a prompt in parts of {cuts} tokens beside {n_others} others has other bits than alone"


def _equal_in_company(
    runner: FlatRunner, prompt: list[int], cuts: Sequence[int], n_others: int, alone: SequenceBuffers, logits: Tensor
) -> bool:
    """Whether the prompt's parts have the bits that it has alone, beside others that go on by a token each step."""
    kept, at, found = runner.new(), 0, logits
    others, read = [runner.new() for _ in range(n_others)], [0] * n_others
    for n in cuts:
        slices = [Slice(kept, prompt[at : at + n], at, True)]
        for index, other in enumerate(others):
            n_next = 1 if at else 1 + index % 5
            slices.append(Slice(other, prompt[read[index] : read[index] + n_next], read[index], True))
            read[index] += n_next
        found = runner.logits(slices)[0]
        at += n
    tensors = zip((*kept.keys, *kept.values), (*alone.keys, *alone.values), strict=True)
    return torch.equal(found, logits) and all(torch.equal(a[:, :at], b[:, :at]) for a, b in tensors)
