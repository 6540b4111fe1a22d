"""Quantised models in reproducible batches: the same bits in any company, through the real loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmkit.gpt_task import ModelCache, run_task
from llmkit_transformers import TransformersLLM
from llmkit_transformers.compute_threads import threads
from llmkit_transformers.loading import LoadOptions, load_model
from llmkit_transformers.numerics import make_switchable, reproducible_numerics
from llmkit_transformers.proof import why_not_flat
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.self_test import self_test
from tests import tiny_models
from tests.transformers.company import N_THREADS, Company

pytest.importorskip("bitsandbytes")

SEEDED = {"max_tokens": 8, "temperature": 1.2}
TASKS = ["hello", "how are you today my friend", "x", "the capital of France is", "bonjour " * 8]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a model with a given intermediate size."""
    root, made = tmp_path_factory.mktemp("quantised"), dict[int, Path]()

    def folder(width: int) -> Path:
        if width not in made:
            made[width] = tiny_models.build(root / str(width), hidden_size=64, intermediate_size=width)
        return made[width]

    return folder


def quantised(folder: Path, bits: int, dtype: Any = "auto") -> Any:
    """The model as the backend loads and prepares it."""
    loaded = load_model(str(folder), LoadOptions(quantize_bits=bits, dtype=dtype, device="cpu"))
    assert why_not_flat(loaded.model) is None
    make_switchable(loaded.model)
    return loaded.model


@pytest.mark.parametrize(("width", "dtype"), [(1408, "auto"), (2728, "float32"), (2730, "bfloat16")])
@pytest.mark.parametrize("bits", [4, 8])
def test_logits_of_quantised_models_have_the_same_bits_in_any_company(
    bits: int, width: int, dtype: str, folder_of: Callable[[int], Path]
) -> None:
    model = quantised(folder_of(width), bits, dtype)
    if self_test(model, FlatRunner(model)).problem:
        pytest.skip("the self-test makes no claim on this processor, so there is nothing to hold")
    company = Company(model, lengths=(5, 70))
    company.compare(150)
    assert company.n_different == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_seeded_texts_of_quantised_models_share_steps_and_keep_their_bits(
    bits: int, folder_of: Callable[[int], Path]
) -> None:
    with TransformersLLM(str(folder_of(128)), quantize_bits=bits, device="cpu") as llm:
        assert (llm.engine_info.route, llm.engine_info.reproducible) == ("engine", "batched")
        seeds = list(range(len(TASKS)))
        alone = [llm.run(task, seed=seed, **SEEDED) for task, seed in zip(TASKS, seeds, strict=True)]
        figures = llm.track_resource_utilization().engine
        assert figures is not None
        assert figures.started_requests == len(TASKS)
        assert llm.batch_run(TASKS[::-1], seed=seeds[::-1], **SEEDED)[::-1] == alone


@pytest.mark.parametrize("bits", [4, 8])
def test_a_task_with_quantised_weights_gives_the_same_text_each_time(
    bits: int, folder_of: Callable[[int], Path]
) -> None:
    task = {
        "model": str(folder_of(128)),
        "messages": [{"role": "user", "content": "hello"}],
        "quantize_bits": bits,
        "seed": 7,
        "generation_config": {"max_new_tokens": 8, "do_sample": True, "temperature": 1.2},
    }
    cache = ModelCache()
    first = run_task(task, cache=cache)
    cache.clear()
    assert run_task(task, cache=cache) == first
    cache.clear()


# --- what each kind of layer computes -------------------------------------------------------------------------------


def one_layer(folder: Path, bits: int, **options: Any) -> Any:
    kind = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    model = quantised(folder, bits, **options)
    return next(module for module in model.modules() if type(module).__name__ == kind)


def test_an_outlier_in_another_row_changes_an_8_bit_row_in_fast_steps_only(folder_of: Callable[[int], Path]) -> None:
    layer = one_layer(folder_of(128), 8)
    rows = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0)).half()
    with_outlier = rows.clone()
    with_outlier[5, 3] = 40.0
    others = [row for row in range(8) if row != 5]

    def products(reproducible: bool) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), reproducible_numerics(reproducible):
            return layer(rows.clone()), layer(with_outlier.clone())

    assert torch.equal(*(out[others] for out in products(reproducible=True)))
    assert not torch.equal(*(out[others] for out in products(reproducible=False)))


def test_outliers_keep_their_precision_in_8_bit_rows(folder_of: Callable[[int], Path]) -> None:
    """Taken out of the integer product, they do not drown the rest of their row in rounding."""
    layer = one_layer(folder_of(128), 8, dtype="float32")
    rows = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
    rows[:, 3] = 60.0
    with torch.inference_mode(), reproducible_numerics(True):
        found = layer(rows)
        exact = rows @ (layer.state.CB.float() * (layer.state.SCB[:, None] / 127)).T
        layer.state.threshold = 0.0
        drowned = layer(rows)
    assert (found - exact).abs().max() < 0.25 * (drowned - exact).abs().max()


def test_4_bit_rows_are_independent_without_the_fused_kernel(folder_of: Callable[[int], Path]) -> None:
    """As on a processor without bfloat16 instructions, where the weights are unpacked at each product."""
    loaded = load_model(str(folder_of(128)), LoadOptions(quantize_bits=4, device="cpu"))
    layers = [module for module in loaded.model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    make_switchable(loaded.model)
    layer = layers[-1]
    rows = torch.randn(128, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), reproducible_numerics(True):
        expected = layer(rows)
        for n_threads in N_THREADS:
            with threads(n_threads):
                for n in (4, 12, 64):
                    assert torch.equal(layer(rows[3 : 3 + n].clone()), expected[3 : 3 + n])
        with reproducible_numerics(False):
            torch.testing.assert_close(layer(rows), expected, atol=1e-3, rtol=1e-3)


def test_layers_of_shapes_that_4_bit_kernels_get_wrong_stay_as_they_are(folder_of: Callable[[int], Path]) -> None:
    model = quantised(folder_of(2730), 4)
    layer = model.model.layers[0]
    kinds = {name: type(module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert kinds["mlp.down_proj"] is nn.Linear  # 2,730 inputs, and blocks have 64
    assert kinds["mlp.gate_proj"] is nn.Linear  # 2,730 outputs, and blocks have 32
    assert kinds["self_attn.q_proj"].__name__ == "Linear4bit"
    assert type(model.lm_head) is nn.Linear
