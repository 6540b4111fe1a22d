from __future__ import annotations

import json
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import InvalidRequest, PromptStyleError
from llmkit.prompts import (
    PromptStyle,
    as_style,
    available_styles,
    get_style,
    guess_style,
    register_model,
    register_style,
)
from llmkit.types import Message

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


@pytest.mark.parametrize("name", ["plain", "human_bot", "summarize", "instruct", "llama2"])
@given(instruction=st.text(), input_text=st.text(), output=st.text(min_size=1))
def test_inference_prompt_is_the_training_text_cut_before_the_output(
    name: str, instruction: str, input_text: str, output: str
) -> None:
    style = get_style(name)
    known = style.response_lead + output + style.response_suffix
    assert style.render(instruction, input_text, output) == style.render(instruction, input_text) + known


def test_suffixes_follow_their_parts_and_the_response_suffix_only_an_output() -> None:
    style = PromptStyle("s", "[I]", "[/I]", "[U]", "[/U]", "[R]", "[/R]")
    assert style.render("a", "b", "c") == "[I]a[/I][U]b[/U][R]c[/R]"
    assert style.render("a", "b") == "[I]a[/I][U]b[/U][R]"


def test_from_dict_reads_every_field_from_json() -> None:
    values: dict[str, Any] = {f.name: f"<{f.name}>" for f in fields(PromptStyle)}
    values |= {"stop": ["a", "b"], "omit_empty_input": True, "system_inside": False, "turn_part": "instruction"}
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


# What the models of each family were trained to read; {0} {1} {2} are what the user says.
FAMILIES = [
    (case["style"], case["system"], case["one_turn"], case["three_turns"])
    for case in json.loads(Path(__file__).with_name("prompt_families.json").read_text(encoding="utf-8"))
]
SAID = ("Hello!", "How are you?", "Go to the market?")


@pytest.mark.parametrize(("name", "system", "one_turn", "_"), FAMILIES)
def test_a_family_renders_one_turn_as_its_models_read_it(name: str, system: str, one_turn: str, _: str) -> None:
    style, expected = get_style(name), one_turn.format(*SAID)
    assert style.render(SAID[2], system=system) == expected
    assert style.render(input=SAID[2], system=system) == expected
    opening = [Message("system", system)] if system else []
    assert style.render_chat([*opening, Message("user", SAID[2])]) == expected


@pytest.mark.parametrize(("name", "system", "_", "three_turns"), FAMILIES)
def test_a_family_renders_three_turns_as_its_models_read_them(name: str, system: str, _: str, three_turns: str) -> None:
    turns = [("user", SAID[0]), ("assistant", "Hi!"), ("user", SAID[1]), ("assistant", "I'm good"), ("user", SAID[2])]
    opening = [Message("system", system)] if system else []
    messages = [*opening, *(Message(role, text) for role, text in turns)]  # type: ignore[arg-type]
    assert get_style(name).render_chat(messages) == three_turns.format(*SAID)


def test_a_known_response_is_written_as_in_a_past_turn() -> None:
    assert get_style("llama2").render("Hello!", output="Hi!") == "<s>[INST] Hello! [/INST] Hi! </s>"
    assert get_style("llama2").render("Hello!", output="Hi!", begin=False) == "[INST] Hello! [/INST] Hi! </s>"


def test_a_conversation_in_the_seeds_style_has_a_line_for_each_pair() -> None:
    messages = [Message("user", "Who are you?"), Message("assistant", "h2oGPT."), Message("user", "A poem?")]
    assert (
        get_style("human_bot").render_chat(messages) == "<human>: Who are you?<bot>: h2oGPT.\n<human>: A poem?<bot>: "
    )


def test_messages_of_one_side_become_one_turn_and_an_opening_answer_stays() -> None:
    messages = [Message("assistant", "Hi!"), Message("user", "a"), Message("user", "b")]
    assert get_style("falcon").render_chat(messages) == "Assistant: Hi!\n\nUser: a\nb\n\nAssistant:"


def test_a_style_without_a_place_for_a_system_prompt_puts_it_into_the_first_turn() -> None:
    messages = [Message("system", "Be brief."), Message("user", "hi")]
    assert get_style("human_bot").render_chat(messages) == "Be brief.\n\n<human>: hi<bot>: "
    assert get_style("mistral").render_chat(messages) == "<s>[INST] Be brief.\n\nhi [/INST]"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message("system", "s")],
        [Message("user", "a"), Message("assistant", "b")],
        [Message("user", "a"), Message("tool", "b", tool_call_id="1")],
    ],
)
def test_a_conversation_that_no_style_can_render_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InvalidRequest, match=r"last message|tools"):
        get_style("llama2").render_chat(messages)


@pytest.mark.parametrize(
    ("model", "style"),
    [
        ("h2oai/h2ogpt-oasst1-512-20b", "human_bot"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("lmsys/vicuna-7b-v1.5", "vicuna11"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistral"),
        ("tiiuae/falcon-7b-instruct", "falcon"),
        ("tiiuae/falcon-180B-chat", "falcon_chat"),
        ("mosaicml/mpt-7b-chat", "mptchat"),
        ("mosaicml/mpt-7b-instruct", "mptinstruct"),
        ("/models/Qwen2.5-0.5B-Instruct", "chatml"),
        ("google/gemma-2b-it", "gemma"),
    ],
)
def test_a_models_name_tells_its_style(model: str, style: str) -> None:
    guessed = guess_style(model)
    assert guessed is not None
    assert guessed.name == style
    assert as_style("auto", model) is guessed


def test_a_name_that_tells_nothing_gives_none_and_an_error_for_auto() -> None:
    assert guess_style("gpt2") is None
    with pytest.raises(PromptStyleError, match="'gpt2'"):
        as_style("auto", "gpt2")


def test_a_guess_can_be_overridden() -> None:
    register_model("my-vicuna-[0-9]+", "llama2")
    guessed = guess_style("someone/My-Vicuna-7")
    assert guessed is get_style("llama2")
    assert guess_style("someone/vicuna-7b") is get_style("vicuna11")
    with pytest.raises(PromptStyleError, match="regular expression"):
        register_model("(", "llama2")
    with pytest.raises(PromptStyleError, match="unknown prompt style"):
        register_model("x", "no-such-style")


def test_a_style_is_found_by_name_alias_dictionary_or_itself() -> None:
    style = PromptStyle("own", response_prefix="> ")
    assert get_style("vicuna") is get_style("vicuna11")
    assert as_style("llama2") is get_style("llama2")
    assert as_style({"name": "own", "response_prefix": "> "}) == style
    assert as_style(style) is style
    with pytest.raises(PromptStyleError, match="must have a name"):
        as_style({})


@pytest.mark.parametrize("name", ["auto", "vicuna"])
def test_a_name_with_a_meaning_cannot_be_registered(name: str) -> None:
    with pytest.raises(PromptStyleError, match=f"must not be named '{name}'"):
        register_style(PromptStyle(name))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("turn_part", "middle", "turn_part must be instruction or input, got 'middle'"),
        ("system_inside", "yes", "system_inside must be true or false, got 'yes'"),
        ("begin", None, "begin must be a string, got None"),
    ],
)
def test_the_fields_of_conversations_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(PromptStyleError, match=message):
        PromptStyle.from_dict({"name": "x", field: value})
