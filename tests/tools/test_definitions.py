"""Functions, pydantic models and schemas as tools."""

import asyncio
import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from llmkit.errors import InvalidRequest, ToolError
from llmkit.tools import Tool, as_tools


class Place(BaseModel):
    """A place on a map."""

    city: str
    zip_code: str = ""


def weather(place: Place, day: datetime.date, unit: Literal["C", "F"] = "C", *, schema: int = 3) -> dict[str, Any]:
    """Tell the weather.

    It is a forecast.

    Args:
        place: where it is,
            city and code
        day (date): which day

    Returns:
        the forecast
    """
    return {"city": place.city, "year": day.year, "unit": unit, "schema": schema}


def shaped(tool: Any) -> dict[str, Any]:
    return dict(Tool.of(tool).schema["function"])


def test_a_function_is_described_by_its_hints_and_its_docstring() -> None:
    schema = shaped(weather)
    parameters = schema["parameters"]
    assert (schema["name"], schema["description"]) == ("weather", "Tell the weather.\n\nIt is a forecast.")
    assert (parameters["required"], parameters["additionalProperties"]) == (["place", "day"], False)
    assert parameters["properties"]["day"] == {"type": "string", "format": "date", "description": "which day"}
    assert parameters["properties"]["unit"] == {"type": "string", "enum": ["C", "F"], "default": "C"}
    assert parameters["properties"]["place"]["description"] == "where it is, city and code"


def test_a_description_in_the_hint_stands_before_the_docstring() -> None:
    def add(a: Annotated[int, Field(description="the first")], b: int) -> int:
        """Add.

        Args:
            a: ignored
            b: the second
        """
        return a + b

    described = {name: field["description"] for name, field in shaped(add)["parameters"]["properties"].items()}
    assert described == {"a": "the first", "b": "the second"}


def test_a_pydantic_model_is_a_schema_without_a_function() -> None:
    tool = Tool.of(Place)
    assert (tool.name, tool.function, shaped(Place)["description"]) == ("Place", None, "A place on a map.")
    with pytest.raises(InvalidRequest, match="schema without a function"):
        tool.run({"city": "Rome"})


@pytest.mark.parametrize(
    "schema",
    [{"name": "f"}, {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
)
def test_a_schema_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert (Tool.of(schema).schema, Tool.of(schema).name) == (schema, "f")


def test_a_call_gets_arguments_of_the_hinted_types_and_gives_text() -> None:
    told = Tool.of(weather).run({"place": {"city": "Rome"}, "day": "2024-02-29"})
    assert told == '{"city":"Rome","year":2024,"unit":"C","schema":3}'


def test_a_string_is_told_as_it_is() -> None:
    def greet() -> str:
        return "hello"

    assert (Tool.of(greet).run({}), shaped(greet)["parameters"]["properties"]) == ("hello", {})


def test_a_method_can_be_a_tool() -> None:
    class Counter:
        def add(self, n: int) -> int:
            return n + 1

    assert Tool.of(Counter().add).run({"n": 1}) == "2"


def test_a_tool_error_is_told_and_any_other_comes_through() -> None:
    def fails(kind: str) -> str:
        raise ToolError("no such city") if kind == "told" else KeyError("bug")

    assert Tool.of(fails).run({"kind": "told"}) == "error: no such city"
    with pytest.raises(KeyError, match="bug"):
        Tool.of(fails).run({"kind": "other"})


def test_a_rule_that_no_schema_expresses_is_told_to_the_model() -> None:
    assert Tool.of(weather).run({"place": {"city": "Rome"}, "day": "2023-02-30"}).startswith("error: day: Input")


def test_async_functions_are_awaited_and_others_have_a_thread() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    def triple(n: int) -> int:
        return 3 * n

    async def both() -> list[str]:
        return [await Tool.of(double).arun({"n": 2}), await Tool.of(triple).arun({"n": 2})]

    assert asyncio.run(both()) == ["4", "6"]
    assert (Tool.of(double).is_async, Tool.of(triple).is_async) == (True, False)


def no_hint(a) -> None:  # pyright: ignore
    """A parameter without a type."""


def many(*numbers: int) -> None:
    """Parameters without names."""


def unknown(a: "Nowhere") -> None:  # noqa: F821  # pyright: ignore
    """A hint that names nothing."""


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        (3, "must be a function"),
        (int, "got the class int"),
        (no_hint, "must have type hints, got a in no_hint"),
        (many, r"must have names, got \*numbers"),
        (unknown, "no schema can be made of the tool unknown"),
        (lambda: 1, "letters, digits"),
        ({"description": "x"}, "must have a name"),
        ({"name": "f", "parameters": {"type": "objct"}}, "objct"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(tool: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Tool.of(tool)


@pytest.mark.parametrize(("tools", "problem"), [({"name": "f"}, "a list"), ([weather, {"name": "weather"}], "twice")])
def test_tools_are_a_list_of_different_names(tools: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        as_tools(tools)
