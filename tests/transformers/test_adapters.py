"""LoRA adapters: switched without loading the model again, taken away to the bit, and never mixed up."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, PreTrainedModel

import llmkit
from llmkit.errors import ExtraUnavailable, ModelClosed, ModelInvalid, TaskArgsInvalid
from llmkit_transformers import TransformersLLM, adapters, loading, numerics
from llmkit_transformers.loading import LoadOptions, load_model
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.self_test import self_test
from tests import tiny_models
from tests.transformers.company import Company

EMBEDDED = Path(llmkit.__file__).parent / "tiny"
PROMPT = "a beginning that is long enough to be kept " * 2
WISH: dict[str, Any] = {"max_tokens": 12, "raw": True, "eos_token_id": []}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(base: Path, seed: int, **settings: Any) -> Any:
    """A peft model whose adapter is random throughout."""
    loading.import_bitsandbytes()
    import peft

    auto: Any = AutoModelForSeq2SeqLM if "t5" in base.name else AutoModelForCausalLM
    config = peft.LoraConfig(**{"r": 6, "lora_alpha": 12, "target_modules": ALL_LINEAR, **settings})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model: Any = peft.get_peft_model(auto.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def saved(folder: Path, base: Path, seed: int, **settings: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted(base, seed, **settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the tiny Llama, of different ranks and for different layers."""
    folder = tmp_path_factory.mktemp("adapters")
    return [saved(folder / "1", base, 1), saved(folder / "2", base, 2, r=3, target_modules=["q_proj", "down_proj"])]


@pytest.fixture(params=[True, False], ids=["engine", "generate"])
def own(request: pytest.FixtureRequest, base: Path) -> Iterator[TransformersLLM]:
    with TransformersLLM(base, engine=request.param) as llm:
        yield llm


def logits(llm: TransformersLLM) -> torch.Tensor:
    with torch.inference_mode():
        return llm.model(torch.tensor([[5, 9, 17, 200]])).logits


# --- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 4])
def test_an_adapter_changes_texts_and_none_brings_them_back(
    own: TransformersLLM, two: list[Path], seed: int | None
) -> None:
    def texts() -> list[str]:
        return own.batch_run([PROMPT, "Hello!"], seed=seed, **WISH)

    model, state = own.model, dict(own.model.state_dict())
    own_logits, before, fingerprints = logits(own), texts(), [own.fingerprint]
    by_adapter = []
    for adapter in two:
        own.set_adapter(adapter)
        assert own.adapter == str(adapter)
        with TransformersLLM(own.model_name, adapter=adapter, engine=own.engine_info.route == "engine") as fresh:
            # What the base had cached must not serve: a fresh model has no cache.
            assert texts() == fresh.batch_run([PROMPT, "Hello!"], seed=seed, **WISH)
            assert own.fingerprint == fresh.fingerprint
        by_adapter.append(texts())
        fingerprints.append(own.fingerprint)
    own.set_adapter(None)
    assert own.adapter is None
    assert texts() == before
    assert torch.equal(logits(own), own_logits)
    assert own.fingerprint == fingerprints[0]
    assert before not in by_adapter
    assert by_adapter[0] != by_adapter[1]
    assert len(set(fingerprints)) == 3
    assert own.model is model
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in state.items()
    }


def test_files_are_read_once(own: TransformersLLM, two: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(folder, tmp_path / folder.name) for folder in two)
    own.set_adapter(first)
    text = own.run(PROMPT, seed=1, **WISH)
    own.set_adapter(second)
    shutil.rmtree(first / "..", ignore_errors=True)
    first.mkdir(parents=True)
    own.set_adapter(first)
    assert own.run(PROMPT, seed=1, **WISH) == text


