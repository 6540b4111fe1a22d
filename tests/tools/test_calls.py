"""The calls in a text: found, read and checked."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.tools import as_call, checked_call, read_answer
from llmkit.types import ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"name": "now"},
]


def spelt(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_calls_are_taken_out_of_the_text_around_them() -> None:
    answer = read_answer(f"Let me see. {spelt('weather', {'city': 'Rome'})}\n{spelt('now', {})} Done.")
    assert answer.calls == (ToolCall("weather", {"city": "Rome"}), ToolCall("now", {}))
    assert answer.content == "Let me see. \n Done."


def test_a_text_without_calls_is_left_as_it_is() -> None:
    assert read_answer(" plain { text }\n").content == " plain { text }\n"


def test_a_call_at_the_end_needs_no_closing_tag() -> None:
    assert read_answer('<tool_call>{"name": "now", "arguments": {}}').calls == (ToolCall("now", {}),)


def test_arguments_may_be_json_in_a_string_and_be_called_parameters() -> None:
    assert as_call({"name": "f", "arguments": '{"a": 1}'}) == ToolCall("f", {"a": 1})
    assert as_call({"name": "f", "parameters": {"a": 1}}) == ToolCall("f", {"a": 1})
    assert as_call({"id": "x", "function": {"name": "f", "arguments": {}}}) == ToolCall("f", {}, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values), st.text().filter(lambda text: "<" not in text))
def test_any_arguments_are_read_back_whatever_is_in_them(arguments: dict[str, Any], around: str) -> None:
    answer = read_answer(f"{around}{spelt('f', arguments)}{spelt('g', {'x': '</tool_call><tool_call>'})}")
    assert [call.arguments for call in answer.calls] == [arguments, {"x": "</tool_call><tool_call>"}]
    assert answer.content == around.strip()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<tool_call>{"name": "now"', "not JSON"),
        ("<tool_call>now()</tool_call> and more", "not JSON"),
        ("<tool_call>[1]</tool_call>", "an object with a name and arguments"),
        ('<tool_call>{"name": "now", "arguments": [1]}</tool_call>', "must be an object"),
        ('<tool_call>{"name": "now", "arguments": "{"}</tool_call>', "arguments are not JSON"),
        (spelt("nwo", {}), "no tool is named 'nwo'; did you mean 'now'"),
        (spelt("weather", {}), r"do not fit: \$: 'city' is a required property"),
        (spelt("weather", {"city": 3}), r"do not fit: \$\.city: 3 is not of type 'string'"),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_why(text: str, problem: str) -> None:
    (call,) = read_answer(text).calls
    assert re.search(problem, checked_call(call, TOOLS, "").error or "")


def test_a_call_that_fits_gets_an_id_from_where_it_stands() -> None:
    call = ToolCall("weather", {"city": "Rome"})
    one, same, other = (checked_call(call, TOOLS, source) for source in ("a", "a", "b"))
    assert one == same
    assert one.error is None
    assert one.id != other.id
    assert len(one.id) == 9
    assert checked_call(ToolCall("now", {}, "mine"), TOOLS, "a").id == "mine"
