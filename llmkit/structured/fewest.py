"""How many tokens even the shortest text of a constraint needs: a bound from below, so that a refusal is never wrong.

Counted are the strings that every such text holds (the required keys of a schema, a choice, a fixed beginning), each
by the fewest tokens of the vocabulary that can spell it.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from llmkit.structured.constraint import Constraint

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_BREAK = b"\xff"
"""Stands between tokens; no text in UTF-8 has this byte."""


class Vocabulary:
    """The tokens of a tokenizer as bytes. Safe to share between threads once used.

    Args:
        tokenizer: llguidance's view of it.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _tokens(self) -> frozenset[bytes]:
        decode, is_special = self.tokenizer.decode_bytes, self.tokenizer.is_special_token
        return frozenset(decode([n]) for n in range(self.tokenizer.vocab_size) if not is_special(n))

    @cached_property
    def _forwards(self) -> list[bytes]:
        return sorted(self._tokens)

    @cached_property
    def _backwards(self) -> list[bytes]:
        return sorted(token[::-1] for token in self._tokens)

    @cached_property
    def _joined(self) -> bytes:
        return _BREAK.join(self._forwards)

    def n_starting_in(self, text: bytes, *, first: bool = False) -> int:
        """The fewest tokens that start within a stretch of a longer text.

        A token may reach in from before, and the last one beyond the end, so the counts of several stretches that do
        not overlap may be added up.

        Args:
            text: the stretch.
            first: nothing stands before it.
        """
        fewest = [0] * (len(text) + 1)
        for start in reversed(range(len(text))):
            fewest[start] = self._fewest_from(text, start, fewest)
        if first:
            return fewest[0]
        if text in self._joined and re.search(b"[^\xff]" + re.escape(text), self._joined):
            return 0
        reached = [end for end in range(1, len(text)) if _has_longer(self._backwards, text[:end][::-1])]
        return min(fewest[start] for start in (0, *reached))

    def n_spelling(self, text: bytes) -> int:
        """The fewest tokens that are exactly this text."""
        fewest = [0] * (len(text) + 1)
        for start in reversed(range(len(text))):
            ends = [end for end in range(start + 1, len(text) + 1) if text[start:end] in self._tokens]
            fewest[start] = 1 + min((fewest[end] for end in ends), default=len(text))
        return fewest[0]

    def _fewest_from(self, text: bytes, start: int, fewest: Sequence[int]) -> int:
        if text[start:] in self._tokens or _has_longer(self._forwards, text[start:]):
            return 1
        ends = [end for end in range(start + 1, len(text)) if text[start:end] in self._tokens]
        return 1 + min((fewest[end] for end in ends), default=0)


def _has_longer(tokens: Sequence[bytes], beginning: bytes) -> bool:
    """Whether one of the sorted tokens begins so and goes on."""
    at = bisect_right(tokens, beginning)
    return at < len(tokens) and tokens[at].startswith(beginning)


def fewest_tokens(constraint: Constraint, vocabulary: Vocabulary, beginning: bytes) -> int:
    """A number of tokens that no text of the constraint can do with less than.

    Args:
        constraint: what the text must be.
        vocabulary: what it is spelt with.
        beginning: bytes that every such text begins with.
    """
    at_least = vocabulary.n_starting_in(beginning, first=True)
    if constraint.kind == "choice":
        return min(vocabulary.n_spelling(choice.encode()) for choice in constraint.choices)
    if constraint.kind == "schema":
        at_least = max(at_least, _Schema(constraint.schema, vocabulary).needs())
    return at_least


class _Schema:
    """Counts the tokens of what a schema requires, its references followed."""

    def __init__(self, root: Any, vocabulary: Vocabulary) -> None:
        self._root, self._vocabulary = root, vocabulary
        self._counts: dict[str, int] = {}

    def needs(self) -> int:
        return self._of(self._root)

    def _of(self, schema: Any) -> int:
        """Tokens of a value; 0 for whatever this does not understand."""
        if not isinstance(schema, Mapping):
            return 0
        rules = cast("Mapping[str, Any]", schema)
        needs = [self._of_object(rules), self._of_array(rules), self._of_constant(rules)]
        needs += [self._of(part) for part in rules.get("allOf", ())]
        for name in ("anyOf", "oneOf"):
            needs.append(min((self._of(part) for part in rules.get(name, ())), default=0))
        if "$ref" in rules:
            needs.append(self._of_reference(rules["$ref"]))
        return max(needs)

    def _of_object(self, rules: Mapping[str, Any]) -> int:
        if rules.get("type") != "object":
            return 0
        values = rules.get("properties", {})
        keys = rules.get("required", ())
        return sum(self._of_text(key) + self._of(values.get(key)) for key in keys)

    def _of_array(self, rules: Mapping[str, Any]) -> int:
        if rules.get("type") != "array":
            return 0
        first = rules.get("prefixItems", ())
        n_items = rules.get("minItems", 0)
        rest = max(0, n_items - len(first)) * self._of(rules.get("items"))
        return sum(self._of(item) for item in first[:n_items]) + rest

    def _of_constant(self, rules: Mapping[str, Any]) -> int:
        return self._of_text(rules["const"]) if isinstance(rules.get("const"), str) else 0

    def _of_text(self, text: str) -> int:
        return self._vocabulary.n_starting_in(json.dumps(text, ensure_ascii=False).encode())

    def _of_reference(self, pointer: str) -> int:
        if pointer not in self._counts:
            self._counts[pointer] = 0  # what it needs of itself, if it refers to itself
            self._counts[pointer] = self._of(self._at(pointer))
        return self._counts[pointer]

    def _at(self, pointer: str) -> Any:
        at: Any = self._root
        for key in pointer.removeprefix("#").split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            at = cast("Mapping[str, Any]", at).get(key) if isinstance(at, Mapping) else None
        return at