def test_dora_on_eight_bit_layers_is_refused_and_leaves_the_model_as_it_was(base: Path, tmp_path: Path) -> None:
    with TransformersLLM(str(base), quantize_bits=8) as llm:
        text = llm.run(PROMPT, seed=1, **WISH)
        with pytest.raises(ModelInvalid, match="is a DoRA adapter, which peft cannot run on 8-bit layers"):
            llm.set_adapter(saved(tmp_path / "dora", base, 2, use_dora=True))
        assert llm.run(PROMPT, seed=1, **WISH) == text
        llm.set_adapter(saved(tmp_path / "lora", base, 2))
        assert llm.run(PROMPT, seed=1, **WISH) != text


MERGED: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 30}},
    {"use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
]


@pytest.mark.parametrize("settings", MERGED, ids=str)
def test_texts_are_those_of_the_merged_model(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = saved(tmp_path / "adapter", base, 3, **settings)
    merged = adapted(base, 3, **settings).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    shutil.copy(base / "tokenizer.json", tmp_path / "merged")
    shutil.copy(base / "tokenizer_config.json", tmp_path / "merged")
    prompts = [PROMPT, "Hello!", "the capital of France"]
    with TransformersLLM(base) as llm, TransformersLLM(tmp_path / "merged") as reference:
        plain = llm.batch_run(prompts, seed=0, temperature=0, **WISH)  # packs the weights, which must not be kept
        llm.set_adapter(folder)
        assert llm.engine_info.route == "engine"
        expected = reference.batch_run(prompts, temperature=0, **WISH)
        assert llm.batch_run(prompts, temperature=0, **WISH) == expected
        assert llm.batch_run(prompts, temperature=0, seed=0, **WISH) == expected
        assert expected != plain
        llm.set_adapter(None)
        assert llm.batch_run(prompts, seed=0, temperature=0, **WISH) == plain


def test_the_embedded_model_takes_one(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", EMBEDDED, 1, target_modules="all-linear")
    with llmkit.load() as llm:
        llm.set_adapter(folder)
        assert llm.run("What is the capital of France?") != "The capital of France is Paris."
        llm.set_adapter(None)
        assert llm.run("What is the capital of France?") == "The capital of France is Paris."


def test_an_encoder_decoder_takes_one(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", model_folder("t5"), 1, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    with TransformersLLM(model_folder("t5")) as llm:
        before = llm.batch_run([PROMPT, "Hello!"], seed=1, **WISH)
        llm.set_adapter(folder)
        assert llm.batch_run([PROMPT, "Hello!"], seed=1, **WISH) != before
        llm.set_adapter(None)
        assert llm.batch_run([PROMPT, "Hello!"], seed=1, **WISH) == before


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_models_take_one(bits: int, tmp_path: Path) -> None:
    wide = tiny_models.build(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    folder = saved(tmp_path / "adapter", wide, 1)
    with TransformersLLM(wide, quantize_bits=bits, device="cpu") as llm:
        before, fingerprint = llm.run(PROMPT, seed=1, **WISH), llm.fingerprint
        llm.set_adapter(folder)
        alone = [llm.run(text, seed=1, **WISH) for text in (PROMPT, "Hello!")]
        assert alone[0] != before
        assert llm.batch_run([PROMPT, "Hello!"], seed=1, **WISH) == alone
        llm.set_adapter(None)
        assert (llm.run(PROMPT, seed=1, **WISH), llm.fingerprint) == (before, fingerprint)


def test_torchs_global_generator_is_left_alone(own: TransformersLLM, two: list[Path]) -> None:
    before = torch.get_rng_state()
    own.set_adapter(two[0])
    assert torch.equal(torch.get_rng_state(), before)


# --- calls meanwhile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 4])
def test_what_runs_ends_under_its_own_adapter(own: TransformersLLM, two: list[Path], seed: int | None) -> None:
    wish = {**WISH, "max_tokens": 60}
    expected = own.run("Hello!", seed=seed, **wish)
    stream = own.stream("Hello!", seed=seed, **wish)
    first = next(stream)
    changing = threading.Thread(target=own.set_adapter, args=(two[0],))
    changing.start()
    assert first + "".join(stream) == expected
    changing.join(60)
    assert not changing.is_alive()
    assert own.run("Hello!", seed=seed, **wish) != expected


def test_a_stream_that_is_open_in_the_same_thread_ends_under_its_own_adapter(
    own: TransformersLLM, two: list[Path]
) -> None:
    expected = own.run("Hello!", seed=1, **WISH)
    stream = own.stream("Hello!", seed=1, **WISH)
    begun = next(stream)
    own.set_adapter(two[0])
    assert begun + "".join(stream) == expected


@pytest.mark.parametrize("seed", [None, 4])
def test_calls_from_many_threads_each_see_one_adapter_while_it_is_switched(
    own: TransformersLLM, two: list[Path], seed: int | None
) -> None:
    wish = {**WISH, "max_tokens": 8}
    possible = set()
    for adapter in (None, *two):
        own.set_adapter(adapter)
        done = own.complete(PROMPT, seed=seed, **wish)
        possible |= {(done.text, done.fingerprint), (done.text, None)}
    assert len({text for text, _ in possible}) == 3
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            for adapter in (two[0], None, two[1]):
                own.set_adapter(adapter)

    with ThreadPoolExecutor(6) as threads:
        switching = threads.submit(switch)
        try:
            done = list(threads.map(lambda _: own.complete(PROMPT, seed=seed, **wish), range(30)))
        finally:
            stop.set()
        switching.result(60)
    # A fingerprint is the text's own, or there is none.
    assert {(completion.text, completion.fingerprint) for completion in done} <= possible


# --- bits -------------------------------------------------------------------------------------------------------------


def llama_with(adapter_settings: dict[str, Any], dtype: torch.dtype, folder: Path) -> PreTrainedModel:
    """A Llama made switchable, with an adapter in its place."""
    plain = tiny_models.build(folder / "model", hidden_size=128, intermediate_size=344, dtype=dtype)
    path = saved(folder / "adapter", plain, 1, **adapter_settings)
    loaded = load_model(str(plain), LoadOptions(device="cpu"))
    kept = adapters.Adapters(loaded.model, "llama")
    with kept.changed_to(kept.read(path)):
        make_switchable(loaded.model)
    return loaded.model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{"r": 8}, {"r": 3}, {"r": 4, "use_dora": True}], ids=str)
def test_logits_have_the_same_bits_in_any_company(settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = llama_with(settings, dtype, tmp_path)
    if self_test(model, FlatRunner(model)).problem:
        pytest.skip("the self-test makes no claim on this processor, so there is nothing to hold")
    company = Company(model, lengths=(3, 40, 70))
    company.compare(120)
    assert company.n_different == 0


def test_the_self_test_sees_the_layers_of_an_adapter(tmp_path: Path) -> None:
    model = llama_with({"r": 8}, torch.float32, tmp_path)
    layer = model.model.layers[0].self_attn.q_proj.lora_B["default"]
    before = layer.forward
    layer.forward = lambda x: before(x) + 1e-3 * x.mean()
    verdict = self_test(model, FlatRunner(model))
    assert verdict.problem.startswith("Linear of 8 inputs (model.layers.0.self_attn.q_proj.lora_B.default)")


def test_a_claim_that_the_adapter_breaks_is_withdrawn_and_comes_back_without_it(
    base: Path, two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with TransformersLLM(base) as llm:
        claim = llm.engine_info.reproducible
        switch = numerics._switch

        def leaning(module: Any, independent: Any, **kind: Any) -> None:
            switch(module, lambda x: independent(x) + 1e-3 * x.mean(), **kind)

        monkeypatch.setattr(numerics, "_switch", leaning)  # of the adapter's layers only: the others are switched
        llm.set_adapter(two[0])
        with pytest.warns(UserWarning, match="a batch changes the bits"):
            assert llm.engine_info.reproducible == "alone"
        alone = llm.run(PROMPT, seed=1, **WISH)
        assert llm.batch_run([PROMPT, "Hello!"], seed=1, **WISH)[0] == alone
        llm.set_adapter(None)
        assert llm.engine_info.reproducible == claim


def test_seeded_batches_equal_lone_runs(base: Path, two: list[Path]) -> None:
    prompts = [PROMPT, "Hello!", PROMPT + "and more", "x"]
    with TransformersLLM(base, adapter=two[0]) as llm:
        alone = [llm.run(prompt, seed=seed, temperature=1.2, **WISH) for seed, prompt in enumerate(prompts)]
        assert llm.batch_run(prompts, seed=[0, 1, 2, 3], temperature=1.2, **WISH) == alone
        completion = llm.complete(prompts[0], seed=0, temperature=1.2, **WISH)
        assert (completion.text, completion.fingerprint) == (alone[0], llm.fingerprint)


def test_a_copy_of_a_switched_layer_computes_with_its_own_weights() -> None:
    from copy import deepcopy

    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    make_switchable(model)
    forward = model.lm_head.forward
    model.lm_head = deepcopy(model.lm_head)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    make_switchable(model)
    assert not model.lm_head(torch.ones(4, 32)).any()
    own = model.lm_head.forward
    make_switchable(model)
    assert model.lm_head.forward is own is not forward


# --- what is refused --------------------------------------------------------------------------------------------------


def edited(folder: Path, source: Path, **settings: Any) -> Path:
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


def without_some(folder: Path, source: Path, **more: torch.Tensor) -> Path:
    shutil.copytree(source, folder)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(
        {**dict(sorted(tensors.items())[: None if more else -1]), **more}, file, {"format": "pt"}
    )
    return folder


def bad_adapters(tmp_path: Path, base: Path, good: Path) -> list[tuple[Path, str]]:
    other = tiny_models.build(tmp_path / "other", hidden_size=64)
    deeper = tiny_models.build(tmp_path / "deeper", num_hidden_layers=3)
    damaged = edited(tmp_path / "damaged", good)
    (damaged / "adapter_model.safetensors").write_bytes(b"no tensors at all")
    pickled = edited(tmp_path / "pickled", good)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    garbled = edited(tmp_path / "garbled", good)
    (garbled / "adapter_config.json").write_text("{")
    return [
        (tmp_path / "missing", "there is no adapter at"),
        (good / "adapter_config.json", "is a file"),
        (base, "has no adapter_config.json"),
        (damaged, "damaged adapter_model.safetensors"),
        (pickled, "adapter_model.bin is not read, because reading it could run code"),
        (garbled, "cannot be read"),
        (saved(tmp_path / "a", other, 1), "is no LoRA adapter for"),
        (saved(tmp_path / "b", deeper, 1), "has no layer for"),
        (without_some(tmp_path / "c", good), "lacks 1 of its tensors"),
        (without_some(tmp_path / "d", good, **{"base_model.model.x.lora_A.weight": torch.ones(2)}), "has no layer for"),
        (edited(tmp_path / "e", good, peft_type="IA3"), "must say peft_type 'LORA', it says 'IA3'"),
        (edited(tmp_path / "f", good, novelty=1), "sets 'novelty', which this peft"),
        (edited(tmp_path / "g", good, bias="all"), "sets bias to 'all'"),
        (edited(tmp_path / "h", good, init_lora_weights="pissa"), "sets init_lora_weights to 'pissa'"),
        (edited(tmp_path / "i", good, alora_invocation_tokens=[1]), "sets alora_invocation_tokens"),
        (edited(tmp_path / "j", good, target_modules=["nowhere"]), "is no LoRA adapter for"),
        (edited(tmp_path / "k", good, r=5), "is no LoRA adapter for"),
    ]


def test_a_bad_adapter_is_refused_and_changes_nothing(
    own: TransformersLLM, base: Path, two: list[Path], tmp_path: Path
) -> None:
    own.set_adapter(two[0])
    before = own.run(PROMPT, seed=1, **WISH), own.fingerprint, own.adapter
    for bad, reason in bad_adapters(tmp_path, base, two[0]):
        with pytest.raises(ModelInvalid, match=reason):
            own.set_adapter(bad)
        assert (own.run(PROMPT, seed=1, **WISH), own.fingerprint, own.adapter) == before
    own.set_adapter(two[1])
    own.set_adapter(two[0])
    assert (own.run(PROMPT, seed=1, **WISH), own.fingerprint, own.adapter) == before


def test_a_bad_adapter_at_loading_leaves_no_threads(base: Path, two: list[Path], tmp_path: Path) -> None:
    before = threading.active_count()
    bad = edited(tmp_path / "bad", two[0], target_modules=["nowhere"])
    for adapter in (tmp_path / "missing", bad):
        with pytest.raises(ModelInvalid):
            TransformersLLM(base, adapter=adapter)
    assert threading.active_count() == before


def test_an_adapter_that_was_repaired_is_read_again(base: Path, two: list[Path], tmp_path: Path) -> None:
    folder = edited(tmp_path / "bad", two[0], target_modules=["nowhere"])
    with TransformersLLM(base) as llm:
        with pytest.raises(ModelInvalid):
            llm.set_adapter(folder)
        shutil.copy(two[0] / "adapter_config.json", folder)
        llm.set_adapter(folder)
        assert llm.adapter == str(folder)


def test_without_peft_the_error_says_what_to_install(
    base: Path, two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        TransformersLLM(base) as llm,
        pytest.raises(ExtraUnavailable, match=r'needs peft.*: pip install "llmkit\[lora]"'),
    ):
        llm.set_adapter(two[0])


# --- the rest of the object -------------------------------------------------------------------------------------------


def test_another_model_begins_without_the_adapter_and_another_device_keeps_it(
    base: Path, model_folder: Callable[..., Path], two: list[Path]
) -> None:
    with TransformersLLM(base, adapter=two[0]) as llm:
        text = llm.run(PROMPT, seed=1, **WISH)
        llm.set_device("cpu")
        assert llm.adapter == str(two[0])
        assert llm.run(PROMPT, seed=1, **WISH) == text
        llm.set_model_name(str(model_folder("qwen3")))
        assert llm.adapter is None


def test_a_checkpoints_weights_are_the_models_own(base: Path, two: list[Path], tmp_path: Path) -> None:
    with TransformersLLM(base) as llm:
        plain, weights = llm.run(PROMPT, seed=1, **WISH), llm._identity["weights"]
        llm.set_adapter(two[0])
        changed = llm.run(PROMPT, seed=1, **WISH)
        llm.save_checkpoint(tmp_path, include_weights=True)
        llm.load_checkpoint(tmp_path)
        assert llm.adapter is None
        assert (llm.run(PROMPT, seed=1, **WISH), llm._identity["weights"]) == (plain, weights)
        llm.set_adapter(two[0])
        assert llm.run(PROMPT, seed=1, **WISH) == changed


def test_a_gpt_task_is_refused_while_an_adapter_is_in_use(base: Path, two: list[Path]) -> None:
    task = json.loads((Path(__file__).parents[2] / "examples" / "task.json").read_text())
    task["model"] = str(base)
    with TransformersLLM(base, adapter=two[0]) as llm:
        with pytest.raises(TaskArgsInvalid, match="adapter: the task asks for a model without one"):
            llm.execute(task)
        llm.set_adapter(None)
        assert llm.execute(task)


def test_a_closed_model_takes_no_adapter(base: Path, two: list[Path]) -> None:
    llm = TransformersLLM(base)
    llm.close()
    with pytest.raises(ModelClosed):
        llm.set_adapter(two[0])
