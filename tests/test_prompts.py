from __future__ import annotations

import json
import uuid
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import PromptStyleError
from llmkit.prompts import PromptStyle, available_styles, get_style, register_style

RECORDS = [
    (
        '{"input": "Who are you?", "output": "My name is h2oGPT.", "prompt_type": "human_bot"}',
        "<human>: Who are you?<bot>: My name is h2oGPT.",
    ),
    (
        '{"input": "<human>: Who are you?\\n<bot>: My name is h2oGPT.\\n<human>: Can you write a poem about horses?'
        '\\n<bot>: Yes, of course. Here it goes...", "prompt_type": "plain"}',
        "<human>: Who are you?\n<bot>: My name is h2oGPT.\n<human>: Can you write a poem about horses?"
        "\n<bot>: Yes, of course. Here it goes...",
    ),
    (
        '{"instruction": "", "input": "Long long long text.", "output": "text.", "prompt_type": "summarize"}',
        "## Main Text\n\nLong long long text.\n\n## Summary\n\ntext.",
    ),
]


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_training_records_render_byte_for_byte(record: str, expected: str) -> None:
    parts = json.loads(record)
    assert get_style(parts.pop("prompt_type")).render(**parts) == expected


def test_summarize_training_text() -> None:
    rendered = get_style("summarize").render(input="Large Language Models are Useful.", output="LLMs rock.")
    assert rendered == "## Main Text\n\nLarge Language Models are Useful.\n\n## Summary\n\nLLMs rock."


def test_summarize_inference_stops_after_the_summary_title() -> None:
    assert get_style("summarize").render(input="x") == "## Main Text\n\nx\n\n## Summary\n\n"


def test_human_bot_training_text() -> None:
    rendered = get_style("human_bot").render(
        input="hi, how are you?", output="Hi, I am doing great. How can I help you?"
    )
    assert rendered == "<human>: hi, how are you?<bot>: Hi, I am doing great. How can I help you?"


def test_human_bot_inference_stops_after_the_bot_title_and_its_space() -> None:
    rendered = get_style("human_bot").render(input="Tell me a joke about snow flakes.")
    assert rendered == "<human>: Tell me a joke about snow flakes.<bot>: "


def test_summarize_and_human_bot_write_their_titles_around_an_empty_input() -> None:
    assert get_style("summarize").render() == "## Main Text\n\n\n\n## Summary\n\n"
    assert get_style("human_bot").render() == "<human>: <bot>: "


def test_an_instruction_comes_first_and_without_a_title_where_the_style_has_none() -> None:
    assert get_style("human_bot").render("Be brief.\n", "hi") == "Be brief.\n<human>: hi<bot>: "


def test_instruct_writes_only_the_sections_it_has_parts_for() -> None:
    style = get_style("instruct")
    assert style.render("Add.", "1 2", "3") == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"
    assert style.render("Say hi.") == "### Instruction:\nSay hi.\n\n### Response:\n"
    assert style.render(input="hi") == "### Input:\nhi\n\n### Response:\n"


@given(st.text(), st.text(), st.text())
def test_plain_adds_nothing(instruction: str, input_text: str, output: str) -> None:
    assert get_style("plain").render(instruction, input_text, output) == instruction + input_text + output


@pytest.mark.parametrize("name", ["plain", "human_bot", "summarize", "instruct"])
@given(instruction=st.text(), input_text=st.text(), output=st.text(min_size=1))
def test_inference_prompt_is_the_training_text_cut_before_the_output(
    name: str, instruction: str, input_text: str, output: str
) -> None:
    style = get_style(name)
    assert style.render(instruction, input_text, output) == style.render(instruction, input_text) + output


def test_suffixes_follow_their_parts_and_the_response_suffix_only_an_output() -> None:
    style = PromptStyle("s", "[I]", "[/I]", "[U]", "[/U]", "[R]", "[/R]")
    assert style.render("a", "b", "c") == "[I]a[/I][U]b[/U][R]c[/R]"
    assert style.render("a", "b") == "[I]a[/I][U]b[/U][R]"


def test_from_dict_reads_every_field_from_json() -> None:
    values = {f.name: f"<{f.name}>" for f in fields(PromptStyle)} | {"stop": ["a", "b"], "omit_empty_input": True}
    style = PromptStyle.from_dict(json.loads(json.dumps(values)))
    for name, value in values.items():
        assert getattr(style, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "input_prefx": "a"}, "'input_prefx'.*input_prefix"),
        ({"name": "x", 3: "a"}, "unknown prompt style key"),
        ({"input_prefix": "a"}, "must have a name"),
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"name": "x", "input_prefix": None}, "input_prefix must be a string, got None"),
        ({"name": "x", "stop": "END"}, "stop must be a list of non-empty strings, got 'END'"),
        ({"name": "x", "stop": [""]}, "stop must be a list of non-empty strings"),
        ({"name": "x", "stop": [1]}, "stop must be a list of non-empty strings"),
        ({"name": "x", "omit_empty_input": 1}, "omit_empty_input must be true or false, got 1"),
        (["name"], "must be an object"),
    ],
)
def test_a_malformed_style_is_refused_with_rule_and_value(values: Any, message: str) -> None:
    with pytest.raises(PromptStyleError, match=message):
        PromptStyle.from_dict(values)


def test_the_constructor_checks_as_from_dict_does() -> None:
    with pytest.raises(PromptStyleError, match="input_prefix must be a string, got 1"):
        PromptStyle("x", input_prefix=1)  # type: ignore[arg-type]


def test_an_unknown_style_error_names_the_nearest() -> None:
    with pytest.raises(PromptStyleError, match=r"'humanbot'.*human_bot"):
        get_style("humanbot")


def test_a_registered_style_is_found_and_listed() -> None:
    style = PromptStyle(f"test-{uuid.uuid4()}", response_prefix="> ")
    register_style(style)
    register_style(style)  # the same again is no conflict
    assert get_style(style.name) is style
    assert style.name in available_styles()
    assert list(available_styles()) == sorted(available_styles())


def test_a_taken_name_needs_replace() -> None:
    name = f"test-{uuid.uuid4()}"
    register_style(PromptStyle(name))
    with pytest.raises(PromptStyleError, match="exists already"):
        register_style(PromptStyle(name, response_prefix="> "))
    assert get_style(name).response_prefix == ""
    register_style(PromptStyle(name, response_prefix="> "), replace=True)
    assert get_style(name).response_prefix == "> "
