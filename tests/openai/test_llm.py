"""One object on one server: threads, loops, limits, cancelling, closing, and what it refuses."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import BackendLLM, Message, Request
from llmkit.errors import (
    GenerationError,
    InvalidRequest,
    ModelClosed,
    ParameterError,
    TaskArgsInvalid,
    TaskExecutionError,
    UnknownParameter,
    UnsupportedFeature,
    UnsupportedParameter,
    UnsupportedParameterWarning,
)
from llmkit.gpt_task.cache import ModelCache
from llmkit_openai import connection
from llmkit_openai.servers import KINDS
from tests.openai.scripted_server import DONE, HANG, Answer, ScriptedServer, Seen, delta, event, refusing, saying

Load = Callable[..., BackendLLM]


def echo(seen: Seen) -> Answer:
    """Says what it was asked, a word at a time."""
    prompt = seen.body["messages"][-1]["content"] if "messages" in seen.body else seen.body["prompt"]
    return saying(*(word + " " for word in prompt.split()))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for 10 s"
        time.sleep(0.01)


# --- loading --------------------------------------------------------------------------------------------------------


def test_loading_by_url_by_backend_and_by_base_url_is_the_same_model(server: ScriptedServer, load: Load) -> None:
    for llm in (load(), load(f"openai:{server.url}#m"), load("openai:m", base_url=server.url)):
        assert llm.run("Hi") == "ok"
    assert [body["model"] for body in server.bodies] == ["m", "m", "m"]
    assert {seen.path for seen in server.requests} == {"/v1/chat/completions"}


def test_loading_asks_the_server_nothing(server: ScriptedServer, load: Load) -> None:
    before = threading.active_count()
    load()
    assert (server.n_connections, threading.active_count()) == (0, before)


def test_nothing_of_http_is_imported_with_llmkit() -> None:
    code = (
        "import sys, llmkit; llmkit.available_backends(); "
        "print({'httpx', 'stamina', 'llmkit_openai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"server": "vlm"}, r"server must be one of generic, .*, got 'vlm'; did you mean 'vllm'\?"),
        ({"timeout_s": 0}, "timeout_s must be > 0, got 0"),
        ({"max_retries": -1}, "max_retries must be an integer >= 0, got -1"),
        ({"max_concurrency": 0}, "max_concurrency must be an integer >= 1, got 0"),
        ({"max_concurrency": True}, "max_concurrency must be an integer >= 1, got True"),
        ({"extra_body": {"stream": False}}, "extra_body must not set 'stream'"),
    ],
)
def test_options_are_checked_before_anything_is_opened(load: Load, option: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        load(**option)


def test_an_unknown_option_is_named(load: Load) -> None:
    with pytest.raises(UnknownParameter, match="unknown parameter 'timeot_s'"):
        load(timeot_s=3)


def test_the_device_is_the_servers(load: Load) -> None:
    with pytest.raises(UnsupportedFeature, match="the server decides where its model runs"):
        load(device="cuda")
    llm = load()
    with pytest.raises(UnsupportedFeature, match="the server decides"):
        llm.device = "cpu"
    assert llm.device is None


def test_another_model_of_the_same_server_can_be_set_and_another_server_cannot(
    server: ScriptedServer, load: Load
) -> None:
    llm = load(api_key="sk-0123456789")
    llm.set_model_name(f"{server.url}#other")
    llm.run("Hi")
    assert server.bodies[0]["model"] == "other"
    with pytest.raises(ParameterError, match="stays with its server"):
        llm.set_model_name("http://elsewhere:1/v1#m")
    assert llm.model_name == f"{server.url}#other"


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["top_k", "min_p", "repetition_penalty"])
def test_what_the_api_lacks_is_refused_unless_the_server_is_said_to_have_it(
    server: ScriptedServer, load: Load, name: str
) -> None:
    value = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}[name]
    with pytest.raises(UnsupportedParameter, match=name):
        load().run("Hi", **{name: value})
    with pytest.raises(UnsupportedParameter, match=name):
        load(**{name: value})
    assert not server.requests
    load(server="vllm").run("Hi", do_sample=True, **{name: value})
    assert server.bodies[0][name] == value


def test_a_parameter_can_be_left_out_with_a_warning(server: ScriptedServer, load: Load) -> None:
    with pytest.warns(UnsupportedParameterWarning, match="top_k is left out by the openai backend"):
        load(on_unsupported="warn").run("Hi", top_k=5, temperature=1.0)
    assert "top_k" not in server.bodies[0]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_refuses_what_no_server_can_promise(load: Load, name: str) -> None:
    llm = load(server=name)
    assert llm.capabilities.reproducible == "no"
    for param, value in {
        "max_length": 5,
        "num_beams": 2,
        "pad_token_id": 1,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }.items():
        with pytest.raises(UnsupportedParameter, match=param):
            llm.run("Hi", **{param: value})


def test_transformers_serve_has_its_own_frequency_penalty_so_ours_is_refused(load: Load) -> None:
    with pytest.raises(UnsupportedParameter, match="frequency_penalty"):
        load(server="transformers").run("Hi", frequency_penalty=0.5)


def test_an_unseeded_sample_draws_a_seed_and_reports_it(server: ScriptedServer, load: Load) -> None:
    completion = load().complete("Hi", temperature=0.9)
    assert completion.params.seed is not None
    assert "seed" in server.bodies[0]
    assert completion.fingerprint is None


def test_system_prompt_role_and_history_reach_the_server(server: ScriptedServer, load: Load) -> None:
    llm = load(system_prompt="Be brief.")
    llm.chat("One")
    llm.chat("Two")
    said = [(m["role"], m["content"]) for m in server.bodies[1]["messages"]]
    assert said == [("system", "Be brief."), ("user", "One"), ("assistant", "ok"), ("user", "Two")]
    load(role="user").complete([Message("user", "Hi"), Message("assistant", "Hello")])
    assert [m["role"] for m in server.bodies[2]["messages"]] == ["assistant", "user"]


def test_choices_of_several_posts_are_one_completion(server: ScriptedServer, load: Load) -> None:
    server.answer_to = lambda seen: saying(str(seen.body["seed"]))
    completion = load().complete("Hi", n=3, temperature=1.0, seed=4)
    seeds = sorted(str(body["seed"]) for body in server.bodies)
    assert sorted(choice.text for choice in completion.choices) == seeds
    assert (completion.text, completion.usage.completion_tokens, completion.usage.prompt_tokens) == ("4", 3, 3)


def test_choices_of_one_post_may_come_interleaved(server: ScriptedServer, load: Load) -> None:
    pieces = [delta("a"), delta("x", index=1), delta("b"), delta(finish="stop", index=1), delta(finish="length"), DONE]
    server.answers = [Answer(pieces)]
    completion = load(server="vllm").complete("Hi", n=2, temperature=1.0)
    assert [(choice.text, choice.finish_reason) for choice in completion.choices] == [("ab", "length"), ("x", "stop")]
    assert server.bodies[0]["n"] == 2


def test_a_server_that_gives_too_few_choices_is_found_out(server: ScriptedServer, load: Load) -> None:
    with pytest.raises(GenerationError, match="before the text was finished"):
        load(server="vllm").complete("Hi", n=2, temperature=1.0)


def test_tool_calls_come_back_as_calls(server: ScriptedServer, load: Load) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    server.answers = [Answer([event({"choices": [choice]}), DONE])]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": schema}}
    completion = load().complete("Hi", tools=[tool])
    (found,) = completion.tool_calls
    assert (found.name, found.arguments, found.id, found.error) == ("add", {"a": 1}, "c1", None)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert server.bodies[0]["tools"][0]["function"]["name"] == "add"


def test_a_chat_with_tools_goes_its_rounds(server: ScriptedServer, load: Load) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    server.answers = [Answer([event({"choices": [choice]}), DONE]), saying("3")]
    assert load().chat("What is 1 + 2?", tools=[add]) == "3"
    _, asked, answered = server.bodies[1]["messages"]
    assert asked["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert (answered["role"], answered["content"], answered["tool_call_id"]) == ("tool", "3", "c1")


def test_a_schema_goes_to_the_server_and_its_text_is_parsed(server: ScriptedServer, load: Load) -> None:
    server.answers = [saying('{"name":', ' "Paris"}')]
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert load().complete("Hi", schema=schema).parsed == {"name": "Paris"}
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(UnsupportedFeature, match="cannot keep a text to a regex"):
        load().run("Hi", regex="a+")


def becomes(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether a condition comes true in time; what a server sees of a connection comes a moment later."""
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# --- at once --------------------------------------------------------------------------------------------------------


