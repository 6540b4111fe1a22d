"""Owns the byte-level BPE tokenizer: its training on the generated texts, its special tokens and its saved files.

It does not know the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tools.tiny.chat import CHAT_TEMPLATE
from tools.tiny.data import BOS, EOS, PAD, SPECIAL_TOKENS, Example

VOCAB_SIZE = 1536
MAX_LENGTH = 1024


def train_tokenizer(examples: Iterable[Example]) -> Tokenizer:
    """Learns the merges; the result puts BOS before every text unless told to add no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_plain_text(example) for example in examples), trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return tokenizer


def _plain_text(example: Example) -> str:
    text = "".join(segment.text for segment in example.segments)
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\n\n")
    return text


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja as `AutoTokenizer` reads them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    _name_the_common_class(folder / "tokenizer_config.json")


def _name_the_common_class(path: Path) -> None:
    """Writes the class name that transformers 4 and 5 both know."""
    config = json.loads(path.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
