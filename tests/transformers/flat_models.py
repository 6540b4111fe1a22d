"""Tiny random models of the families that flat steps are for, and of some that they are not, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MoshiConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    T5Config,
)

from llmkit_transformers.proof import may_narrow
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
UNUSUAL: dict[str, Callable[[], PreTrainedConfig]] = {
    "deepseek-v3: values narrower than keys": lambda: DeepseekV3Config(
        **usual(num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2),
        **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "head_dim": 8},
    ),
    "gemma3n: a size for each layer": lambda: Gemma3nTextConfig(
        **usual(head_dim=16, sliding_window=WINDOW) | {"intermediate_size": [96, 128]},
        **{"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"], "laurel_rank": 4},
        **{"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2},
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "phimoe: a router that is a Linear and gives three tensors": lambda: PhimoeConfig(
        **usual(num_local_experts=4, num_experts_per_tok=2)
    ),
}
"""Models whose layers are none of those that the engine was made for."""

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
    "olmo3 with long rope in some layers": (
        lambda: Olmo3Config(
            **usual(
                sliding_window=WINDOW,
                layer_types=["sliding_attention", "full_attention"],
                rope_parameters={
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {
                        "rope_type": "longrope",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 64,
                        "short_factor": [1.0] * 8,
                        "long_factor": [4.0] * 8,
                    },
                },
            )
        ),
        "longrope positions depend on the longest sequence",
    ),
    "llama with dynamic NTK": (
        lambda: LlamaConfig(**usual(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})),
        "dynamic positions depend on the longest sequence",
    ),
    "moshi, whose window is its cache's alone": (
        lambda: MoshiConfig(**without("intermediate_size", ffn_dim=128, sliding_window=WINDOW)),
        "its sliding windows do not reach the attention function",
    ),
    "phimoe, whose window is its mask's alone": (
        lambda: PhimoeConfig(**usual(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW)),
        "its sliding windows do not reach the attention function",
    ),
    "t5": (lambda: T5Config(vocab_size=V, d_model=64, d_ff=64, num_layers=2, **SPECIAL), "encoder-decoder"),
}


def built(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    for parameter in model.parameters():  # wider than usual, so that texts vary and windows and caps bite
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


def runner_of(model: PreTrainedModel) -> FlatRunner:
    """A runner as applications have it, which leaves out what the model allows to be left out."""
    return FlatRunner(model, narrow=may_narrow(model))
