"""Flat steps on the families of the engine: the right tokens, and the same bits in any company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from llmkit.engine.runner import Slice
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.proof import is_reproducible, why_not_flat
from llmkit_transformers.runner import FlatRunner

V, WINDOW = 300, 20
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": V, "n_embd": 64, "n_layer": 2, "n_head": 4, **SPECIAL}


def usual(**more: Any) -> dict[str, Any]:
    shape = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {"vocab_size": V, "num_key_value_heads": 2, "max_position_embeddings": 256, **shape, **SPECIAL} | more


def without(names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in usual(**more).items() if name not in names.split()}


WINDOWED = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
FLAT: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**usual()),
    "qwen2": lambda: Qwen2Config(**usual()),
    "qwen3": lambda: Qwen3Config(**usual(head_dim=16)),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **usual(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    ),
    "gpt2": lambda: GPT2Config(**GPT),
    "gpt-neox": lambda: GPTNeoXConfig(**without("num_key_value_heads")),
    "opt": lambda: OPTConfig(**without("intermediate_size num_key_value_heads", ffn_dim=128, word_embed_proj_dim=64)),
    "olmo2": lambda: Olmo2Config(**usual()),
    "smollm3": lambda: SmolLM3Config(**usual()),
    "phi3": lambda: Phi3Config(**usual()),
    "mistral": lambda: MistralConfig(**usual(sliding_window=WINDOW)),
    "gemma2": lambda: Gemma2Config(**usual(**WINDOWED, attn_logit_softcapping=2.0)),
    "gemma3": lambda: Gemma3TextConfig(**usual(**WINDOWED)),
}
NOT_FLAT: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "gptj": (lambda: GPTJConfig(**GPT, rotary_dim=8), "called the attention function 0 times"),
    "bloom": (lambda: BloomConfig(vocab_size=V, hidden_size=64, n_layer=2, n_head=4, **SPECIAL), "0 times"),
    "falcon": (lambda: FalconConfig(**without("num_key_value_heads intermediate_size")), "dry run failed"),
    "gpt-oss": (lambda: GptOssConfig(**usual(head_dim=16, num_local_experts=4)), "s_aux"),
    "phi3 with long rope": (
        lambda: Phi3Config(
            **usual(
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                },
            )
        ),
        "longrope positions depend on the longest sequence",
    ),
}


def built(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # wider than usual, so that texts vary and windows and caps bite
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prompts(n: int, longest: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, V) for _ in range(draw.randint(3, longest))] for _ in range(n)]


def greedy(model: PreTrainedModel, tasks: list[list[int]], n_new: int, draw: random.Random) -> list[list[int]]:
    """Greedy tokens by flat steps of random cuts, all sequences side by side."""
    runner = FlatRunner(model)
    kept, read, texts = [runner.new() for _ in tasks], [0] * len(tasks), [list(task) for task in tasks]
    while any(len(text) < len(task) + n_new for text, task in zip(texts, tasks, strict=True)):
        rows = [i for i, task in enumerate(tasks) if len(texts[i]) < len(task) + n_new]
        rows = draw.sample(rows, draw.randint(1, len(rows)))
        cuts = [min(len(texts[i]), read[i] + draw.randint(1, 40)) for i in rows]
        logits = runner.logits(
            [Slice(kept[i], texts[i][read[i] : cut], read[i], False) for i, cut in zip(rows, cuts, strict=True)]
        )
        for i, cut, row in zip(rows, cuts, logits, strict=True):
            read[i] = cut
            if cut == len(texts[i]):
                texts[i].append(int(row.argmax()))
    return [text[len(task) :] for text, task in zip(texts, tasks, strict=True)]


def generated(model: PreTrainedModel, task: list[int], n_new: int) -> list[int]:
    mask = torch.ones(1, len(task), dtype=torch.long)
    ids = model.generate(torch.tensor([task]), attention_mask=mask, do_sample=False, max_new_tokens=n_new)
    return ids[0, len(task) :].tolist()


@pytest.mark.parametrize("family", FLAT)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model, tasks = built(FLAT[family]()), prompts(5, 70, seed=1)
    assert why_not_flat(model) is None
    model.generation_config.eos_token_id = None
    expected = [generated(model, task, 8) for task in tasks]
    assert greedy(model, tasks, 8, random.Random(2)) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("family", NOT_FLAT)
def test_a_model_that_a_flat_step_would_get_wrong_is_refused_with_the_reason(family: str) -> None:
    config, reason = NOT_FLAT[family]
    assert reason in (why_not_flat(built(config())) or "")


@pytest.mark.parametrize("broken", ["window", "softcap"])
def test_the_dry_run_notices_a_window_or_a_softcap_that_is_ignored(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is tried on an attention function that ignores what the model passes."""
    from transformers import AttentionInterface

    from llmkit_transformers import flat_attention

    def ignoring(*tensors: Any, **given: Any) -> Any:
        given["softcap" if broken == "softcap" else "sliding_window"] = None
        return flat_attention.flat_attention(*tensors, **given)

    model = built(FLAT["gemma2"]())
    monkeypatch.setitem(AttentionInterface._global_mapping, flat_attention.NAME, ignoring)
    assert why_not_flat(model) is not None


