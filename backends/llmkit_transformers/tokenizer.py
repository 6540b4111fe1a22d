"""A model's tokenizer alone, for work that needs no weights."""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmkit.errors import ModelInvalid
from llmkit_transformers.hub import find_model


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the embedded model (no name), of a folder or of a hub repository.

    Raises:
        ModelError: its files cannot be had, or have no tokenizer.
    """
    found = find_model(name)
    try:
        return cast("Any", AutoTokenizer).from_pretrained(found.folder)
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{found.name!r} has no tokenizer: {error}") from error
