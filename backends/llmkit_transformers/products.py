"""The matrix product whose rows do not see one another. It knows neither layers nor modes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

ROW_MULTIPLE = 4
"""Matrix kernels treat the rows beyond a multiple of four differently, so reproducible products have none."""


_ATEN_OWN_PRODUCTS = 4096
"""Where rows * inputs * outputs are no more than this, `linear` in a narrow type leaves oneDNN for another kernel."""


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ W^T + b`, by oneDNN on a processor: its kernels give a row equal bits in any company of two rows or more.

    MKL's, behind `linear` in float32, choose by the number of rows, and by threads where they split the inner
    dimension.

    Args:
        x: `(..., K)`, rows in multiples of four.
        weight: `(N, K)`, plain or in oneDNN's own layout.
        bias: `(N,)`.
    """
    if not needs_own_product(x, weight):
        return linear(x, weight, bias)
    return cast("Any", torch.ops.mkldnn)._linear_pointwise(x, weight, bias, "none", [], "")


def needs_own_product(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` might compute a row in different ways in different company."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or weight.numel() * ROW_MULTIPLE <= _ATEN_OWN_PRODUCTS


def packed(weight: Tensor) -> Tensor:
    """A float32 weight `(N, K)` in oneDNN's own layout, which saves bringing it there at each product; others as is."""
    if weight.dtype != torch.float32:
        return weight
    return cast("Any", torch.ops.mkldnn)._reorder_linear_weight(weight)


def padded_rows(rows: Tensor) -> Tensor:
    """`(R, K)` with rows of zeros up to the next multiple of four."""
    return pad(rows, (0, 0, 0, -rows.shape[0] % ROW_MULTIPLE))
