"""Tiny random models with trained tokenizers, written to folders as a user's models are.

Every family is a real configuration of transformers with small numbers. The weights are wider than usual, so that the
texts vary instead of repeating one token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RwkvConfig,
    T5Config,
    TrOCRConfig,
)

PAD, BOS, EOS, EOT = 0, 1, 2, 3
SPECIAL = ("<pad>", "<s>", "</s>", "<eot>")
WINDOW = 128

TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools: {{ tools | map(attribute='name') | join(',') }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if mood is defined %}mood: {{ mood }}\n{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
)
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)

CORPUS = [
    "hello world, how are you today my friend",
    "the capital of France is Paris and the capital of Italy is Rome",
    "user: assistant: system: héllo 😀 çà et là, 日本語のテキスト",
]

_SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


def _llama(n_tokens: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=n_tokens, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=WINDOW, **_SMALL
    )


def _qwen3(n_tokens: int) -> PreTrainedConfig:
    return Qwen3Config(
        vocab_size=n_tokens,
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=WINDOW,
        **_SMALL,
    )


def _gpt2(n_tokens: int) -> PreTrainedConfig:
    return GPT2Config(vocab_size=n_tokens, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4)


def _gptj(n_tokens: int) -> PreTrainedConfig:
    return GPTJConfig(vocab_size=n_tokens, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)


def _mamba(n_tokens: int) -> PreTrainedConfig:
    return MambaConfig(vocab_size=n_tokens, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=0.5)


def _rwkv(n_tokens: int) -> PreTrainedConfig:
    return RwkvConfig(vocab_size=n_tokens, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)


def _trocr(n_tokens: int) -> PreTrainedConfig:
    return TrOCRConfig(
        vocab_size=n_tokens,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=WINDOW,
        init_std=0.3,
    )


def _t5(n_tokens: int) -> PreTrainedConfig:
    return T5Config(vocab_size=n_tokens, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=4.0)


def _bart(n_tokens: int) -> PreTrainedConfig:
    return BartConfig(
        vocab_size=n_tokens,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=WINDOW,
        forced_eos_token_id=None,
        init_std=0.3,
    )


FAMILIES: Mapping[str, Callable[[int], PreTrainedConfig]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "gptj": _gptj,
    "mamba": _mamba,
    "rwkv": _rwkv,
    "trocr": _trocr,
    "t5": _t5,
    "bart": _bart,
}
DECODER_ONLY = ("llama", "qwen3", "gpt2", "gptj", "mamba", "rwkv", "trocr")
ENCODER_DECODER = ("t5", "bart")


def byte_level_tokenizer(*, adds_bos: bool = False) -> Tokenizer:
    """Byte-level BPE: any text round-trips, and rare characters are spread over several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """As sentencepiece makes them: words begin with a visible space, unknown characters fall back to bytes."""
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["▁", *letters, "▁h", "▁hel", "lo", "▁w", "or", "ld", "he", "hel", "wor"]
    vocab = {piece: index for index, piece in enumerate([*pieces, *words])}
    merges = [("▁", "h"), ("h", "e"), ("he", "l"), ("▁", "w"), ("l", "o"), ("o", "r"), ("l", "d"), ("w", "or")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    return tokenizer


def wrapped(tokenizer: Tokenizer, *, pad: bool = True, eos: bool = True, template: str | None = TEMPLATE) -> Any:
    """The tokenizer as transformers loads it."""
    names = {"bos_token": "<s>"}
    if eos:
        names["eos_token"] = "</s>"
    if pad:
        names["pad_token"] = "<pad>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=10**6, **names)
    fast.chat_template = template
    return fast


def build(
    folder: Path,
    family: str = "llama",
    *,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    eos: int | list[int] | None = EOS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **sizes: int,
) -> Path:
    """Write a model to a folder and return it.

    Args:
        folder: created where missing.
        family: a key of `FAMILIES`.
        tokenizer: a transformers tokenizer; byte-level with a chat template where none is given.
        generation: entries of its generation config.
        eos: the EOS of its config; None for a model that knows none.
        seed: of its random weights.
        dtype: of its weights.
        sizes: entries of its config in place of the family's.
    """
    tokenizer = tokenizer or wrapped(byte_level_tokenizer())
    config = FAMILIES[family](len(tokenizer))
    config.update({"bos_token_id": BOS, "eos_token_id": eos, **sizes})
    config.pad_token_id = tokenizer.pad_token_id
    if family not in ("mamba", "t5"):
        config.initializer_range = 0.3
    if config.is_encoder_decoder:
        config.decoder_start_token_id = PAD if family == "t5" else EOS
    torch.manual_seed(seed)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        add_generation_config(folder, **generation)
    return folder


def add_generation_config(folder: Path, **entries: Any) -> None:
    """Set entries of a saved model's generation config, without transformers' opinion on them."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
