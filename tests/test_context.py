from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.context import fit_conversation, room_for_new_tokens
from llmkit.errors import ContextLengthExceeded
from llmkit.types import Message

SYSTEM = Message("system", "be brief")
OVERHEAD = 3


def count(messages: tuple[Message, ...]) -> int:
    return sum(len(message.content) + OVERHEAD for message in messages)


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


CONVERSATIONS = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), st.text("x", min_size=1, max_size=9)),
    min_size=1,
    max_size=8,
)


def test_a_conversation_that_fits_is_left_alone() -> None:
    messages = (SYSTEM, user("a"), bot("b"), user("c"))
    assert fit_conversation(messages, count, count(messages)).messages == messages
    assert fit_conversation(messages, count, count(messages)).dropped == ()


def test_the_oldest_pair_goes_and_the_system_message_stays() -> None:
    messages = (SYSTEM, user("first"), bot("1"), user("second"), bot("2"), user("third"))
    fitted = fit_conversation(messages, count, count(messages) - 1)
    assert fitted.messages == (SYSTEM, user("second"), bot("2"), user("third"))
    assert fitted.dropped == (user("first"), bot("1"))


def test_a_tools_result_goes_with_its_call() -> None:
    call = Message("assistant", "", ({"id": "1"},))
    messages = (user("weather?"), call, Message("tool", "sunny", (), "1"), bot("sunny"), user("thanks"))
    fitted = fit_conversation(messages, count, count(messages) - 1)
    assert fitted.messages == (user("thanks"),)


def test_the_last_turn_stays_also_where_it_does_not_fit() -> None:
    messages = (SYSTEM, user("a"), bot("b"), user("much too long"))
    assert fit_conversation(messages, count, 1).messages == (SYSTEM, user("much too long"))


@given(CONVERSATIONS, st.booleans(), st.integers(0, 60))
def test_as_few_turns_go_as_must(messages: list[Message], has_system: bool, limit: int) -> None:
    conversation = tuple([SYSTEM] * has_system + messages)
    fitted = fit_conversation(conversation, count, limit)
    system = tuple(m for m in fitted.messages if m.role == "system")
    rest = tuple(m for m in fitted.messages if m.role != "system")
    assert system == tuple([SYSTEM] * has_system)
    assert fitted.dropped + rest == tuple(messages)
    assert rest
    if fitted.dropped:
        starts = [at for at, m in enumerate(messages) if m.role == "user" and at < len(fitted.dropped)]
        last_dropped_turn = tuple(messages[max(starts, default=0) :])
        assert count((*system, *last_dropped_turn)) > limit
    only_last_turn_left = not any(m.role == "user" for m in rest[1:])
    assert count(fitted.messages) <= limit or only_last_turn_left


@pytest.mark.parametrize(
    ("max_tokens", "max_length", "context_length", "room"),
    [
        (50, None, None, 50),
        (None, None, None, None),
        (50, 30, None, 20),
        (5, 30, None, 5),
        (None, 30, None, 20),
        (50, 100, 40, 30),
        (256, None, 2048, 256),
    ],
)
def test_the_tightest_limit_wins(
    max_tokens: int | None, max_length: int | None, context_length: int | None, room: int | None
) -> None:
    limits = {"max_tokens": max_tokens, "max_length": max_length, "context_length": context_length}
    assert room_for_new_tokens(10, **limits) == room


def test_a_prompt_of_1900_in_a_window_of_2048_leaves_148() -> None:
    assert room_for_new_tokens(1900, max_tokens=256, max_length=None, context_length=2048) == 148


@pytest.mark.parametrize("n_prompt", [10, 11])
def test_a_prompt_without_room_is_refused_with_the_figures(n_prompt: int) -> None:
    with pytest.raises(ContextLengthExceeded, match="shorten the prompt") as caught:
        room_for_new_tokens(n_prompt, max_tokens=5, max_length=None, context_length=10)
    error = caught.value
    assert (error.prompt_tokens, error.max_tokens, error.limit) == (n_prompt, 5, 10)
    assert isinstance(error, ValueError)