def test_a_batch_keeps_its_order_and_goes_at_once(server: ScriptedServer, load: Load) -> None:
    together = threading.Barrier(8, timeout=10)
    server.answer_to = lambda seen: echo(seen)
    server.on_request = together.wait
    assert load().batch_run([f"task {n}" for n in range(8)]) == [f"task {n} " for n in range(8)]


def test_connections_are_used_again(server: ScriptedServer, load: Load) -> None:
    llm = load()
    for _ in range(5):
        llm.run("Hi")
    assert server.n_connections == 1
    llm.batch_run(["Hi"] * 4)
    llm.batch_run(["Hi"] * 4)
    assert server.n_connections <= 4


def test_connections_that_lie_idle_for_long_are_closed(
    server: ScriptedServer, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_request = threading.Barrier(4, timeout=10).wait
    llm = load()
    llm.batch_run(["Hi"] * 4)
    assert becomes(lambda: server.n_open == 4)
    server.on_request = lambda: None
    llm.run("Hi")
    assert server.n_open == 4
    monkeypatch.setattr(connection, "_IDLE_S", 0.05)
    time.sleep(0.06)
    llm.run("Hi")
    assert becomes(lambda: server.n_open == 1)
    llm.close()
    assert becomes(lambda: server.n_open == 0)


def test_the_first_token_is_timed_where_nobody_reads_along(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("a"), 0.2, delta("b"), 0.1, delta("c", finish="stop"), DONE])]
    completion = load().complete("Hi")
    first_s = completion.timings.time_to_first_token_s
    assert completion.text == "abc"
    assert first_s is not None
    assert completion.timings.elapsed_s - first_s > 0.25


