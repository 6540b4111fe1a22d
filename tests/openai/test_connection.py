"""A server that misbehaves: what is tried again, what is not, and what each failure says."""

import logging
import time
from collections.abc import Callable

import openai
import pytest

from llmkit import BackendLLM
from llmkit.errors import ContextLengthExceeded, GenerationError, InvalidRequest, ModelError
from tests.openai.scripted_server import (
    DONE,
    DROPPED,
    HANG,
    Answer,
    ScriptedServer,
    delta,
    event,
    refusing,
    saying,
    usage,
)

Load = Callable[..., BackendLLM]
SECRET = "sk-0123456789abcdef"


def test_the_scripted_server_is_a_server_to_others_too(server: ScriptedServer) -> None:
    server.answers = [saying("Hel", "lo")]
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    with (
        client,
        client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


# --- streams that are odd, and whole --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [delta("é😀"), delta(finish="stop"), DONE],
        [delta("é😀").replace(b"\n", b"\r\n"), delta(finish="stop").replace(b"\n", b"\r\n"), DONE],
        [b": ping\n\n", delta("é😀"), b": ping\n\n", delta(finish="stop")],
        [delta("é😀", finish="stop")],
        [delta("é😀", finish="stop"), b"data: [DONE]\n"],
        [delta("é"), delta("😀"), delta(finish="stop").rstrip() + b"\n"],
        [bytes([byte]) for byte in delta("é😀") + delta(finish="stop") + DONE],
        [0.05, delta("é😀"), 0.05, delta(finish="stop"), 0.05, DONE],
    ],
    ids=[
        "plain",
        "crlf",
        "comments, no done",
        "one event",
        "done in half",
        "no last empty line",
        "byte by byte",
        "slow",
    ],
)
def test_text_is_whole(server: ScriptedServer, load: Load, pieces: list[bytes | float | str]) -> None:
    server.answers = [Answer(pieces)]
    assert load().run("Hi") == "é😀"


def test_a_server_that_stays_after_the_end_is_not_waited_for(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("ok", finish="stop"), DONE, HANG])]
    started = time.monotonic()
    assert load().run("Hi") == "ok"
    assert time.monotonic() - started < 10
    assert server.left.wait(5)


def test_usage_is_unknown_where_the_server_tells_none(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one two"), delta(finish="stop"), DONE])]
    told = load().complete("Hi").usage
    assert (told.prompt_tokens, told.completion_tokens, told.total_tokens) == (None, None, None)


def test_usage_is_the_servers(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), delta(finish="length"), usage(7, 11), DONE])]
    completion = load().complete("Hi")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (7, 11)
    assert completion.choices[0].finish_reason == "length"
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


# --- failures before the stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_passing_refusal_is_tried_again(server: ScriptedServer, load: Load, status: int) -> None:
    server.answers = [refusing(status, Retry_After="0"), saying("ok")]
    assert load().run("Hi") == "ok"
    assert len(server.requests) == 2
    assert server.bodies[0] == server.bodies[1]


def test_retry_after_is_waited_for(server: ScriptedServer, load: Load) -> None:
    server.answers = [refusing(429, Retry_After="0.6"), saying("ok")]
    assert load().run("Hi") == "ok"
    assert server.requests[1].at_s - server.requests[0].at_s >= 0.6


def test_those_who_are_refused_together_do_not_come_back_together(server: ScriptedServer, load: Load) -> None:
    n = 12
    server.answer_to = lambda _: refusing(429, Retry_After="0") if len(server.requests) <= n else saying("ok")
    assert load(max_retries=9).batch_run(["Hi"] * n) == ["ok"] * n
    again = sorted(seen.at_s for seen in server.requests[n:])
    assert again[-1] - again[0] > 0.1


def test_a_server_that_asks_for_too_much_patience_is_not_asked_again(server: ScriptedServer, load: Load) -> None:
    server.answers = [refusing(429, {"error": {"message": "quota"}}, Retry_After="3600")]
    with pytest.raises(GenerationError, match=r"status 429: quota \(retry after 3600 s\)"):
        load().run("Hi")
    assert len(server.requests) == 1


def test_a_lost_connection_before_the_answer_is_tried_again(server: ScriptedServer, load: Load) -> None:
    server.answer_to = lambda seen: DROPPED if len(server.requests) == 1 else saying("ok")
    assert load().run("Hi") == "ok"
    assert len(server.requests) == 2


