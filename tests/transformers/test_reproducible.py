"""Reproducible mode: the bits of a row's logits are the same alone and in any company."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Gemma2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit.fingerprint import cpu_model
from llmkit_transformers import experts, flat_attention, functions, numerics, packed, products, runner, self_test
from llmkit_transformers.compute_threads import threads
from llmkit_transformers.numerics import make_switchable, switch_callers
from llmkit_transformers.packed import join, packed_bytes
from llmkit_transformers.runner import FlatRunner
from tests.transformers.company import STEP_SIZES, Company
from tests.transformers.flat_models import FLAT, UNUSUAL, built, usual

ROOT = Path(__file__).parents[2]

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "1408": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=1408)),
    "2728": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=2728, num_key_value_heads=4)),
    "2730": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=2730, num_key_value_heads=1)),
    **{family: FLAT[family] for family in ("gemma2", "gpt2", "gpt-neox", "mistral", "qwen3-moe")},
}
HEADS: dict[str, Callable[[], PreTrainedConfig]] = {
    "heads of 64": lambda: LlamaConfig(**heads(4, 1, 64)),
    "heads of 96": lambda: LlamaConfig(**heads(2, 2, 96)),
    "heads of 128": lambda: LlamaConfig(**heads(4, 1, 128)),
    "heads of 256": lambda: LlamaConfig(**heads(8, 1, 256)),
    "heads of 256, capped": lambda: Gemma2Config(
        **heads(2, 2, 256), sliding_window=100, query_pre_attn_scalar=256, attn_logit_softcapping=2.0
    ),
}
"""Of the sizes that people use: neighbours matter in other ways there than among the heads of tiny models."""

CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
SHAPES |= UNUSUAL
CASES += [(shape, torch.float32) for shape in UNUSUAL]
CASES += [(shape, torch.float16) for shape in ("1408", "2730", "qwen3-moe")]
COMPARISONS_EACH = 250


def heads(n_heads: int, n_kv_heads: int, size: int) -> dict[str, Any]:
    counts = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads, "head_dim": size}
    return usual(**counts, max_position_embeddings=1024)


def switchable(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = built(config).to(dtype)
    make_switchable(model)
    switch_callers(model)
    join(model)
    return model


def claims(model: PreTrainedModel) -> bool:
    return not self_test.self_test(model, FlatRunner(model)).problem


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_logits_have_the_same_bits_in_any_company(shape: str, dtype: torch.dtype) -> None:
    """Alone, in 2 to 64, in every slot; prefilled, decoded, cached; any cut; after others went; at 1 to 8 threads."""
    model = switchable(SHAPES[shape](), dtype)
    if not claims(model):
        pytest.skip("the self-test makes no claim on this processor, so there is nothing to hold")
    company = Company(model)
    company.compare(COMPARISONS_EACH)
    assert company.n_made >= COMPARISONS_EACH
    assert company.n_different == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", HEADS)
def test_heads_of_real_sizes_have_the_same_bits_in_any_company(shape: str, dtype: torch.dtype) -> None:
    """And after more keys than the fused kernel takes at a time."""
    model = switchable(HEADS[shape](), dtype)
    if not claims(model):
        pytest.skip("the self-test makes no claim on this processor, so there is nothing to hold")
    company = Company(model, lengths=(3, 70, 130, 600), seed=5)
    company.compare(COMPARISONS_EACH)
    assert company.n_different == 0


def test_the_comparisons_are_thousands_in_steps_of_1_to_64() -> None:
    assert len(CASES) * COMPARISONS_EACH >= 4000
    company = Company(switchable(FLAT["llama"]()), lengths=(5, 66))
    for size in STEP_SIZES:
        company.step(size)
    assert company.sizes == {1, 2, 3, 4, 7, 16, 33, 64}
    assert company.n_made == sum(company.sizes)


@pytest.mark.parametrize("n_together", [2, 5, 64])
def test_every_slot_of_a_batch_has_the_same_bits(n_together: int) -> None:
    model = switchable(SHAPES["1408"]())
    company = Company(model, lengths=(66,))
    prompt, at = company.prompts[0], 65
    for slot in range(0, n_together, max(1, n_together // 7)):
        kept = company.runner.new()
        company.runner.logits([Slice(kept, prompt[:at], 0, True)])
        slices = [Slice(company.runner.new(), prompt[: 1 + i % 9], 0, True) for i in range(n_together - 1)]
        slices.insert(slot, Slice(kept, prompt[at:], at, True))
        assert torch.equal(company.runner.logits(slices)[slot], company.alone[0][at])


# --- the rules, each broken -----------------------------------------------------------------------------------------


def whole_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_attention, "_tiled", flat_attention._whole)


def odd_query_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_attention, "_n_missing", lambda _: 0)


def query_rows_in_fours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_attention, "_n_missing", lambda query: -query.shape[-2] % 4)


def products_that_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, kind: Any) -> Tensor:
        padded = pad(query, (0, 0, 0, flat_attention._n_missing(query)))
        return flat_attention._scored(padded, keys, values, mask, kind)[:, :, : query.shape[2]]

    monkeypatch.setattr(flat_attention, "_scored_independently", scored)


def lone_matrix_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROW_MULTIPLE", 1)


def fused_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "COMPOSED", {})
    monkeypatch.setattr(functions, "_INDEPENDENT", {})


def a_fused_sigmoid_in_a_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functions._INDEPENDENT, Tensor.sigmoid, Tensor.sigmoid)


def plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "needs_own_product", lambda *_: False)
    monkeypatch.setattr(packed, "needs_own_product", lambda *_: False)


def sorted_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "are_experts", lambda _: False)


RULES = [
    (whole_slices, "1408"),
    (odd_query_rows, "2728"),
    (query_rows_in_fours, "heads of 128"),
    (products_that_are_alone, "heads of 128"),
    (lone_matrix_rows, "1408"),
    (fused_activations, "2728"),
    (a_fused_sigmoid_in_a_router, "deepseek-v3: values narrower than keys"),
    (plain_products, "1408"),
    (sorted_experts, "qwen3-moe"),
]


@pytest.mark.parametrize(("break_rule", "shape"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_the_self_test_notices_a_broken_rule_wherever_it_matters(
    break_rule: Callable[[pytest.MonkeyPatch], None], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rules matter differs between processors; what must not happen is a difference under a claim."""
    break_rule(monkeypatch)
    model = switchable((SHAPES | HEADS)[shape]())
    with threads(3):
        claimed = claims(model)
    company = Company(model, seed=3)
    company.compare(150)
    assert not (claimed and company.n_different), f"{company.n_different} of {company.n_made} rows differ"


