"""Which route a model takes, by proof: a dry run at load against the model's own forward.

It knows what a flat step needs; it neither schedules nor samples. Bits are for `self_test.py` to compare.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers import last_layer
from llmkit_transformers.flat_attention import NotUnderstood
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.settings import APPLIED_BY_GENERATE

_WHOLE_STEP_ROPE = ("dynamic", "longrope")
_LONGEST_DRY_RUN = 160


def why_not_flat(model: PreTrainedModel) -> str | None:
    """The reason why a model cannot run in flat steps; None where a dry run showed that it can."""
    reason = _known_obstacle(model)
    if reason is not None:
        return reason
    try:
        return _dry_run(model)
    except (NotUnderstood, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"the dry run failed: {error}"


def may_narrow(model: PreTrainedModel) -> bool:
    """Whether a model that can run in flat steps gives the same where only the last rows pass its last layer."""
    try:
        return last_layer.find(model) is not None and _narrow_run(model) is None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False


Company: TypeAlias = Literal["any", "same length", "none"]
"""Beside which others a prompt gets what it gets alone."""


def company(model: PreTrainedModel, logits: Callable[[Sequence[Sequence[int]], int], Tensor]) -> Company:
    """Which prompts may be in one batch of `model.generate`: some models read padding (TrOCR), some other rows (RWKV).

    Positions that the longest row changes are known, and not tried: it would take rows of that length. `dynamic` ones
    change beyond the window alone, where nobody comes.

    Args:
        model: the model.
        logits: `(B, n_new, V)` of prompts in one batch; fewer steps where all of them end before.
    """
    short, other, long = (_tokens(model.config.get_text_config(), n, seed) for n, seed in ((4, 1), (4, 2), (9, 3)))
    alone = logits([short], 2)
    trials: tuple[tuple[list[int], Company], ...] = ((long, "any"), (other, "same length"))
    for neighbour, found in trials[_whole_step_rope(model) == "longrope" :]:
        beside = logits([short, neighbour], 2)[:1]
        n_steps = min(alone.shape[1], beside.shape[1])  # it may end by itself, and its neighbour goes on
        if _disagreement(beside[:, :n_steps], alone[:, :n_steps], _tolerance(model)) is None:
            return found
    return "none"


def _narrow_run(model: PreTrainedModel) -> str | None:
    """Two sequences, read but for a token and then to their ends beside a third, against the model's own forward.

    The third is read at once and named first, while its rows stand behind those that stacks hold: logits must come as
    they are asked for.
    """
    config: Any = model.config.get_text_config()
    prompts = [_tokens(config, n_tokens, seed=3) for n_tokens in (9, 6, 7)]
    runner = FlatRunner(model, narrow=True)
    whole, *parts = ((runner.new(), prompt) for prompt in prompts)
    read = runner.logits([Slice(kept, prompt[:-1], 0, False) for kept, prompt in parts])
    ends = [Slice(kept, prompt[-1:], len(prompt) - 1, False) for kept, prompt in parts]
    ended = runner.logits([Slice(*whole, 0, False), *ends])
    own = [_own_logits(model, prompt, n_last=2) for prompt in prompts]
    expected = [before for before, _ in own[1:]] + [last for _, last in own]
    return _disagreement(torch.cat([read, ended]), torch.stack(expected), _tolerance(model))


def _known_obstacle(model: PreTrainedModel) -> str | None:
    rope, settings = _whole_step_rope(model), model.generation_config
    left_to_generate = [name for name in APPLIED_BY_GENERATE if getattr(settings, name, None)]
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if getattr(model, "_is_stateful", False):
        return "it keeps a state instead of keys and values"
    if rope is not None:
        return f"its {rope} positions depend on the longest sequence of a step"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "it is spread over several devices"
    if left_to_generate:
        return f"its generation config sets {left_to_generate[0]}, which model.generate applies"
    return None


def _whole_step_rope(model: PreTrainedModel) -> str | None:
    """The kind of positions that depend on the longest sequence of a step, if any layer has some."""
    own: Any = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds: list[Any] = [own.get("rope_type"), *(one.get("rope_type") for one in own.values() if isinstance(one, dict))]
    return next((kind for kind in kinds if kind in _WHOLE_STEP_ROPE), None)


def _dry_run(model: PreTrainedModel) -> str | None:
    """Two sequences, read in parts and side by side, against the model's own forward of each."""
    config: Any = model.config.get_text_config()
    longest = min(_LONGEST_DRY_RUN, getattr(config, "max_position_embeddings", None) or _LONGEST_DRY_RUN)
    window = getattr(config, "sliding_window", None)
    n_tokens = min(longest, window + 8 if window and window < _LONGEST_DRY_RUN else 24)
    prompts = [_tokens(config, n_tokens, seed) for seed in (1, 2)]
    runner = FlatRunner(model)
    buffers = [runner.new() for _ in prompts]
    cut = n_tokens - 2
    runner.logits([Slice(kept, prompt[:cut], 0, False) for kept, prompt in zip(buffers, prompts, strict=True)])
    problem = _arguments_problem(runner, config)
    runner.logits([Slice(buffers[0], prompts[0][cut:-1], cut, False)])
    runner.logits([Slice(buffers[1], prompts[1][cut:-1], cut, False)])
    found = runner.logits([Slice(b, p[-1:], n_tokens - 1, False) for b, p in zip(buffers, prompts, strict=True)])
    return problem or _disagreement(
        found, torch.cat([_own_logits(model, prompt) for prompt in prompts]), _tolerance(model)
    )


def _arguments_problem(runner: FlatRunner, config: Any) -> str | None:
    calls = runner.last_step.kinds if runner.last_step is not None else []
    if len(calls) != config.num_hidden_layers:
        return f"its {config.num_hidden_layers} layers called the attention function {len(calls)} times"
    layers: Sequence[str] = getattr(config, "layer_types", None) or ()
    odd = sorted(set(layers) - {"full_attention", "sliding_attention"})
    if odd:
        return f"it has layers of {odd[0]}"
    n_windowed = sum(call.window is not None for call in calls)
    has_window = getattr(config, "sliding_window", None) is not None
    # As the cache of `model.generate` reads a config: without types, all layers have its window or none has.
    n_expected = sum(layer == "sliding_attention" for layer in layers) if layers else has_window * len(calls)
    if n_windowed != n_expected:
        return "its sliding windows do not reach the attention function"
    return None


def _own_logits(model: PreTrainedModel, prompt: Sequence[int], n_last: int = 1) -> Tensor:
    """`(n_last, V)`: what the model itself computes after the last tokens of the prompt."""
    with torch.inference_mode():
        output = cast("Any", model)(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    return output.logits[0, -n_last:]


def _tolerance(model: PreTrainedModel) -> float:
    """How far logits may be off, as a part of the largest: rounding to few bits adds up over the layers."""
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return 1e-3 if is_exact else 5e-2


def _disagreement(found: Tensor, expected: Tensor, tolerance: float) -> str | None:
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    return None if error <= tolerance else f"its logits differ from its own forward by {float(error):.2g} of their size"


def _tokens(config: Any, n_tokens: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(config.vocab_size) for _ in range(n_tokens)]
