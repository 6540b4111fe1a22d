"""Matrix products: one whose rows do not see one another, and what is fastest for how many rows on which processor.

It knows neither layers nor modes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, addmm, mm
from torch.nn.functional import linear, pad

from llmkit.fingerprint import cpu_model

ROW_MULTIPLE = 2
"""oneDNN's kernels treat a lone row differently, and any two rows as they treat a thousand."""


_ATEN_OWN_PRODUCTS = 4096
"""Where rows * inputs * outputs are no more than this, `linear` in a narrow type leaves oneDNN for another kernel."""


@dataclass(frozen=True, slots=True)
class FastWays:
    """For which numbers of rows a float32 product takes less time than by `linear`; measured in `docs/lab-log.md`.

    Attributes:
        turned: by `turned_product`.
        packed: by `own_product` on a second copy of the weight in oneDNN's layout, which comes before `turned`.
        least_size: numbers in a weight from which either pays, those of layers that multiply at once together.
    """

    turned: range
    packed: range
    least_size: int = 0

    def serve(self, *row_counts: int) -> bool:
        """Whether any of these numbers of rows takes another way than `linear`."""
        return any(n in self.turned or n in self.packed for n in row_counts)

    @property
    def without_copies(self) -> FastWays:
        """The ways for where there is no room for second copies."""
        return replace(self, packed=range(0))


_ON_INTEL = FastWays(turned=range(12, 49), packed=range(0))
_ELSEWHERE = FastWays(turned=range(2, 65), packed=range(1, 65), least_size=2**18)
"""MKL chooses its kernels by the processor's maker. Where that is not Intel, it is slow with few rows; but a call of
oneDNN costs 45 us there, whatever its size."""


def fast_ways() -> FastWays:
    """The ways for this processor."""
    return _ON_INTEL if "Intel" in cpu_model() else _ELSEWHERE


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


def may_be_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether `FastWays` are for this product; never for weights that are elsewhere and brought at each use."""
    return x.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"


def turned_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
