"""Top-p by the likeliest tokens alone gives what transformers' sorting filter gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from llmkit_transformers import top_p as module
from llmkit_transformers.top_p import NucleusFilter

V = 6000


def rows() -> list[Tensor]:
    """From one likely token to nearly equal ones, with ties, and with tokens that another filter has taken out."""
    draw = torch.Generator().manual_seed(1)
    spread = [scale * torch.randn(V, generator=draw) for scale in (0.01, 1.0, 2.0, 4.0, 8.0, 30.0) for _ in range(8)]
    tied = [(2 * torch.randn(V, generator=draw)).round() for _ in range(4)]
    cut = [row.masked_fill(row < row.topk(40).values[-1], -torch.inf) for row in spread[8:20]]
    return [*spread, *tied, *cut, torch.zeros(V)]


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_the_same_tokens_stay_as_with_the_sort(top_p: float) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    for row in rows():
        assert torch.equal(NucleusFilter(top_p)(ids, row[None]), TopPLogitsWarper(top_p)(ids, row[None]))


def test_most_rows_of_a_usual_shape_need_no_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    n_sorted = 0

    def counted(self: TopPLogitsWarper, ids: Tensor, scores: Tensor) -> Tensor:
        nonlocal n_sorted
        n_sorted += 1
        return scores

    monkeypatch.setattr(TopPLogitsWarper, "__call__", counted)
    draw = torch.Generator().manual_seed(2)
    for _ in range(50):
        NucleusFilter(0.9)(torch.zeros(1, 1, dtype=torch.long), 4 * torch.randn(1, V, generator=draw))
    assert n_sorted < 10


def test_a_border_between_equals_or_close_to_rounding_is_left_to_the_sort() -> None:
    flat = torch.cat([torch.zeros(4), torch.full((V,), -40.0)])
    assert module._least_kept(flat, 0.6) is None  # the second, third and fourth are equally likely
    steps = torch.cat([torch.tensor([0.5, 0.3, 0.2]).log(), torch.full((V,), -40.0)])
    assert module._least_kept(steps, 0.5 + 1e-6) is None
    assert module._least_kept(steps, 0.6) == float(steps[1])
    assert module._least_kept(torch.zeros(V), 0.5) is None
    assert module._least_kept(0.01 * torch.randn(20 * V, generator=torch.Generator().manual_seed(3)), 0.5) is None


def test_rows_of_a_large_vocabulary_keep_the_same_tokens_alone_and_together() -> None:
    draw, ids = torch.Generator().manual_seed(4), torch.zeros(1, 1, dtype=torch.long)
    found = [scale * torch.randn(150_000, generator=draw) for scale in (1.0, 2.0, 4.0, 8.0)]
    expected = TopPLogitsWarper(0.9)(ids, torch.stack(found))
    assert torch.equal(NucleusFilter(0.9)(ids, torch.stack(found)), expected)
    assert all(torch.equal(NucleusFilter(0.9)(ids, row[None])[0], e) for row, e in zip(found, expected, strict=True))
    assert [module._least_kept(row, 0.9) is None for row in found[2:]] == [False, False]