@pytest.mark.parametrize(("options", "limit"), [({"max_concurrency": 3}, 3), ({"server": "llama-cpp-python"}, 1)])
def test_no_more_than_the_limit_go_at_once(
    server: ScriptedServer, load: Load, options: dict[str, Any], limit: int
) -> None:
    server.answers = [Answer([0.02, delta("ok", finish="stop"), DONE])]
    llm = load(**options)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(llm.batch_run, [["Hi"] * 6] * 2)) == [["ok"] * 6] * 2
    assert server.most_at_once == limit


def test_64_streams_at_once_lose_nothing(server: ScriptedServer, load: Load) -> None:
    server.answer_to = echo
    llm = load()
    prompts = [" ".join(f"{n}-{word}" for word in range(50)) for n in range(64)]

    async def collected(prompt: str) -> str:
        return "".join([piece async for piece in llm.astream(prompt)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(collected, prompts))

    assert asyncio.run(all_of_them()) == [prompt + " " for prompt in prompts]


def test_threads_and_loops_share_one_object(server: ScriptedServer, load: Load) -> None:
    server.answer_to = echo
    llm = load()

    def in_a_thread(n: int) -> str:
        return llm.run(f"thread {n}")

    def in_a_loop(n: int) -> str:
        return asyncio.run(llm.arun(f"loop {n}"))

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(in_a_thread, range(8))) + list(pool.map(in_a_loop, range(8)))
    assert texts == [f"thread {n} " for n in range(8)] + [f"loop {n} " for n in range(8)]


def test_the_event_loop_is_never_held_up(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([0.3, delta("ok", finish="stop"), DONE])]
    llm = load()

    async def beats_while_waiting() -> int:
        task, beats = asyncio.create_task(llm.arun("Hi")), 0
        while not task.done():
            await asyncio.sleep(0.01)
            beats += 1
        return beats

    assert asyncio.run(beats_while_waiting()) >= 10


def test_pieces_are_streamed_as_they_come(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), HANG])]
    stream = load().stream("Hi")
    assert next(stream) == "one"
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert server.left.wait(5)


# --- cancelling and closing -----------------------------------------------------------------------------------------


def test_cancelling_frees_the_connection(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), HANG]), saying("next")]
    llm = load(max_concurrency=1)

    async def cancelled() -> str:
        task = asyncio.create_task(llm.arun("Hi"))
        await asyncio.to_thread(wait_for, lambda: bool(server.requests))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await llm.arun("Hi")

    assert asyncio.run(cancelled()) == "next"
    assert server.left.wait(5)


def test_leaving_an_async_stream_frees_the_connection(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), HANG])]
    llm = load()

    async def left() -> None:
        async for _ in llm.astream("Hi"):
            break

    asyncio.run(left())
    assert server.left.wait(5)


def test_a_failed_request_ends_its_batch(server: ScriptedServer, load: Load) -> None:
    hangs = Answer([delta("one"), HANG])
    server.answer_to = lambda seen: refusing(400) if "bad" in str(seen.body) else hangs
    with pytest.raises(InvalidRequest, match="status 400: no"):
        load().batch_run(["good", "bad"])
    assert server.left.wait(5)


