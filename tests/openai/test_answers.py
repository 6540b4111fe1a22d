"""From events to chunks: texts, reasons, log-probabilities, calls and usage."""

import json
from typing import Any

import pytest

from llmkit import Chunk, GenerationParams, Request, Usage
from llmkit.errors import GenerationError
from llmkit.types import TokenLogprob, TopLogprob
from llmkit_openai.answers import AnswerReader, UsageTally
from llmkit_openai.body import Post
from tests.openai.scripted_server import delta, usage


def reader(n: int = 1, **params: Any) -> AnswerReader:
    return AnswerReader(Post(0, range(n), "chat/completions", {}), Request("Hi", GenerationParams(**params)))


def data(event: bytes) -> bytes:
    return event.removeprefix(b"data: ").strip()


def read(answer: AnswerReader, *events: bytes) -> list[Chunk]:
    chunks: list[Chunk] = []
    for event in events:
        answer.add(data(event))
        chunks += answer.take()
    return chunks


def test_what_several_events_add_can_be_taken_at_once() -> None:
    answer = reader(2, stop_token="stop")
    for event in (delta("a"), delta("x", index=1), delta("b st"), delta("op c"), delta("y", index=1, finish="length")):
        answer.add(data(event))
    assert [(c.choice, c.text, c.finish_reason) for c in answer.take()] == [(0, "ab ", "stop"), (1, "xy", "length")]
    assert list(answer.take()) == []


def text_of(chunks: list[Chunk], choice: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.choice == choice)


def chat_event(**choice: Any) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def test_texts_and_reasons_of_several_choices() -> None:
    answer = reader(2)
    chunks = read(answer, delta("a"), delta("x", index=1), delta("b"), delta(finish="stop"))
    assert not answer.is_whole
    chunks += read(answer, delta(finish="length", index=1))
    assert (text_of(chunks, 0), text_of(chunks, 1)) == ("ab", "x")
    assert [(c.choice, c.finish_reason) for c in chunks if c.finish_reason] == [(0, "stop"), (1, "length")]
    assert answer.is_whole


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
    ],
)
def test_reasons_have_one_name(name: str, reason: str) -> None:
    assert read(reader(), delta(finish=name))[-1].finish_reason == reason


@pytest.mark.parametrize("name", ["content_filter", "abort", "insufficient_system_resource"])
def test_a_text_that_the_server_broke_off_is_no_answer(name: str) -> None:
    with pytest.raises(GenerationError, match=f"ended the text early, for the reason '{name}'"):
        read(reader(), delta("a"), delta(finish=name))


def test_a_stop_string_that_the_server_leaves_in_is_taken_out() -> None:
    answer = reader(stop="END")
    chunks = read(answer, delta("one E"), delta("ND two"), delta(" three"), delta(finish="length"))
    assert text_of(chunks) == "one "
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]


def test_what_looked_like_a_stop_string_comes_at_the_end() -> None:
    chunks = read(reader(stop="END"), delta("one EN"), delta(finish="stop"))
    assert text_of(chunks) == "one EN"


def test_the_completions_endpoint_has_its_own_shape() -> None:
    chunks = read(
        reader(),
        chat_event(index=0, text="a", finish_reason=None),
        chat_event(index=0, text="", finish_reason="length"),
    )
    assert (text_of(chunks), chunks[-1].finish_reason) == ("a", "length")


def test_a_refusal_is_text() -> None:
    assert (
        text_of(read(reader(), chat_event(index=0, delta={"content": None, "refusal": "I will not."}))) == "I will not."
    )


