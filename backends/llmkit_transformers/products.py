"""Matrix products: one whose rows do not see one another, and one that is fast for few rows.

It knows neither layers nor modes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, addmm, mm
from torch.nn.functional import linear, pad

ROW_MULTIPLE = 2
"""oneDNN's kernels treat a lone row differently, and any two rows as they treat a thousand."""


_ATEN_OWN_PRODUCTS = 4096
"""Where rows * inputs * outputs are no more than this, `linear` in a narrow type leaves oneDNN for another kernel."""


FEW_ROWS = range(12, 49)
"""Numbers of rows for which MKL takes up to a third less time the other way round; measured in `docs/lab-log.md`."""


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ W^T + b`, by oneDNN on a processor: its kernels give a row equal bits in any company of two rows or more.

    MKL's, behind `linear` in float32, choose by the number of rows, and by threads where they split the inner
    dimension.

    Args:
        x: `(..., K)`, rows in multiples of `ROW_MULTIPLE`.
        weight: `(N, K)`, plain or in oneDNN's own layout.
        bias: `(N,)`.
    """
    return own_product(x, weight, bias) if needs_own_product(x, weight) else linear(x, weight, bias)


def own_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`row_product` where it is known that `linear` will not do."""
    return cast("Any", torch.ops.mkldnn)._linear_pointwise(x, weight, bias, "none", [], "")


def needs_own_product(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` might compute a row in different ways in different company."""
    if not x.is_cpu or not _has_onednn(x.dtype):
        return False
    return x.dtype == torch.float32 or weight.numel() * ROW_MULTIPLE <= _ATEN_OWN_PRODUCTS


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in this type here; narrow ones need a processor with instructions for them."""
    if not torch.backends.mkldnn.is_available():
        return False
    operators = cast("Any", torch.ops.mkldnn)
    if dtype == torch.bfloat16:
        return operators._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return operators._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def reordered(weight: Tensor) -> Tensor:
    """A float32 weight `(N, K)` in oneDNN's own layout, which saves bringing it there at each product; others as is."""
    if weight.dtype != torch.float32:
        return weight
    return cast("Any", torch.ops.mkldnn)._reorder_linear_weight(weight)


def is_for_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows_product` is the faster way; never for weights that are elsewhere and brought at each use."""
    is_plain = x.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    return is_plain and x.numel() // x.shape[-1] in FEW_ROWS


def few_rows_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ W^T + b`, computed as `(W @ x^T + b)^T`; what it gives lies in memory column by column.

    Args:
        x: `(..., K)`.
        weight: `(N, K)`.
        bias: `(N,)`.
    """
    columns = x.reshape(-1, x.shape[-1]).t()
    turned = mm(weight, columns) if bias is None else addmm(bias[:, None], weight, columns)
    return turned.t().view(*x.shape[:-1], weight.shape[0])


def padded_rows(rows: Tensor) -> Tensor:
    """`(R, K)` with rows of zeros up to the next multiple of `ROW_MULTIPLE`."""
    return pad(rows, (0, 0, 0, -rows.shape[0] % ROW_MULTIPLE))
