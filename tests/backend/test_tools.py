"""Tools through every call, and the rounds of calls and results in a chat."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit.errors import InvalidRequest, ToolError, ToolRoundsExceeded, UnknownParameter
from llmkit.testing import ScriptedLLM, characters
from llmkit.types import Message


def double(number: int) -> int:
    """Double a number.

    Args:
        number: what to double
    """
    return 2 * number


def call(name: str = "double", **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def scripted(first: str = f"I calculate. {call(number=21)}") -> ScriptedLLM:
    """Answers `double it` with its first line, and every result of a tool by repeating it."""
    return ScriptedLLM(lambda prompt: first if prompt == "double it" else f"It is {prompt}.")


def test_a_completion_has_the_checked_calls_and_the_text_stays_raw() -> None:
    completion = scripted().complete("double it", tools=[double])
    (made,) = completion.tool_calls
    assert (made.name, made.arguments, made.error) == ("double", {"number": 21}, None)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.text == scripted().run("double it", tools=[double]) == f"I calculate. {call(number=21)}"
    assert completion.message == Message("assistant", "I calculate.", (made.to_dict(),))


def test_the_model_gets_the_schemas() -> None:
    llm = scripted()
    llm.complete("double it", tools=[double, {"name": "bare"}])
    function, bare = llm.requests[0].tools
    assert function["function"]["parameters"]["properties"]["number"]["description"] == "what to double"
    assert bare == {"name": "bare"}


def test_without_tools_nothing_is_read_into_a_text() -> None:
    completion = scripted().complete("double it")
    assert (completion.tool_calls, completion.choices[0].finish_reason) == ((), "stop")


def test_a_text_whose_tokens_ran_out_keeps_that_reason() -> None:
    llm = ScriptedLLM(call(number=1) + " and so on", tokens=characters)
    completion = llm.complete("x", tools=[double], max_tokens=len(call(number=1)) + 2)
    assert (completion.choices[0].finish_reason, len(completion.tool_calls)) == ("length", 1)


def test_a_call_that_does_not_fit_is_flagged() -> None:
    (made,) = ScriptedLLM(call(number="many")).complete("x", tools=[double]).tool_calls
    assert made.error == "the arguments do not fit: $.number: 'many' is not of type 'integer'"


def test_a_gpt_tasks_text_stays_its_callers_to_read() -> None:
    task = {"model": "scripted", "messages": [{"role": "user", "content": "double it"}], "tools": [{"name": "double"}]}
    choice = scripted().execute(task).choices[0]
    assert (choice.message.content, choice.finish_reason) == (f"I calculate. {call(number=21)}", "stop")


CHATS: dict[str, Callable[..., str]] = {
    "chat": lambda llm, *args, **options: llm.chat(*args, **options),
    "achat": lambda llm, *args, **options: asyncio.run(llm.achat(*args, **options)),
}
every_chat = pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)


@every_chat
def test_chat_runs_the_tools_and_keeps_all_of_it(chat: Callable[..., str]) -> None:
    llm = scripted()
    assert chat(llm, "double it", tools=[double]) == "It is 42."
    user, asked, result, answer = llm.history
    assert user == Message("user", "double it")
    assert (asked.content, asked.tool_calls[0]["function"]) == (
        "I calculate.",
        {"name": "double", "arguments": {"number": 21}},
    )
    assert result == Message("tool", "42", tool_call_id=asked.tool_calls[0]["id"])
    assert answer == Message("assistant", "It is 42.")
    assert llm.requests[-1].prompt == (user, asked, result)
    assert llm.requests[-1].tools == llm.requests[0].tools


@every_chat
def test_several_calls_of_one_round_are_answered_in_their_order(chat: Callable[..., str]) -> None:
    llm = scripted(call(number=1) + call(number=2))
    chat(llm, "double it", tools=[double])
    assert [message.content for message in llm.history if message.role == "tool"] == ["2", "4"]


@every_chat
def test_what_is_wrong_with_a_call_is_told_to_the_model(chat: Callable[..., str]) -> None:
    assert chat(scripted(call(number="x")), "double it", tools=[double]).startswith("It is error: the arguments do not")
    assert "no tool is named 'doubel'" in chat(scripted(call("doubel")), "double it", tools=[double])


@every_chat
def test_a_tool_answers_with_an_error_or_fails_the_turn(chat: Callable[..., str]) -> None:
    def told(number: int) -> int:
        raise ToolError(f"{number} is too much")

    def broken(number: int) -> int:
        raise ZeroDivisionError(number)

    assert chat(scripted(call("told", number=3)), "double it", tools=[told]) == "It is error: 3 is too much."
    llm = scripted(call("broken", number=3))
    with pytest.raises(ZeroDivisionError):
        chat(llm, "double it", tools=[broken])
    assert llm.history == []


@every_chat
def test_the_rounds_are_bounded_and_a_failed_turn_leaves_no_trace(chat: Callable[..., str]) -> None:
    llm = ScriptedLLM(call(number=1))
    with pytest.raises(ToolRoundsExceeded, match="after 2 rounds"):
        chat(llm, "x", tools=[double], max_tool_rounds=2)
    assert (len(llm.requests), llm.history) == (3, [])


@every_chat
def test_a_passed_history_is_used_and_nothing_is_kept(chat: Callable[..., str]) -> None:
    llm = scripted()
    past = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert chat(llm, "double it", past, tools=[double]) == "It is 42."
    assert (llm.history, len(llm.requests[0].prompt)) == ([], 3)


@every_chat
def test_a_chat_without_tools_is_as_ever(chat: Callable[..., str]) -> None:
    llm = ScriptedLLM("fine")
    assert (chat(llm, "x"), [message.content for message in llm.history]) == ("fine", ["x", "fine"])


def test_async_tools_are_awaited_by_achat_and_refused_by_chat() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert asyncio.run(scripted().achat("double it", tools=[double])) == "It is 42."
    with pytest.raises(InvalidRequest, match="use achat"):
        scripted().chat("double it", tools=[double])


def test_concurrent_achats_take_turns_and_a_cancelled_one_lets_the_next_go_on() -> None:
    llm = ScriptedLLM("answer", delay_s=0.02)

    async def talk() -> None:
        waiting = [asyncio.create_task(llm.achat(str(n))) for n in range(3)]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(talk())
    assert [message.content for message in llm.history] == ["0", "answer", "2", "answer"]
    assert not llm._turns._lock.locked()  # pyright: ignore[reportPrivateUsage]


def test_achat_waits_for_a_chat_in_a_thread() -> None:
    llm = ScriptedLLM("answer", delay_s=0.05)
    thread = threading.Thread(target=llm.chat, args=["first"])
    thread.start()
    while not llm.requests:
        pass
    asyncio.run(llm.achat("second"))
    thread.join()
    assert [message.content for message in llm.history][::2] == ["first", "second"]


NESTED: dict[str, Callable[..., Any]] = {
    "chat": lambda llm: lambda number: llm.chat(f"what is {number}"),
    "asyncio.run": lambda llm: lambda number: asyncio.run(llm.achat(f"what is {number}")),
    "run": lambda llm: lambda number: llm.run(f"what is {number}"),
    "chat with a history": lambda llm: lambda number: llm.chat(f"what is {number}", [Message("assistant", "hello")]),
    "chat of another": lambda llm: lambda number: scripted().chat(f"what is {number}"),
}


def asking(llm: ScriptedLLM, way: str) -> Callable[[int], str]:
    """A tool that asks a model."""
    call_model = NESTED[way](llm)

    def ask(number: int) -> str:
        return call_model(number)

    return ask


@pytest.mark.timeout(20)
@every_chat
@pytest.mark.parametrize("way", ["chat", "asyncio.run"])
def test_a_tool_that_calls_chat_of_the_object_it_serves_is_refused(chat: Callable[..., str], way: str) -> None:
    llm = scripted(call("ask", number=3))
    with pytest.raises(InvalidRequest, match="a tool must not call chat of the object whose turn it serves"):
        chat(llm, "double it", tools=[asking(llm, way)])
    assert llm.history == []
    assert chat(llm, "x") == "It is x."


@every_chat
@pytest.mark.parametrize("way", ["run", "chat with a history", "chat of another"])
def test_a_tool_may_ask_a_model_in_other_ways(chat: Callable[..., str], way: str) -> None:
    llm = scripted(call("ask", number=3))
    told = chat(llm, "double it", tools=[asking(llm, way)])
    assert told == "It is It is what is 3.."


@pytest.mark.timeout(20)
def test_an_async_tool_that_calls_achat_of_the_object_it_serves_is_refused() -> None:
    llm = scripted(call("ask", number=3))

    async def ask(number: int) -> str:
        return await asyncio.create_task(llm.achat(f"what is {number}"))

    with pytest.raises(InvalidRequest, match="use run, or another object"):
        asyncio.run(llm.achat("double it", tools=[ask]))


@pytest.mark.timeout(20)
def test_a_task_that_outlives_the_turn_it_began_in_may_chat() -> None:
    llm = scripted(call("later", number=3))

    async def talk() -> None:
        turn_is_over, begun = asyncio.Event(), list[asyncio.Task[str]]()

        async def chat_later() -> str:
            await turn_is_over.wait()
            return await llm.achat("x")

        async def later(number: int) -> str:
            begun.append(asyncio.create_task(chat_later()))
            return "soon"

        assert await llm.achat("double it", tools=[later]) == "It is soon."
        turn_is_over.set()
        assert await begun[0] == "It is x."

    asyncio.run(talk())


class Schema(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tools": [Schema]}, "'Schema' is a schema without a function"),
        ({"tools": [double], "max_tool_rounds": 0}, "max_tool_rounds must be an integer >= 1, got 0"),
        ({"tools": [double], "role": "user"}, 'role must be "assistant"'),
        ({"tools": [double, double]}, "different names"),
    ],
)
def test_what_a_chat_cannot_do_is_refused_before_the_model_is_asked(options: dict[str, Any], problem: str) -> None:
    llm = scripted()
    with pytest.raises(InvalidRequest, match=problem):
        llm.chat("double it", **options)
    assert llm.requests == []


def test_max_tool_rounds_without_tools_is_no_parameter() -> None:
    with pytest.raises(UnknownParameter, match="max_tool_rounds"):
        scripted().chat("x", max_tool_rounds=3)


def test_a_conversation_with_calls_survives_a_checkpoint(tmp_path: Any) -> None:
    llm = scripted()
    llm.chat("double it", tools=[double])
    path = llm.save_checkpoint(tmp_path)
    other = scripted()
    other.load_checkpoint(path)
    assert other.history == llm.history
