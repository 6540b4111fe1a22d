"""JSON schemas and values, checked against each other by jsonschema.

The only module that imports jsonschema, and only once a schema comes: it takes as long to import as all of llmkit.
"""

from __future__ import annotations

import importlib
import json
from functools import lru_cache
from typing import Any

from llmkit.errors import InvalidConstraint


def json_problem(schema: str, value: object) -> str | None:
    """How a value breaks a JSON schema (given as JSON), and where; None where it does not."""
    unresolvable = importlib.import_module("referencing.exceptions").Unresolvable
    try:
        error: Any = next(iter(_validator(schema).iter_errors(value)), None)
    except unresolvable as missing:
        return f"the schema refers to what it does not have: {missing}"
    return None if error is None else f"{error.json_path}: {error.message}"


def checked_schema(schema: object) -> str:
    """A JSON schema as JSON, its keys in their order, since the text's order follows from it.

    Raises:
        InvalidConstraint: it is no JSON schema.
    """
    schema_error = importlib.import_module("jsonschema").SchemaError
    try:
        source = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        source.encode()  # JSON can hold halves of surrogate pairs, grammars cannot
        _validator(source).check_schema(json.loads(source))
    except schema_error as error:
        raise InvalidConstraint("schema", f"{error.json_path}: {error.message}") from error
    except (TypeError, ValueError) as error:
        raise InvalidConstraint("schema", f"it is not JSON: {error}") from error
    return source


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    """A validator of the draft that the schema names, or else of 2020-12."""
    module, parsed = importlib.import_module("jsonschema"), json.loads(schema)
    return module.validators.validator_for(parsed, default=module.Draft202012Validator)(parsed)
