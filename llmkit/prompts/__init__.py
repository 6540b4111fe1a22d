"""Prompt styles: how an instruction, an input and a response, or a conversation, become one text."""

from llmkit.prompts.named import (
    AUTO,
    as_style,
    available_styles,
    get_style,
    guess_style,
    register_model,
    register_style,
)
from llmkit.prompts.style import Piece, PromptStyle

__all__ = [
    "AUTO",
    "Piece",
    "PromptStyle",
    "as_style",
    "available_styles",
    "get_style",
    "guess_style",
    "register_model",
    "register_style",
]
