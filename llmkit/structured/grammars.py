"""Constraints in llguidance's own grammar format, and whether a text fits one. The only module that imports llguidance.

It knows no model's tokenizer: texts are checked byte by byte.
"""

from __future__ import annotations

import importlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmkit.errors import ExtraUnavailable, InvalidConstraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_SILENT = 0
_LARGEST_EXACT = 2**53
_WHITESPACE = " ?"
"""Between the parts of JSON: a space or none. Where more may come, small models spend their tokens on it."""


def llguidance() -> Any:
    """The module.

    Raises:
        ExtraUnavailable: it is not installed.
    """
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError as error:
        raise ExtraUnavailable("structured output", "llguidance", "structured") from error


@lru_cache(maxsize=64)
def grammar(kind: str, source: str) -> str:
    """A constraint as llguidance reads it; whether it can be compiled shows only then.

    Raises:
        InvalidConstraint: a GBNF grammar cannot be read, or a schema has a number that would be rounded.
    """
    module = llguidance()
    if kind == "schema":
        json.loads(source, parse_int=_exact)
        return module.LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_pattern": _WHITESPACE})
    try:
        return module.grammar_from(kind, source)
    except ValueError as error:
        raise InvalidConstraint(kind, str(error)) from error


def _exact(digits: str) -> int:
    """An integer that survives llguidance, which reads numbers as float64.

    Raises:
        InvalidConstraint: it does not.
    """
    if abs(int(digits)) > _LARGEST_EXACT:
        raise InvalidConstraint("schema", f"its integers must be within 2**53, got {digits}")
    return int(digits)


def matcher(tokenizer: LLTokenizer, kind: str, source: str) -> LLMatcher:
    """A matcher at the beginning of a text.

    Raises:
        InvalidConstraint: with llguidance's reason.
    """
    compiled = llguidance().LLMatcher(tokenizer, grammar(kind, source), log_level=_SILENT)
    if compiled.is_error():
        raise InvalidConstraint(kind, compiled.get_error().strip())
    return compiled


def accepts(kind: str, source: str, text: str) -> bool:
    """Whether the whole text fits.

    Raises:
        InvalidConstraint: it cannot be compiled.
    """
    fitting = matcher(_bytes_tokenizer(), kind, source)
    tokens = list(text.encode())
    return fitting.try_consume_tokens(tokens) == len(tokens) and fitting.is_accepting()


@lru_cache(maxsize=1)
def _bytes_tokenizer() -> LLTokenizer:
    return llguidance().LLTokenizer("byte")
