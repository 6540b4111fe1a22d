"""What a caller may ask of a text, and reading the text that came."""

import dataclasses
import datetime
import enum
import json
import threading
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from llmkit.errors import InvalidConstraint, ParameterError, StructuredOutputInvalid
from llmkit.structured import Constraint


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0)]


class Node(BaseModel):
    value: int
    next: "Node | None" = None


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Options(TypedDict):
    verbose: bool


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def constraint(**asked: Any) -> Constraint:
    made = Constraint.of(**asked)
    assert made is not None
    return made


def test_nothing_asked_is_no_constraint() -> None:
    assert Constraint.of() is None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Person, '{"name": "Ann", "age": 3}', Person(name="Ann", age=3)),
        (Node, '{"value": 1, "next": {"value": 2}}', Node(value=1, next=Node(value=2))),
        (Point, '{"x": 1, "y": 2.5}', Point(1.0, 2.5)),
        (Options, '{"verbose": true}', {"verbose": True}),
        (list[Person], '[{"name": "Ann", "age": 3}]', [Person(name="Ann", age=3)]),
        (Color, '"red"', Color.RED),
        (Literal["a", 1], "1", 1),
        (datetime.date, '"2024-02-29"', datetime.date(2024, 2, 29)),
        (dict[str, int], '{"a": 1}', {"a": 1}),
    ],
)
def test_a_type_gives_objects_of_that_type(kind: Any, text: str, value: Any) -> None:
    parsed = constraint(schema=kind).parse(text)
    assert (parsed, type(parsed)) == (value, type(value))


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 10}}, "required": ["n"], "title": "Ten"}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_a_json_schema_gives_parsed_json(schema: Any) -> None:
    made = constraint(schema=schema)
    assert (made.parse('{"n": 12}'), made.schema, made.name) == ({"n": 12}, SCHEMA, "Ten")


@pytest.mark.parametrize("text", ['{"n": 1', '{"n": 1}', '{"m": 12}', "12", ""])
def test_a_text_that_does_not_fit_a_json_schema_says_where(text: str) -> None:
    with pytest.raises(StructuredOutputInvalid, match="does not fit the schema"):
        constraint(schema=SCHEMA).parse(text)
    with pytest.raises(StructuredOutputInvalid, match=r"\$\.n: 1 is less than the minimum of 10"):
        constraint(schema=SCHEMA).parse('{"n": 1}')


def test_a_text_that_does_not_fit_a_type_says_where() -> None:
    with pytest.raises(StructuredOutputInvalid, match=r"age: Input should be greater than or equal to 0") as caught:
        constraint(schema=Person).parse('{"name": "Ann", "age": -1}')
    assert (caught.value.kind, caught.value.text) == ("schema", '{"name": "Ann", "age": -1}')


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"regex": r"a+\d"}, "aa7", "aa"),
        ({"regex": r"a+\d"}, "aa7", "xaa7"),
        ({"choice": ["yes", "no", "ja 😀"]}, "ja 😀", "y"),
        ({"grammar": 'start: "a" NUM\nNUM: /[0-9]+/'}, "a12", "a"),
        ({"grammar": 'root ::= "a" [0-9]+'}, "a12", "b12"),
    ],
)
def test_other_kinds_give_the_text_itself(asked: dict[str, Any], good: str, bad: str) -> None:
    assert constraint(**asked).parse(good) == good
    with pytest.raises(StructuredOutputInvalid, match="does not match"):
        constraint(**asked).parse(bad)


def test_types_leave_no_room_for_other_keys_unless_they_say_so() -> None:
    class Open(BaseModel, extra="allow"):
        person: Person

    schema = constraint(schema=Open).schema
    assert (schema["additionalProperties"], schema["$defs"]["Person"]["additionalProperties"]) == (True, False)
    assert constraint(schema=SCHEMA).schema == SCHEMA


def test_equal_constraints_are_one_key() -> None:
    assert constraint(schema=Person) == constraint(schema=Person)
    assert len({constraint(choice=["a", "b"]), constraint(choice=("a", "b")), constraint(choice=["b", "a"])}) == 2


def test_the_keys_of_a_schema_keep_their_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    assert list(constraint(schema=schema).schema["properties"]) == ["z", "a"]


def test_only_one_constraint_may_be_given() -> None:
    with pytest.raises(ParameterError, match="only one of schema, regex, choice, grammar may be given, got regex and"):
        Constraint.of(regex="a", grammar='start: "a"')


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"schema": {"type": "objct"}}, r"\$\.type: 'objct' is not valid"),
        ({"schema": "{"}, "not JSON"),
        ({"schema": {"const": float("nan")}}, "not JSON"),
        ({"schema": 3}, "must be a type, a dictionary or a JSON string, got 3"),
        ({"schema": print}, "must be a type"),
        ({"schema": object()}, "no JSON schema can be made"),
        ({"schema": threading.Lock}, "must be a type|no JSON schema can be made"),
        ({"schema": threading.Thread}, "no JSON schema can be made"),
        ({"schema": {"enum": ["half \ud800"]}}, "it is not JSON: .*surrogates not allowed"),
        ({"regex": ""}, "must be a non-empty string"),
        ({"regex": 1}, "must be a non-empty string"),
        ({"grammar": 5}, "must be a non-empty string"),
        ({"choice": "abc"}, "must be a list of strings"),
        ({"choice": []}, "got an empty list"),
        ({"choice": ["a", ""]}, "non-empty strings, got ''"),
        ({"choice": ["a", 1]}, "non-empty strings, got 1"),
    ],
)
def test_a_malformed_constraint_is_refused_with_the_reason(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConstraint, match=reason) as caught:
        Constraint.of(**asked)
    assert caught.value.kind == next(iter(asked))
