"""Mixtures of experts in a form that does not see neighbours: each expert reads its rows by themselves.

transformers' `batched_mm` is independent too, but copies an expert's weights for every row that chose it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from llmkit_transformers.products import padded_rows, row_product


def are_experts(module: nn.Module) -> bool:
    """Whether this is a layer of experts as transformers' `use_experts_implementation` describes them."""
    layout = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
    return all(hasattr(module, name) for name in layout)


def grouped_by_expert(experts: nn.Module, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """The sum of what each token's experts say of it, by their shares, in the order in which it chose them.

    Args:
        experts: the layer.
        hidden: `(T, D)`.
        chosen: `(T, k)` numbers of experts.
        shares: `(T, k)`.

    Returns:
        `(T, D)`.
    """
    said = hidden.new_zeros(*chosen.shape, hidden.shape[-1])
    for expert in cast("list[int]", chosen.unique().tolist()):
        at = torch.nonzero(chosen == expert, as_tuple=True)
        said[at] = _one_expert(experts, expert, padded_rows(hidden[at[0]]))[: at[0].shape[0]].to(said.dtype)
    said = said * shares[..., None]
    total = said[:, 0]
    for place in range(1, chosen.shape[1]):  # one by one: a reduction may add in another order beside other rows
        total = total + said[:, place]
    return total.to(hidden.dtype)


def _one_expert(module: nn.Module, expert: int, rows: Tensor) -> Tensor:
    """`(R, D)` to `(R, D)` through one expert's two matrices."""
    experts = cast("Any", module)
    inner = _product(experts, "gate_up_proj" if experts.has_gate else "up_proj", expert, rows)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    out = _product(experts, "down_proj", expert, inner)
    return experts.post_expert_norm(out) if experts.has_post_expert_norm else out


def _product(experts: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    weight: Tensor = getattr(experts, name)[expert]
    bias: Tensor | None = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return row_product(rows, (weight.t() if experts.is_transposed else weight).contiguous(), bias)
