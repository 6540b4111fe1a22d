"""What the model reads: the window, the history, and the side that it speaks for."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import (
    ContextLengthExceeded,
    ContextWarning,
    InvalidRequest,
)
from llmkit.testing import ScriptedLLM, characters
from llmkit.types import Message, Request


def gpt_task(content: str = "x", **changes: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **changes}


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


# --- the window ------------------------------------------------------------------------------------------------------


def test_a_prompt_that_leaves_room_for_less_generates_what_fits() -> None:
    completion = ScriptedLLM("a b c d e f", context_length=10).complete("1 2 3 4 5 6 7 8")
    assert (completion.text, completion.choices[0].finish_reason, completion.params.max_tokens) == ("a b", "length", 2)


def test_max_length_counts_the_prompt_and_the_tighter_limit_wins() -> None:
    llm = ScriptedLLM("a b c d e f")
    assert llm.run("1 2 3", max_length=5) == "a b"
    assert llm.run("1 2 3", max_length=5, max_tokens=1) == "a"
    assert llm.run("1 2 3", max_length=9, max_tokens=4) == "a b c d"
    with pytest.raises(ContextLengthExceeded):
        llm.run("1 2 3", max_length=3)


TURNS = [Message("system", "S"), user("u1 u1"), assistant("a1 a1"), user("u2 u2"), assistant("a2"), user("now")]


def test_a_conversation_that_outgrows_the_window_drops_its_oldest_turns() -> None:
    llm = ScriptedLLM("a b c d", context_length=16, max_tokens=4)
    with pytest.warns(ContextWarning, match="^2 old messages were left out"):
        completion = llm.complete(TURNS)
    assert completion.dropped_messages == (user("u1 u1"), assistant("a1 a1"))
    assert llm.requests[0].prompt == (TURNS[0], *TURNS[3:])
    assert completion.text == "a b c d"


def test_a_conversation_that_fits_is_left_whole() -> None:
    llm = ScriptedLLM("a b c d", context_length=30, max_tokens=4)
    assert llm.complete(TURNS).dropped_messages == ()
    assert llm.requests[0].prompt == tuple(TURNS)


CALLS: dict[str, Callable[[ScriptedLLM], Any]] = {
    "stream": lambda llm: list(llm.stream(TURNS)),
    "chat": lambda llm: llm.chat("now", history=TURNS[:-1]),
    "complete_batch": lambda llm: llm.complete_batch([Request(tuple(TURNS)), Request("x")]),
    "acomplete": lambda llm: asyncio.run(llm.acomplete(TURNS)),
}


@pytest.mark.parametrize("way", CALLS)
def test_every_call_that_leaves_turns_out_says_so_once(way: str) -> None:
    llm = ScriptedLLM("a b c d", context_length=16, max_tokens=4)
    for _ in range(2):
        with pytest.warns(ContextWarning) as caught:
            CALLS[way](llm)
        told = [Path(warning.filename).name for warning in caught if warning.category is ContextWarning]
        assert len(told) == 1
        assert way == "acomplete" or told == ["test_conversation.py"]


def test_the_librarys_own_limit_does_not_drop_the_history_of_a_small_window() -> None:
    """The default of 256 new tokens is more than this window has at all."""
    llm = ScriptedLLM("a b c d e f g h i", context_length=24)
    kept = llm.complete(TURNS)
    assert kept.dropped_messages == ()
    assert kept.usage.completion_tokens == 10  # all that is left
    long_turns = [user("u " * 8), assistant("a"), user("now")]
    assert llm.complete(long_turns).dropped_messages == ()
    with pytest.warns(ContextWarning):  # asked for, the same number makes room for itself
        assert llm.complete(long_turns, max_tokens=20).dropped_messages == tuple(long_turns[:2])
    with pytest.warns(ContextWarning):  # a quarter of the window stays free in any case
        assert llm.complete([user("u " * 20), assistant("a"), user("now")]).dropped_messages != ()


def test_a_gpt_task_that_outgrows_the_window_is_not_shortened() -> None:
    turns = [message.to_dict() for message in TURNS]
    llm = ScriptedLLM("a b c d", context_length=10)
    with pytest.raises(ContextLengthExceeded):
        llm.execute(gpt_task(messages=turns))
    assert llm.requests == []


@pytest.mark.filterwarnings("ignore::llmkit.errors.ContextWarning")
@given(
    turns=st.lists(st.tuples(st.text("ab ", min_size=1), st.text("ab ", min_size=1)), max_size=6),
    system=st.booleans(),
    limit=st.integers(3, 40),
    max_tokens=st.integers(1, 8),
)
def test_fitting_keeps_system_and_last_turn_and_never_exceeds_the_window(
    turns: list[tuple[str, str]], system: bool, limit: int, max_tokens: int
) -> None:
    messages = [Message("system", "S")] * system
    messages += [message for asked, told in turns for message in (user(asked), assistant(told))] + [user("now")]
    llm = ScriptedLLM("x " * 20, tokens=characters, context_length=limit, max_tokens=max_tokens)
    try:
        completion = llm.complete(messages)
    except ContextLengthExceeded:
        n_least = len("S\nnow" if system else "now")
        assert n_least >= limit
        return
    kept = llm.requests[0].prompt
    assert isinstance(kept, tuple)
    n_dropped = len(completion.dropped_messages)
    assert n_dropped % 2 == 0
    assert [*messages[:system], *completion.dropped_messages, *kept[system:]] == messages
    assert (completion.usage.prompt_tokens or 0) + (completion.usage.completion_tokens or 0) <= limit


# --- the conversation ------------------------------------------------------------------------------------------------


def test_history_grows_by_both_sides_of_a_turn() -> None:
    llm = ScriptedLLM({"hi": "hello", "bye": "see you"})
    llm.chat("hi")
    llm.chat("bye")
    assert llm.history == [user("hi"), assistant("hello"), user("bye"), assistant("see you")]
    assert llm.requests[1].prompt == (user("hi"), assistant("hello"), user("bye"))
    llm.clear_history()
    llm.chat("hi")
    assert llm.requests[2].prompt == (user("hi"),)


@pytest.mark.parametrize("history", ["User: a\nAssistant: b", [{"role": "user", "content": "a"}, assistant("b")]])
def test_a_history_that_is_passed_is_used_and_not_kept(history: Any) -> None:
    llm = ScriptedLLM("yes")
    llm.chat("kept")
    llm.chat("x", history=history)
    assert llm.requests[1].prompt == (user("a"), assistant("b"), user("x"))
    assert llm.history == [user("kept"), assistant("yes")]


def test_a_turn_that_fails_leaves_the_history_as_it_was() -> None:
    llm = ScriptedLLM({"hi": "hello"})
    llm.chat("hi")
    before = list(llm.history)
    for bad in ("unscripted", ""):
        with pytest.raises(InvalidRequest):
            llm.chat(bad)
    assert llm.history == before


def test_chats_at_the_same_time_take_turns() -> None:
    llm = ScriptedLLM(lambda asked: f"re {asked}", delay_s=0.002)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(llm.chat, [str(n) for n in range(6)]))
    pairs = list(zip(llm.history[::2], llm.history[1::2], strict=True))
    assert sorted(asked.content for asked, _ in pairs) == [str(n) for n in range(6)]
    assert all(told.content == f"re {asked.content}" for asked, told in pairs)
    assert [len(request.prompt) for request in llm.requests] == [1, 3, 5, 7, 9, 11]


def test_role_user_swaps_the_sides() -> None:
    llm = ScriptedLLM({"How can I help?": "I lost my key.", "Where?": "At home."}, role="user")
    llm.chat("How can I help?")
    llm.chat("Where?")
    assert [m.role for m in llm.history] == ["assistant", "user", "assistant", "user"]
    assert llm.requests[1].prompt == (user("How can I help?"), assistant("I lost my key."), user("Where?"))


def test_role_user_swaps_the_sides_of_messages_that_are_passed() -> None:
    llm = ScriptedLLM()
    llm.complete([Message("system", "S"), user("a"), assistant("b")], role="user")
    assert llm.requests[0].prompt == (Message("system", "S"), assistant("a"), user("b"))


def test_the_system_prompt_opens_a_conversation_that_has_none() -> None:
    llm = ScriptedLLM(system_prompt="Be brief.")
    llm.run("x")
    llm.complete([Message("system", "Own."), user("x")])
    assert llm.requests[0].prompt == (Message("system", "Be brief."), user("x"))
    assert llm.requests[1].prompt == (Message("system", "Own."), user("x"))
