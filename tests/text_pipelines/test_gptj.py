"""The pipelines on GPT-J and on the engine, with models that count: the next digit follows, nine ends a text.

They are built from real configurations and come through the real loaders; only their weights are chosen.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmkit.errors import ContextLengthExceeded
from llmkit.text_pipelines import GPTJPipeline, TextGenerationPipeline
from tests import tiny_models

PROMPTS = ["1", "5", "78", "3"]
TO_NINE = ["2345678", "678", "", "45678"]
AT_MOST_THREE = ["234", "678", "", "456"]
END = 9
# As GPT-J has it: more embeddings than the tokenizer has tokens.
N_EMBEDDINGS, WIDTH = 16, 16


def digits() -> PreTrainedTokenizerFast:
    """A digit is a token; nine ends a text. Nothing pads, as with GPT-J."""
    tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(10)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=str(END), bos_token=str(END))


def make_count(model: GPTJForCausalLM | LlamaForCausalLM, silenced: tuple[str, ...]) -> None:
    """Set the weights: layers add nothing, and what is left of a token is most like the next one's output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in silenced):
                parameter.zero_()
        embeddings: nn.Embedding = model.get_input_embeddings()
        embeddings.weight.copy_(10 * torch.eye(N_EMBEDDINGS))
        model.get_output_embeddings().weight.copy_(torch.eye(N_EMBEDDINGS).roll(1, dims=0))


@pytest.fixture(scope="module")
def counting_gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptj")
    model = GPTJForCausalLM(
        GPTJConfig(
            vocab_size=N_EMBEDDINGS,
            n_positions=64,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            rotary_dim=4,
            bos_token_id=END,
            eos_token_id=END,
        )
    )
    make_count(model, ("out_proj", "fc_out", "lm_head.bias"))
    model.save_pretrained(folder)
    digits().save_pretrained(folder)
    # The published config has it; it must not become the way that the pipeline generates.
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def counting_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=N_EMBEDDINGS,
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=END,
            eos_token_id=END,
        )
    )
    make_count(model, ("o_proj", "down_proj"))
    model.save_pretrained(folder)
    digits().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 12])
def test_gptj_gives_the_same_texts_whatever_runs_at_once(counting_gptj: Path, micro_batch_size: int) -> None:
    pipeline = GPTJPipeline(model=counting_gptj, micro_batch_size=micro_batch_size)
    rows: list[int] = []
    pipeline.pretrained.register_forward_pre_hook(
        lambda _module, _args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    assert pipeline(PROMPTS) == TO_NINE
    assert pipeline(PROMPTS, output_length=3) == AT_MOST_THREE
    assert pipeline([]) == []
    assert max(rows) == min(micro_batch_size, len(PROMPTS))
    pipeline.detach()


def test_gptj_goes_through_transformers_own_generate(counting_gptj: Path) -> None:
    pipeline = GPTJPipeline(model=str(counting_gptj), micro_batch_size=2, sequence_length=8)
    assert isinstance(pipeline.pretrained, GPTJForCausalLM)
    assert pipeline.llm is not None
    assert pipeline.llm.engine_info.route == "generate"  # pyright: ignore
    with pytest.raises(ContextLengthExceeded):
        pipeline("12345678")
    assert pipeline("1234567") == ["8"], "prompt and text share the sequence length"
    pipeline.detach()


def test_the_tokenizer_stays_as_it_was_saved(counting_gptj: Path) -> None:
    pipeline = GPTJPipeline(model=counting_gptj)
    pipeline(PROMPTS)
    assert pipeline.tokenizer.pad_token is None
    assert len(pipeline.tokenizer) == len(digits())
    pipeline.detach()


@pytest.mark.parametrize(("output_length", "texts", "n_steps"), [(20, TO_NINE, 11), (3, AT_MOST_THREE, 6)])
def test_a_slot_that_is_free_takes_the_next_prompt(
    counting_llama: Path, output_length: int, texts: list[str], n_steps: int
) -> None:
    pipeline = TextGenerationPipeline(model=counting_llama, micro_batch_size=2, output_length=output_length)
    assert pipeline.llm is not None
    before = pipeline.llm._routes.figures.steps  # pyright: ignore
    assert pipeline(PROMPTS) == texts
    assert pipeline.llm._routes.figures.steps - before == n_steps  # pyright: ignore
    pipeline.detach()


def example() -> ModuleType:
    """`examples/gptj.py`."""
    path = Path(__file__).parents[2] / "examples" / "gptj.py"
    spec = importlib.util.spec_from_file_location("gptj_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def random_gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), pad=False, template=None)
    return tiny_models.build(tmp_path_factory.mktemp("random"), "gptj", tokenizer=tokenizer, n_positions=1024)


def test_the_example_takes_all_its_steps_on_a_random_gptj(
    random_gptj: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pairs = [{"premise": "It rains.", "hypothesis": f"It is {n}.", "label": n % 3} for n in range(18)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    folder = str(random_gptj)
    example().main(["--gpt-j", folder, "--mnli", folder, "--dtype", "float32", "--data", str(data)])
    printed = capsys.readouterr().out
    assert "France -> " in printed
    assert printed.endswith("0 of 18 pairs right\n"), "a random model says no label"


def test_without_the_data_set_the_example_says_so(
    random_gptj: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example()
    monkeypatch.setattr(module, "ask_capitals", lambda name, dtype: None)
    with pytest.raises(SystemExit, match="cannot run: Couldn't reach 'glue' on the Hub"):
        module.main(["--mnli", str(random_gptj)])