class Reference:
    """Logits after every token of a prompt, read alone, token by token, in one thread."""

    def __init__(self, model: PreTrainedModel, n_tokens: int) -> None:
        torch.set_num_threads(1)
        draw = random.Random(5)
        self.runner, self.prompt = FlatRunner(model), [draw.randrange(3, V) for _ in range(n_tokens)]
        kept = self.runner.new()
        self.logits = [self.runner.logits([Slice(kept, [token], at, True)])[0] for at, token in enumerate(self.prompt)]

    def n_different(self, n_trials: int, seed: int) -> tuple[int, int]:
        """Random cuts, neighbours, slots and threads: comparisons made, and those whose bits differ."""
        draw, n_made, n_bad = random.Random(seed), 0, 0
        for _ in range(n_trials):
            torch.set_num_threads(draw.choice([1, 2, 3, 4, 6, 8]))
            kept, at = self.runner.new(), 0
            while at < len(self.prompt):
                n = min(len(self.prompt) - at, draw.choice([1, 1, 2, 3, 5, 17, 64]))
                others = [self._other(draw) for _ in range(draw.choice([0, 1, 3, 7, 20]))]
                slot = draw.randint(0, len(others))
                others.insert(slot, Slice(kept, self.prompt[at : at + n], at, True))
                at += n
                n_made += 1
                n_bad += not torch.equal(self.runner.logits(others)[slot], self.logits[at - 1])
        return n_made, n_bad

    def _other(self, draw: random.Random) -> Slice:
        return Slice(self.runner.new(), [draw.randrange(3, V) for _ in range(draw.choice([1, 1, 4, 30]))], 0, True)


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "1408": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=1408)),
    "2728": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=2728, num_key_value_heads=4)),
    "2730": lambda: LlamaConfig(**usual(hidden_size=128, intermediate_size=2730, num_key_value_heads=1)),
    "gemma2": FLAT["gemma2"],
    "gpt2": FLAT["gpt2"],
    "gpt-neox": FLAT["gpt-neox"],
}


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_have_the_same_bits_in_any_company_cut_and_number_of_threads(shape: str, dtype: torch.dtype) -> None:
    model = built(SHAPES[shape]()).to(dtype)
    make_switchable(model)
    if not is_reproducible(model, FlatRunner(model)):
        pytest.skip("the self-test makes no claim on this processor, so there is nothing to hold")
    n_made, n_bad = Reference(model, 90).n_different(n_trials=6, seed=7)
    assert n_made > 20
    assert n_bad == 0


@pytest.mark.usefixtures("four_threads")
def test_the_self_test_withdraws_the_claim_where_a_rule_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With whole slices instead of tiles, a row's bits depend on how it was cut."""
    from llmkit_transformers import flat_attention

    model = built(FLAT["llama"]())
    make_switchable(model)
    monkeypatch.setattr(flat_attention, "_tiled", flat_attention._whole)
    assert not is_reproducible(model, FlatRunner(model))


def test_layers_keep_their_names_and_fast_results_when_made_switchable() -> None:
    model, task = built(FLAT["llama"]()), torch.tensor([[5, 6, 7]])
    names = list(model.state_dict())
    with torch.inference_mode():
        before = model(task).logits
        make_switchable(model)
        assert torch.equal(model(task).logits, before)
    assert list(model.state_dict()) == names
