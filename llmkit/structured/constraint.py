"""What a text must be: a JSON schema, a regular expression, one of several strings, or a grammar.

It checks what was asked and reads the text that came; it knows no tokenizer and no masks.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from llmkit.errors import InvalidConstraint, ParameterError, StructuredOutputInvalid
from llmkit.structured import grammars
from llmkit.structured.json_schema import checked_schema, json_problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind: TypeAlias = Literal["schema", "regex", "choice", "grammar"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a text must be. Hashable; equal constraints admit the same texts. Make one with `of`.

    Attributes:
        kind: `schema`, `regex`, `choice` or `grammar`.
        source: the schema as JSON, the regular expression, the choices as a JSON list, or the grammar in Lark form.
        name: the schema's title or the type's name; empty where there is none.
        type_adapter: reads a schema's text into the type that it was made from; None for a bare schema.
    """

    kind: Kind
    source: str
    name: str = ""
    type_adapter: TypeAdapter[Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        *,
        schema: Any = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | None = None,
    ) -> Constraint | None:
        """The constraint that a caller asks for; None where nothing is asked.

        Args:
            schema: a pydantic model or any type that pydantic can read, a JSON schema, or one as a JSON string.
            regex: the whole text must match it; the syntax of Rust's `regex`, which has no look-around.
            choice: the texts that are allowed.
            grammar: in llguidance's Lark dialect, or GBNF.

        Raises:
            ParameterError: more than one is given.
            InvalidConstraint: the one that is given is malformed.
        """
        asked = {
            kind: value
            for kind, value in (("schema", schema), ("regex", regex), ("choice", choice), ("grammar", grammar))
            if value is not None
        }
        if len(asked) > 1:
            raise ParameterError(f"only one of {', '.join(KINDS)} may be given, got {' and '.join(asked)}")
        for kind, value in asked.items():
            return _READERS[kind](value)
        return None

    @property
    def schema(self) -> Any:
        """The JSON schema: a dictionary, or `true` for any JSON. Only where `kind` is `schema`."""
        return json.loads(self.source)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed. Only where `kind` is `choice`."""
        return tuple(json.loads(self.source))

    def parse(self, text: str) -> Any:
        """A text as what it stands for: an object of the schema's type, parsed JSON, or the text itself.

        Raises:
            StructuredOutputInvalid: it does not satisfy the constraint.
        """
        if self.kind == "schema":
            return self._parsed_json(text)
        accepted = text in self.choices if self.kind == "choice" else grammars.accepts(self.kind, self.source, text)
        if not accepted:
            raise StructuredOutputInvalid(self.kind, "the text does not match", text)
        return text

    def _parsed_json(self, text: str) -> Any:
        if self.type_adapter is not None:
            from llmkit.structured import python_types

            return python_types.read(self.type_adapter, text)
        try:
            value = json.loads(text)
        except ValueError as error:
            raise StructuredOutputInvalid(self.kind, str(error), text) from error
        if (problem := json_problem(self.source, value)) is not None:
            raise StructuredOutputInvalid(self.kind, problem, text)
        return value


def _from_schema(schema: object) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidConstraint("schema", f"it is not JSON: {error}") from error
    if isinstance(schema, Mapping):
        source = checked_schema(cast("object", schema))
        title = json.loads(source).get("title")
        return Constraint("schema", source, title if isinstance(title, str) else "")
    if isinstance(schema, (bool, int, float, list, tuple)) or inspect.isroutine(schema):
        raise InvalidConstraint("schema", f"it must be a type, a dictionary or a JSON string, got {schema!r}")
    return _from_type(schema)


def _from_type(kind: Any) -> Constraint:
    from llmkit.structured import python_types

    adapter, source = python_types.adapter_and_schema(kind)
    return Constraint("schema", source, getattr(kind, "__name__", ""), adapter)


def _from_choice(choice: object) -> Constraint:
    if isinstance(choice, (str, bytes, Mapping)) or not isinstance(choice, Sequence):
        raise InvalidConstraint("choice", f"it must be a list of strings, got {choice!r}")
    texts = cast("Sequence[object]", choice)
    wrong = [text for text in texts if not isinstance(text, str) or not text]
    if wrong or not texts:
        got = repr(wrong[0]) if wrong else "an empty list"
        raise InvalidConstraint("choice", f"it must be a list of non-empty strings, got {got}")
    return Constraint("choice", json.dumps(list(dict.fromkeys(texts)), ensure_ascii=False))


def _from_text(kind: Kind, text: object) -> Constraint:
    if not isinstance(text, str) or not text:
        raise InvalidConstraint(kind, f"it must be a non-empty string, got {text!r}")
    return Constraint(kind, text)


_READERS: Mapping[str, Callable[[object], Constraint]] = {
    "schema": _from_schema,
    "regex": partial(_from_text, "regex"),
    "choice": _from_choice,
    "grammar": partial(_from_text, "grammar"),
}
