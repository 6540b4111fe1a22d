from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import InvalidRequest
from llmkit.history import parse_history, seen_from, with_system, with_turn
from llmkit.types import Message

MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=9)))


def test_a_transcript_becomes_messages() -> None:
    transcript = "System: be brief\nUser: hi\nAssistant: hello\nthere\nUser: bye"
    assert parse_history(transcript) == [
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "hello\nthere"),
        Message("user", "bye"),
    ]


def test_the_marks_of_the_human_bot_style_are_known() -> None:
    assert parse_history("<human>: hi\n<bot>: hello") == [Message("user", "hi"), Message("assistant", "hello")]


def test_a_string_without_marks_is_one_user_message() -> None:
    assert parse_history("just text: with a colon") == [Message("user", "just text: with a colon")]
    assert parse_history(" \n") == []


def test_messages_and_dictionaries_are_taken_alike() -> None:
    expected = [Message("user", "hi"), Message("assistant", "ho")]
    assert parse_history([{"role": "user", "content": "hi"}, Message("assistant", "ho")]) == expected


@pytest.mark.parametrize("history", [[{"role": "usr", "content": "x"}], [{"content": "x"}], ["text"], [5]])
def test_what_is_no_message_is_refused(history: list[object]) -> None:
    with pytest.raises(InvalidRequest):
        parse_history(history)  # type: ignore[arg-type]


@given(MESSAGES)
def test_the_user_sees_the_sides_swapped_and_the_assistant_sees_them_as_they_are(messages: list[Message]) -> None:
    assert seen_from(None, messages) == seen_from("assistant", messages) == tuple(messages)
    swapped = seen_from("user", messages)
    sides = {"user": "assistant", "assistant": "user", "system": "system"}
    assert [m.role for m in swapped] == [sides[m.role] for m in messages]
    assert [m.content for m in swapped] == [m.content for m in messages]
    assert seen_from("user", swapped) == tuple(messages)


@given(MESSAGES)
def test_a_system_prompt_opens_a_conversation_that_has_none(messages: list[Message]) -> None:
    opened = with_system("be brief", messages)
    if any(m.role == "system" for m in messages):
        assert opened == tuple(messages)
    else:
        assert opened == (Message("system", "be brief"), *messages)
    assert with_system(None, messages) == with_system("", messages) == tuple(messages)


def test_two_turns_of_one_side_become_one() -> None:
    past = [Message("assistant", "hi"), Message("user", "a")]
    assert with_turn(past, Message("user", "b")) == (past[0], Message("user", "a\nb"))
    assert with_turn(past, Message("assistant", "b")) == (*past, Message("assistant", "b"))
    assert with_turn([], Message("user", "b")) == (Message("user", "b"),)
