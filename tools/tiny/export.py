"""Owns the two file formats of the embedded model: float16 safetensors for transformers, float16 GGUF for llama.cpp.

The GGUF is written from the saved transformers files alone, so both hold the same weights. It does not train.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import GenerationConfig, LlamaForCausalLM

from tools.tiny.data import SPECIAL_TOKENS

_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes config, generation config and float16 weights; the config asks loaders for float32."""
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    written = json.loads(path.read_text("utf-8"))
    written["dtype"] = "float32"
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", "utf-8")


def save_gguf(folder: Path) -> None:
    """Converts the files that lie in `folder` to `folder/model.gguf`."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(*_converted(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_name("llmkit tiny demo model")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))


def _converted(name: str, tensor: np.ndarray, config: dict[str, Any]) -> tuple[str, np.ndarray]:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", tensor
    if name == "model.norm.weight":
        return "output_norm.weight", tensor.astype(np.float32)
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"]
        tensor = _interleaved(tensor, heads)
    # llama.cpp wants vectors (the norms' gains) in float32.
    return f"blk.{layer}.{_LAYER_TENSORS[part]}.weight", tensor.astype(np.float32) if tensor.ndim == 1 else tensor


def _interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorders the rows of each head, since llama.cpp rotates neighbours where transformers rotates halves."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