def test_usage_is_the_servers_and_the_last_one_counts() -> None:
    answer = reader()
    assert answer.usage == Usage(None, None)
    read(answer, usage(5, 1), delta("a"), usage(5, 2))
    assert answer.usage == Usage(5, 2)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'{"error": {"message": "out of memory", "code": 500}}', "reported an error: out of memory"),
        (b'{"error": "out of memory"}', "reported an error: out of memory"),
        (b'{"object": "error", "message": "out of memory", "code": 400}', "reported an error: out of memory"),
        (b'{"choices": [{"index": 0, "delta": {"content"', "sent a malformed event"),
        (b'{"choices": [{"index": 0, "delta": {"content": 3}}]}', "sent a malformed event"),
        (b'{"id": "1"}', "sent a malformed event"),
        (b"<html>", "sent a malformed event: <html>"),
        (b"[]", "sent a malformed event"),
        (b'"\xff"', "sent a malformed event"),
        (b'{"choices": [{"index": 7, "delta": {}}]}', "sent choice 7, asked for 1"),
        (b'{"choices": [{"index": -1, "delta": {}}]}', "sent choice -1, asked for 1"),
    ],
)
def test_errors_and_nonsense_in_a_stream_are_told(event: bytes, said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        read(reader(), event)


def test_a_long_error_is_cut_short() -> None:
    with pytest.raises(GenerationError) as caught:
        read(reader(), json.dumps({"error": {"message": "x" * 10_000}}).encode())
    assert len(str(caught.value)) < 600


def test_logprobs_of_a_chat() -> None:
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": None}]
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]}
    (chunk,) = read(reader(logprobs=2), delta("a", logprobs=logprobs))
    others = (TopLogprob("a", -0.1, (97,)), TopLogprob("b", -2.0, None))
    assert chunk.logprobs == (TokenLogprob("a", -0.1, (97,), others),)


def test_logprobs_of_the_completions_endpoint() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-3.0], "top_logprobs": [{"b": -2.0, "c": -0.2, "a": -3.0}]}
    event = chat_event(index=0, text="a", logprobs=logprobs)
    (chunk,) = read(reader(logprobs=2), event)
    assert chunk.logprobs == (
        TokenLogprob("a", -3.0, None, (TopLogprob("c", -0.2, None), TopLogprob("b", -2.0, None))),
    )


def test_logprobs_that_do_not_fit_the_tokens_are_malformed() -> None:
    event = chat_event(index=0, text="a", logprobs={"tokens": ["a", "b"], "token_logprobs": [-3.0]})
    with pytest.raises(GenerationError, match="malformed event"):
        read(reader(logprobs=1), event)


def test_logprobs_that_were_asked_for_and_do_not_come_are_missed() -> None:
    with pytest.raises(GenerationError, match="logprobs were asked for, and the server sent none"):
        read(reader(logprobs=1), delta("a"), delta(finish="stop"))
    assert read(reader(logprobs=1), delta(finish="stop"))[0].logprobs is None


def test_calls_come_in_pieces_and_are_given_whole() -> None:
    pieces = [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"x": '}}],
        [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]
    events = [chat_event(index=0, delta={"tool_calls": piece}) for piece in pieces]
    chunks = read(reader(), *events, delta(finish="stop"))
    (last,) = chunks
    assert [(call.name, call.arguments, call.id) for call in last.tool_calls] == [
        ("f", {"x": 1}, "c1"),
        ("g", {}, "c2"),
    ]
    assert last.finish_reason == "tool_calls"


def test_usage_of_several_posts_is_known_when_all_have_told() -> None:
    tally = UsageTally(2, n_posts=3)
    assert tally.add(Usage(5, 1)) is None
    assert tally.add(Usage(5, 2)) is None
    assert tally.add(Usage(5, 3)) == Chunk(2, prompt_tokens=5, completion_tokens=6)


def test_usage_that_one_post_does_not_tell_is_unknown() -> None:
    tally = UsageTally(0, n_posts=2)
    tally.add(Usage(5, None))
    assert tally.add(Usage(5, 2)) == Chunk(0, prompt_tokens=5, completion_tokens=None)
    silent = UsageTally(0, n_posts=1)
    assert silent.add(Usage(None, None)) is None
