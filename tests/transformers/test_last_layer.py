"""The last layer on the last rows of a step: what comes out is what would have come out of all rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig

from llmkit.engine.runner import Slice
from llmkit_transformers import last_layer
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.proof import may_narrow
from llmkit_transformers.runner import FlatRunner
from tests.transformers.flat_models import FLAT, V, built, runner_of, without


def steps(runner: FlatRunner, reproducible: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of steps that read, go on and fork, and the keys and values of all sequences at the end."""
    draw = random.Random(3)
    texts = [[draw.randrange(3, V) for _ in range(n)] for n in (5, 150, 70, 64)]
    kept, read, found = [runner.new() for _ in texts], [0] * len(texts), list[Tensor]()
    for cuts in ((3, 140, 1, 0), (4, 141, 40, 63), (5, 150, 70, 64)):
        going = [i for i, cut in enumerate(cuts) if cut > read[i]]
        slices = [Slice(kept[i], texts[i][read[i] : cuts[i]], read[i], reproducible) for i in going]
        found.append(runner.logits(slices))
        read = list(cuts)
    forks = [runner.fork(kept[1], 128) for _ in range(3)]
    found.append(runner.logits([Slice(fork, [7, 8, 9][:n], 128, reproducible) for n, fork in enumerate(forks, 1)]))
    for fork in forks:
        fork.unshare()
    ends = zip([*kept, *forks], [*read, 129, 130, 131], strict=True)
    return found, [tensor[:, :end] for buffers, end in ends for tensor in buffers.tensors]


NARROW = [family for family in FLAT if family != "gpt2"]  # it brings rows into the shape that they came in


@pytest.mark.parametrize("family", NARROW)
@pytest.mark.parametrize("reproducible", [False, True])
def test_logits_keys_and_values_are_those_of_all_rows(family: str, reproducible: bool) -> None:
    model = built(FLAT[family]())
    make_switchable(model)
    narrow, wide = (steps(FlatRunner(model, narrow=narrow), reproducible) for narrow in (True, False))
    for one, other in zip((*narrow[0], *narrow[1]), (*wide[0], *wide[1]), strict=True):
        if reproducible:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", NARROW)
def test_only_the_last_rows_pass_the_last_layer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(FLAT[family]())
    assert may_narrow(model)
    n_rows: list[int] = []
    for module in model.modules():
        if "Norm" in type(module).__name__:  # the last one that is called stands behind the last layer
            monkeypatch.setattr(module, "forward", noting(module.forward, n_rows))
    runner = FlatRunner(model, narrow=True)
    one, other = runner.new(), runner.new()
    for slices, expected in (
        ([Slice(one, [5] * 9, 0, False), Slice(other, [6] * 30, 0, False)], 2),
        ([Slice(one, [5], 9, False), Slice(other, [6], 30, False)], 2),
        ([Slice(one, [5], 10, True), Slice(other, [6] * 20, 31, True)], 2),
        ([Slice(other, [6] * 20, 51, True)], 2),  # one, and one of padding
    ):
        runner.logits(slices)
        assert n_rows[-1] == expected


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_step_of_single_tokens_calls_the_last_layer_once(reproducible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone reproducible row is one of a pair, which is no reason to leave the other out of the last layer."""
    model = built(FLAT["llama"]())
    make_switchable(model)
    n_rows: list[int] = []
    attention = model.model.layers[-1].self_attn
    monkeypatch.setattr(attention.q_proj, "forward", noting(attention.q_proj.forward, n_rows))
    runner = FlatRunner(model, narrow=True)
    kept = runner.new()
    for at in range(3):
        runner.logits([Slice(kept, [5], at, reproducible)])
    assert len(n_rows) == 3


def noting(forward: Any, n_rows: list[int]) -> Any:
    def noted(x: Tensor, *others: Any) -> Any:
        n_rows.append(x.numel() // x.shape[-1])
        return forward(x, *others)

    return noted


def test_the_layer_is_as_before_after_a_step_and_after_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(FLAT["llama"]())
    layer = last_layer.find(model)
    assert layer is model.model.layers[-1]
    runner = FlatRunner(model, narrow=True)
    runner.logits([Slice(runner.new(), [5] * 9, 0, False)])
    assert "forward" not in vars(layer)

    def own(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setitem(vars(layer), "forward", own)
    with pytest.raises(RuntimeError, match="out of order"):
        runner.logits([Slice(runner.new(), [5] * 9, 0, False)])
    assert vars(layer)["forward"] is own


def test_a_model_with_layers_in_no_list_or_in_several_reads_all_rows_to_the_end() -> None:
    model = built(FLAT["llama"]())
    model.spare = nn.ModuleList(nn.Identity() for _ in model.model.layers)
    assert last_layer.find(model) is None
    assert not may_narrow(model)
    runner = FlatRunner(model, narrow=True)
    assert runner.logits([Slice(runner.new(), [5] * 9, 0, False)]).shape == (1, V)


def test_a_model_that_counts_its_rows_reads_all_of_them_to_the_end() -> None:
    assert not may_narrow(built(FLAT["gpt2"]()))


def test_a_model_that_looks_at_all_rows_behind_the_last_layer_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that mixes them with their neighbours, and one that stops where some are missing."""
    model = built(FLAT["llama"]())
    norm: Any = model.model.norm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: plain(x + x.mean(dim=1, keepdim=True)))
    assert not may_narrow(model)
    monkeypatch.setattr(norm, "forward", lambda x: plain(x[:, torch.arange(4)]))
    assert not may_narrow(model)
    monkeypatch.undo()
    assert may_narrow(model)


def test_a_model_that_orders_the_last_rows_itself_gets_all_rows() -> None:
    """Gemma 4 takes fewer rows than tokens for those that were asked for, in the order in which they stand."""
    layers = ["sliding_attention", "full_attention"]
    config = Gemma4TextConfig(
        **without("", head_dim=16, sliding_window=64, layer_types=layers),
        vocab_size_per_layer_input=V,
        hidden_size_per_layer_input=0,
    )
    model = built(config)
    assert not may_narrow(model)
    found, expected = steps(runner_of(model), False), steps(FlatRunner(model), False)
    for one, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