def test_the_self_test_names_a_layer_that_looks_at_its_neighbours() -> None:
    model = switchable(FLAT["llama"]())
    layer = model.model.layers[0].mlp.down_proj
    before = layer.forward
    layer.forward = lambda x: before(x) + 1e-3 * x.float().mean().to(x.dtype)
    verdict = self_test.self_test(model, FlatRunner(model))
    assert verdict.problem.startswith("Linear of 172 inputs (model.layers.0.mlp.down_proj)")
    assert verdict.elapsed_s > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_self_test_names_attention_that_looks_at_neighbours_after_many_tokens(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt of the whole model is that long; and a narrow type's own bits would not show so little."""
    real = flat_attention._scored_independently

    def leaking(query: Tensor, keys: Tensor, *others: Any) -> Tensor:
        is_seen = keys.shape[2] > 512 and query.dtype == torch.float32
        return real(query, keys, *others) * (1 + 1e-6 * query.shape[2] * is_seen)

    monkeypatch.setattr(flat_attention, "_scored_independently", leaking)
    model = switchable(FLAT["llama"](), dtype)
    problem = self_test.self_test(model, FlatRunner(model)).problem
    assert problem == "attention with 4 heads of 16 gives a row other bits in company"


def test_the_self_test_names_whole_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer alone shows that a row's bits depend on how its sequence was cut; attention and the model do."""
    whole_slices(monkeypatch)
    model = switchable(FLAT["llama"]())
    assert "attention with" in self_test.self_test(model, FlatRunner(model)).problem
    monkeypatch.setattr(self_test, "attention_is_independent", lambda *_: True)
    assert "has other bits than alone" in self_test.self_test(model, FlatRunner(model)).problem


def test_the_self_test_names_stacks_whose_rows_see_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither layers nor sequences by themselves show it."""
    n_together: list[int] = []
    real = flat_attention._side_by_side

    def leaking(step: Any, stacked: Any, new: Any, how: Any, out: Tensor) -> None:
        real(step, stacked, new, how, out)
        n_together.append(len(stacked.stack.members))
        out[:, stacked.first_row : stacked.first_row + n_together[-1]] *= 1 + 1e-3 * n_together[-1]

    monkeypatch.setattr(flat_attention, "_side_by_side", leaking)
    model = switchable(FLAT["llama"]())
    assert "attention with" in self_test.self_test(model, FlatRunner(model)).problem
    monkeypatch.setattr(self_test, "attention_is_independent", lambda *_: True)
    assert "has other bits than alone" in self_test.self_test(model, FlatRunner(model)).problem
    assert max(n_together) > 1


def test_the_self_test_tries_a_large_layer_on_fewer_rows_than_a_small_one() -> None:
    """Its cost is bounded by the multiplications of each layer."""
    counts: dict[int, list[int]] = {16: [], 1 << 23: []}

    class Counting(nn.Module):
        def __init__(self, n_weights: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(n_weights, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            counts[self.weight.numel()].append(len(x))
            return x

    model = built(FLAT["llama"]())
    for n_weights, seen in counts.items():
        assert self_test._rows_are_independent(Counting(n_weights), 8, model)
        assert max(seen[1:]) * n_weights <= 2**32
    assert max(counts[16][1:]) == 1024 > max(counts[1 << 23][1:]) == 512


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="products are not MKL's here")
def test_strict_products_of_mkl_bring_a_claim_where_older_instructions_allow_none() -> None:
    """As on a processor without AVX-512, whose float32 products depend on where in memory they are."""
    code = """
        from tests.transformers.test_reproducible import HEADS, Company, claims, switchable
        model = switchable(HEADS["heads of 128"]())
        company = Company(model, lengths=(3, 70, 600))
        company.compare(150)
        print(claims(model), company.n_different)
    """
    old = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said: list[list[str]] = []
    for more in ({"MKL_CBWR": ""}, {"MKL_CBWR": "AUTO,STRICT"}):
        environment = os.environ | old | more
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
        )
        said.append(done.stdout.split())
    for claimed, n_different in said:
        assert claimed == "False" or n_different == "0"
    if "Intel" in cpu_model():
        assert said[1] == ["True", "0"]


# --- mixtures of experts, small products ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_say_the_same_in_groups_of_their_own_as_in_their_own_way(dtype: torch.dtype) -> None:
    model = built(FLAT["qwen3-moe"]()).to(dtype)
    block, x = model.model.layers[0].mlp, torch.randn(1, 37, 64, dtype=dtype)
    with torch.inference_mode():
        expected = block(x)
        make_switchable(model)
        assert torch.equal(block(x), expected)
        with numerics.reproducible_numerics(True):
            found = block(x)
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(found, expected, **tolerance)


def test_a_sequence_alone_in_a_step_uses_every_expert_it_chose_and_no_other() -> None:
    layer: Any = built(FLAT["qwen3-moe"]()).model.layers[0].mlp.experts
    chosen, shares = torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]])
    x = torch.randn(1, 64)
    with torch.inference_mode():
        each = [layer(x, torch.tensor([[expert]]), torch.ones(1, 1)) for expert in (2, 0)]
        found = experts.grouped_by_expert(layer, x, chosen, shares)
    torch.testing.assert_close(found, 0.75 * each[0] + 0.25 * each[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(64, 16), (32, 32), (128, 8), (1408, 64), (2730, 48)])
def test_rows_of_products_do_not_depend_on_how_many_there_are(
    n_inputs: int, n_outputs: int, dtype: torch.dtype
) -> None:
    """In narrow types, `linear` takes another kernel for four rows of a small matrix than for forty."""
    draw = torch.Generator().manual_seed(1)
    weight = (torch.randn(n_outputs, n_inputs, generator=draw) * 0.3).to(dtype)
    rows = torch.randn(512, n_inputs, generator=draw).to(dtype)
    layer = nn.Linear(n_inputs, n_outputs, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    product = numerics.independent_form(layer)
    assert product is not None
    expected = product(rows)
    torch.testing.assert_close(expected.float(), (rows.float() @ weight.float().T), atol=0.5, rtol=0.05)
    for n in (4, 8, 12, 64):
        parts = torch.cat([product(rows[at : at + n].clone()) for at in range(0, 512 // n * n, n)])
        assert torch.equal(parts, expected[: len(parts)])


def test_the_second_copy_of_the_weights_is_counted_once_it_is_there() -> None:
    model = switchable(FLAT["llama"]())
    assert packed_bytes(model) == 0
    FlatRunner(model).logits([Slice(FlatRunner(model).new(), [5, 6], 0, False)])
    assert packed_bytes(model) == 0
    FlatRunner(model).logits([Slice(FlatRunner(model).new(), [5, 6], 0, True)])
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert packed_bytes(model) == sum(layer.weight.nbytes for layer in layers)


def test_fast_and_reproducible_rows_of_one_step_differ_only_in_low_bits() -> None:
    model, draw = switchable(SHAPES["2728"]()), random.Random(2)
    prompt = [draw.randrange(3, 300) for _ in range(90)]
    of_mode = [FlatRunner(model).logits([Slice(FlatRunner(model).new(), prompt, 0, mode)])[0] for mode in (True, False)]
    torch.testing.assert_close(*of_mode, atol=1e-3, rtol=1e-3)
