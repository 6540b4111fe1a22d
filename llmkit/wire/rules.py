"""How single values are checked: by the parameters' own rules, and as plain text.

A rule is written once, in `specs.SPECS`; from there it comes into pydantic and into the JSON schema. This module knows
no shapes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmkit.characters import characters_problem
from llmkit.errors import ParameterError
from llmkit.specs import SPECS, canonical_name

_INTERVAL = re.compile(r"(?P<left>[(\[])(?P<low>-?\d+), (?P<high>-?\d+)(?:\*\*(?P<power>\d+))?(?P<right>[)\]])")
_ONE_SIDED = re.compile(r"(?P<sign>>=?) ")


class Shape(BaseModel):
    """A frozen record that refuses unknown keys; its fields' docstrings are the schema's descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def problem(text: str) -> PydanticCustomError:
    """An error of ours that keeps its words through pydantic."""
    return PydanticCustomError("llmkit", "{text}", {"text": text})


def _encodable(text: str) -> str:
    if (wrong := characters_problem(text)) is not None:
        raise problem(wrong)
    return text


Text: TypeAlias = Annotated[str, AfterValidator(_encodable)]
"""A string that UTF-8 can hold; JSON can spell others."""


class Param:
    """Marks a field that one parameter's rule checks; the rule's bounds go into the JSON schema.

    Args:
        name: the parameter, or an alias of it.
    """

    def __init__(self, name: str) -> None:
        self._name, self._spec = name, SPECS[canonical_name(name)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": f"{self._spec.doc}; {self._spec.rule}", **_bounds(self._spec.rule)}

    def _checked(self, value: object) -> Any:
        if value is None:
            return None
        try:
            return self._spec.validated(self._name, value)
        except ParameterError as error:
            raise problem(str(error).removeprefix(f"{self._name} ")) from None


def _bounds(rule: str) -> dict[str, int]:
    """A rule's bounds in the words of JSON schema: `in (0, 1]` is above 0 and at most 1."""
    if interval := _INTERVAL.search(rule):
        low = "exclusiveMinimum" if interval["left"] == "(" else "minimum"
        high = "exclusiveMaximum" if interval["right"] == ")" else "maximum"
        return {low: int(interval["low"]), high: int(interval["high"]) ** int(interval["power"] or 1)}
    if sign := _ONE_SIDED.search(rule):
        # `>= 1, or 0 or -1 for no limit`: the lowest number that is named is still allowed.
        lowest = min(int(number) for number in re.findall(r"-?\d+", rule))
        return {"minimum" if sign["sign"] == ">=" else "exclusiveMinimum": lowest}
    return {}
