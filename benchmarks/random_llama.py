"""A Llama of 32 million parameters with random weights in a folder: big enough that its matrices take the time.

Nothing is downloaded. Its texts mean nothing; its costs are those of a model of that size.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmkit_transformers import TransformersLLM

N_VOCABULARY = 8192


@contextmanager
def random_llama() -> Generator[TransformersLLM]:
    """The model, loaded on the processor."""
    with tempfile.TemporaryDirectory() as folder, TransformersLLM(save_random_llama(Path(folder)), device="cpu") as llm:
        yield llm


def save_random_llama(folder: Path) -> Path:
    """Hidden 512, 8 layers, 8 heads, 4 key-value heads, vocabulary 8,192, float32; it never ends a text by itself."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), bos_token="<s>")
    config = LlamaConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges are pairs of bytes, as many as fill the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = itertools.product(alphabet, repeat=2)
    merges = list(itertools.islice(pairs, N_VOCABULARY - len(alphabet) - 1))
    tokens = ["<s>", *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
