"""GGUF files for tests: the embedded model with other metadata, random adapters for it, and damaged files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import gguf
import numpy as np

EMBEDDED = Path(str(files("llmkit") / "tiny" / "model.gguf"))
TEMPLATE = "tokenizer.chat_template"
_WRITTEN_BY_ITSELF = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def changed(path: Path, metadata: Mapping[str, Any]) -> Path:
    """The embedded model with fields added or replaced; None leaves one out."""
    reader = gguf.GGUFReader(EMBEDDED)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name not in metadata and name not in _WRITTEN_BY_ITSELF:
            item_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item_type)
    for name, value in metadata.items():
        if value is not None:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return _written(writer, path)


def adapter(path: Path, seed: int, *, scale: float = 1.0, n_embd: int = 192) -> Path:
    """A random LoRA adapter of rank 4 on the queries of all layers."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for layer in range(6):
        for part, shape in (("lora_a", (4, n_embd)), ("lora_b", (n_embd, 4))):
            values = draw.normal(0, scale, shape).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_output.weight.{part}", values)
    return _written(writer, path)


def mamba(path: Path) -> Path:
    """A random state-space model with the embedded model's vocabulary."""
    reader, draw = gguf.GGUFReader(EMBEDDED), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "mamba")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            item_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item_type)
    d_model, d_inner, d_state, d_conv, dt_rank, n_vocab = 64, 128, 8, 4, 4, 1536
    writer.add_context_length(512)
    writer.add_embedding_length(d_model)
    writer.add_block_count(2)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    writer.add_layer_norm_rms_eps(1e-5)

    def add(name: str, *shape: int, positive: bool = False) -> None:
        values = draw.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(name, -np.abs(values) if positive else values)

    add("token_embd.weight", n_vocab, d_model)
    add("output_norm.weight", d_model)
    for layer in range(2):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", d_model)
        add(f"{block}.ssm_in.weight", 2 * d_inner, d_model)
        add(f"{block}.ssm_conv1d.weight", d_inner, d_conv)
        add(f"{block}.ssm_conv1d.bias", d_inner)
        add(f"{block}.ssm_x.weight", dt_rank + 2 * d_state, d_inner)
        add(f"{block}.ssm_dt.weight", d_inner, dt_rank)
        add(f"{block}.ssm_dt.bias", d_inner)
        add(f"{block}.ssm_a", d_inner, d_state, positive=True)
        add(f"{block}.ssm_d", d_inner)
        add(f"{block}.ssm_out.weight", d_model, d_inner)
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