def test_retries_come_to_an_end_and_the_servers_words_are_told(server: ScriptedServer, load: Load) -> None:
    server.answers = [refusing(503, {"error": {"message": "overloaded"}}, Retry_After="0")]
    with pytest.raises(GenerationError, match=r"/v1 answered with status 503: overloaded"):
        load(max_retries=2).run("Hi")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (400, {"error": {"message": "bad temperature"}}, InvalidRequest, "status 400: bad temperature"),
        (422, {"detail": "Unexpected fields: {'x'}"}, InvalidRequest, "status 422: Unexpected fields"),
        (422, {"detail": [{"loc": ["body"], "msg": "missing"}]}, InvalidRequest, "missing"),
        (401, {"error": {"message": "wrong key"}}, ModelError, "status 401: wrong key"),
        (404, {"error": {"message": "no model m"}}, ModelError, "status 404: no model m"),
        (307, {}, GenerationError, "status 307"),
    ],
)
def test_a_lasting_refusal_is_told_at_once(
    server: ScriptedServer, load: Load, status: int, body: object, error: type[Exception], said: str
) -> None:
    server.answers = [refusing(status, body)]
    with pytest.raises(error, match=said):
        load().run("Hi")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 1024 tokens. However, you requested 1205 tokens (1200 in the messages, "
        "5 in the completion).",
        "This model's maximum context length is 1024 tokens, however you requested 1205 tokens (1200 in your prompt; 5 "
        "for the completion).",
        "This model's maximum context length is 1024 tokens. However, your messages resulted in 1200 tokens.",
    ],
)
def test_a_prompt_that_is_too_long_has_its_own_error(server: ScriptedServer, load: Load, message: str) -> None:
    server.answers = [refusing(400, {"error": {"message": message, "code": "context_length_exceeded"}})]
    with pytest.raises(ContextLengthExceeded) as caught:
        load(max_tokens=5).run("Hi")
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.limit) == (1200, 5, 1024)


@pytest.mark.parametrize("content_type", ["text/html", "application/json", ""])
def test_something_else_than_a_stream_is_no_answer(server: ScriptedServer, load: Load, content_type: str) -> None:
    server.answers = [Answer([b"<html>welcome</html>"], content_type=content_type)]
    with pytest.raises(GenerationError, match=r"must answer with text/event-stream, got .*welcome"):
        load().run("Hi")
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named(load: Load) -> None:
    with pytest.raises(GenerationError, match=r"cannot reach http://127\.0\.0\.1:9/v1"):
        load("http://127.0.0.1:9/v1#m", max_retries=0).run("Hi")


def test_a_silent_server_is_left_and_not_asked_again(server: ScriptedServer, load: Load) -> None:
    server.answer_to = lambda _: time.sleep(1.5) or saying("late")
    with pytest.raises(GenerationError, match=r"was silent for 0\.3 s"):
        load(timeout_s=0.3).run("Hi")
    assert len(server.requests) == 1


# --- failures within the stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer([delta("one"), delta(" two")], cut=True), "was lost"),
        (Answer([], cut=True), "was lost"),
        (Answer([delta("one")]), "ended its answer before the text was finished"),
        (Answer([delta("one"), DONE]), "ended its answer before the text was finished"),
        (Answer([]), "ended its answer before the text was finished"),
        (Answer([delta("one"), b"data: {not json\n\n"]), "sent a malformed event"),
        (Answer([delta("one"), event({"error": {"message": "CUDA"}})]), "reported an error: CUDA"),
        (Answer([delta("one"), HANG]), "was silent for 0.5 s"),
    ],
    ids=["cut", "cut at once", "no reason", "done too early", "empty", "malformed", "error", "silent"],
)
def test_a_stream_that_has_begun_is_never_started_again(
    server: ScriptedServer, load: Load, answer: Answer, said: str
) -> None:
    server.answers = [answer, saying("again")]
    with pytest.raises(GenerationError, match=said):
        load(timeout_s=0.5).run("Hi")
    assert len(server.requests) == 1


def test_an_error_between_events_is_told_at_once_though_the_server_stays(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("a"), delta("b"), event({"error": {"message": "out of memory"}}), HANG])]
    started = time.monotonic()
    with pytest.raises(GenerationError, match="out of memory"):
        load(timeout_s=20).run("Hi")
    assert time.monotonic() - started < 10


def test_what_came_before_the_failure_was_streamed(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), delta(" two")], cut=True)]
    pieces: list[str] = []
    with pytest.raises(GenerationError, match="was lost"):
        pieces.extend(load().stream("Hi"))
    assert pieces == ["one", " two"]


# --- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(
    server: ScriptedServer, load: Load, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answers = [refusing(429, {"error": {"message": f"slow down, {SECRET}"}}, Retry_After="0"), saying("ok")]
    llm = load(api_key=SECRET)
    llm.enable_logging(f"{tmp_path}/model.log")
    assert llm.run("Hi") == "ok"
    assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    path = llm.save_checkpoint(f"{tmp_path}/checkpoint")
    llm.close()
    with open(f"{tmp_path}/model.log", encoding="utf-8") as log:
        shown = [repr(llm), repr(vars(llm)), caplog.text, path.read_text(encoding="utf-8"), log.read()]
    shown += [str(record.__dict__) for record in caplog.records]
    assert "stamina" in caplog.text
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize(
    "answer",
    [
        refusing(401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
        Answer([f"your key is {SECRET}".encode()], content_type="text/plain"),
        Answer([event({"error": {"message": f"bad key {SECRET}"}})]),
    ],
)
def test_a_server_that_repeats_the_key_does_not_get_it_into_an_error(
    server: ScriptedServer, load: Load, answer: Answer
) -> None:
    server.answers = [answer]
    with pytest.raises((ModelError, GenerationError), match=r"\*\*\*") as caught:
        load(api_key=SECRET).run("Hi")
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_without_a_key_no_header_is_sent(server: ScriptedServer, load: Load) -> None:
    load().run("Hi")
    assert "Authorization" not in server.requests[0].headers


def test_the_key_of_the_environment_is_used(
    server: ScriptedServer, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    load().run("Hi")
    assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
