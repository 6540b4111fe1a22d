"""JSON schemas of Python types, and texts read into those types, by pydantic.

Imported only once a type comes: pydantic takes as long to import as all of llmkit.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from llmkit.errors import InvalidConstraint, StructuredOutputInvalid

if TYPE_CHECKING:
    from pydantic_core import core_schema


def adapter_and_schema(kind: Any) -> tuple[TypeAdapter[Any], str]:
    """What reads JSON into a type, and the type's schema as JSON.

    Raises:
        InvalidConstraint: no schema can be made of it.
    """
    try:
        adapter = TypeAdapter[Any](kind)
        return adapter, json.dumps(adapter.json_schema(schema_generator=_ClosedObjects), ensure_ascii=False)
    except (PydanticUserError, PydanticInvalidForJsonSchema, NameError, ValueError, TypeError) as error:
        raise InvalidConstraint("schema", f"no JSON schema can be made of {kind!r}: {_first_line(error)}") from error


def read(adapter: TypeAdapter[Any], text: str) -> Any:
    """The object that a JSON text stands for.

    Raises:
        StructuredOutputInvalid: it stands for none.
    """
    try:
        return adapter.validate_json(text)
    except ValueError as error:
        raise StructuredOutputInvalid("schema", _first_line(error), text) from error


class _ClosedObjects(GenerateJsonSchema):
    """Schemas of types whose objects have no other keys than their fields.

    A type has no place for others, and a model left free to invent keys may do so until its tokens run out.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> dict[str, Any]:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> dict[str, Any]:
        return _closed(super().typed_dict_schema(schema))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error).splitlines()[0] if str(error) else type(error).__name__