def test_closing_ends_what_runs(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), HANG])]
    llm = load()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(llm.run, "Hi")
        becomes(lambda: bool(server.requests))
        llm.close()
        with pytest.raises(ModelClosed):
            running.result(10)
    assert server.left.wait(5)


def test_closing_while_an_event_loop_waits_ends_its_call(server: ScriptedServer, load: Load) -> None:
    server.answers = [Answer([delta("one"), HANG])]
    llm = load()

    async def closed_meanwhile() -> None:
        task = asyncio.create_task(llm.arun("Hi"))
        await asyncio.to_thread(wait_for, lambda: bool(server.requests))
        llm.close()
        with pytest.raises(ModelClosed):
            await task

    asyncio.run(closed_meanwhile())


def test_a_closed_model_stays_closed(load: Load) -> None:
    llm = load()
    assert llm.run("Hi") == "ok"
    llm.close()
    llm.close()
    for call in (llm.run, llm.complete, lambda task: next(llm.stream(task))):
        with pytest.raises(ModelClosed):
            call("Hi")


def test_a_dropped_model_ends_its_thread(server: ScriptedServer) -> None:
    llm = llmkit.load(f"{server.url}#m")
    llm.run("Hi")
    (thread,) = [t for t in threading.enumerate() if t.name == "llmkit m"]
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_an_answered_model_is_held_by_nothing(server: ScriptedServer) -> None:
    for _ in range(20):
        llm = llmkit.load(f"{server.url}#m")
        assert llm.batch_run(["Hi", "Ho"]) == ["ok", "ok"]
        assert asyncio.run(llm.arun("Hi")) == "ok"
        gone = weakref.ref(llm)
        del llm
        # Not even until garbage is collected.
        assert gone() is None


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_a_call_at_once(server: ScriptedServer) -> None:
    server.answers = [Answer([delta("one"), HANG])]
    code = f"import llmkit; llm = llmkit.load('{server.url}#m'); print(llm.run('Hi'))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        becomes(lambda: bool(server.requests))
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert words.rstrip().endswith("KeyboardInterrupt")
    assert server.left.wait(5)


def test_a_script_that_forgets_to_close_ends(server: ScriptedServer) -> None:
    code = f"import llmkit; llm = llmkit.load('{server.url}#m'); print(llm.run('Hi'))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


# --- GPT tasks, checkpoints -----------------------------------------------------------------------------------------


def task(server: ScriptedServer, **more: Any) -> dict[str, Any]:
    return {"model": f"{server.url}#m", "messages": [{"role": "user", "content": "Hi"}], **more}


def test_a_gpt_task_runs_and_promises_nothing(server: ScriptedServer, load: Load) -> None:
    llm = load()
    response = llm.execute(task(server, seed=3))
    assert response.choices[0].message.content == "ok"
    assert response.usage.completion_tokens == 1
    assert server.bodies[0]["seed"] == 3
    chunks = list(llm.execute(task(server), stream=True))
    assert "".join(choice.delta.content for chunk in chunks for choice in chunk.choices) == "ok"
    cache = ModelCache()
    assert llmkit.run_task(task(server), cache=cache).choices[0].message.content == "ok"
    cache.clear()


@pytest.mark.parametrize("wish", [{"dtype": "float16"}, {"quantize_bits": 4}])
def test_a_gpt_task_cannot_choose_the_servers_precision(
    server: ScriptedServer, load: Load, wish: dict[str, Any]
) -> None:
    with pytest.raises(TaskArgsInvalid, match="are the server's to decide"):
        load().execute(task(server, **wish))
    with pytest.raises(TaskExecutionError, match="unknown parameter"):
        llmkit.run_task(task(server, **wish))


def test_a_checkpoint_of_another_server_is_refused(server: ScriptedServer, load: Load, tmp_path: Path) -> None:
    llm = load(temperature=0.5)
    llm.chat("Hi")
    saved = llm.save_checkpoint(tmp_path)
    again = load()
    again.load_checkpoint(saved)
    assert (again.temperature, len(again.history)) == (0.5, 2)
    elsewhere = load("http://elsewhere:1/v1#m")
    with pytest.raises(ParameterError, match="stays with its server"):
        elsewhere.load_checkpoint(saved)
    assert elsewhere.temperature is None


def test_figures_are_kept(server: ScriptedServer, load: Load) -> None:
    server.answers = [saying("one", " two")]
    llm = load()
    completion = llm.complete_batch([Request("Hi"), Request("Ho")])[1]
    assert completion.timings.time_to_first_token_s is not None
    assert llm.metrics().total_completion_tokens == 4
