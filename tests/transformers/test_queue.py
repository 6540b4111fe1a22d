"""The bounded queue and leaving it: waiting or being refused, and ending a call from every side."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmkit import Request
from llmkit.errors import InvalidRequest, ModelClosed, ParameterError, QueueFull, UnsupportedFeature
from llmkit.places import Places
from llmkit.testing import ScriptedLLM
from llmkit_transformers import TransformersLLM
from tests.transformers.conftest import ForwardCounter

SOON_S = 10
LONG = {"max_tokens": 90, "eos_token_id": []}


@pytest.fixture(params=["engine", "generate"])
def narrow(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> Iterator[TransformersLLM]:
    """A model in whose queue one request may wait, on each route."""
    with TransformersLLM(str(model_folder()), engine=request.param == "engine", max_waiting=1) as llm:
        yield llm


@pytest.fixture
def held(narrow: TransformersLLM) -> Iterator[ForwardCounter]:
    """The model's steps wait at a gate."""
    counter = ForwardCounter(narrow)
    counter.gate.clear()
    yield counter
    counter.remove()


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    return holds()


def is_idle(llm: TransformersLLM) -> bool:
    figures = llm._routes.figures
    return figures is not None and not figures.running_sequences and not figures.waiting_requests


def narrow_places(llm: TransformersLLM) -> Places:
    """Those of the route that the model takes."""
    engine = llm._routes._engine
    return llm._routes._thread._places if engine is None else engine._calls._worker._places


def test_a_full_queue_refuses_who_will_not_wait_and_lets_wait_who_will(
    narrow: TransformersLLM, held: ForwardCounter
) -> None:
    def is_full() -> bool:
        try:
            narrow.run("x", max_tokens=1, when_full="raise")
        except QueueFull as error:
            return "max_waiting is 1" in str(error)
        return False

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(narrow.run, "hello", max_tokens=3)]
        assert held.first.wait(SOON_S)
        # The model stands still in its first step, so not all of them find a place.
        calls += [threads.submit(narrow.run, "hello", max_tokens=3) for _ in range(2)]
        assert eventually(lambda: len(narrow_places(narrow)._waiting) > 0)
        assert is_full()
        held.gate.set()
        texts = {call.result(SOON_S) for call in calls}
    assert texts == {narrow.run("hello", max_tokens=3, when_full="raise")}


def test_a_batch_larger_than_the_queue_waits_for_its_places(narrow: TransformersLLM) -> None:
    tasks = [f"task {n}" for n in range(9)]
    assert narrow.batch_run(tasks, max_tokens=3) == [narrow.run(task, max_tokens=3) for task in tasks]
    assert asyncio.run(narrow.abatch_run(tasks, max_tokens=3)) == narrow.batch_run(tasks, max_tokens=3)


def test_waiting_for_a_place_holds_up_no_event_loop_and_no_pool_of_threads(model_folder: Callable[..., Path]) -> None:
    async def main(llm: TransformersLLM) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        calls = [asyncio.create_task(llm.arun("hello", max_tokens=3)) for _ in range(80)]
        await asyncio.to_thread(counter.first.wait, SOON_S)
        await asyncio.sleep(0.05)
        # Neither the loop nor its only thread is taken by those who wait.
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), SOON_S) == 1
        counter.gate.set()
        assert len(set(await asyncio.gather(*calls))) == 1

    with TransformersLLM(str(model_folder()), max_waiting=1) as llm:
        counter = ForwardCounter(llm)
        counter.gate.clear()
        asyncio.run(main(llm))
        counter.remove()


@pytest.mark.parametrize("bad", ["no", None, True])
def test_what_to_do_when_full_is_one_of_two(bad: Any) -> None:
    with pytest.raises(InvalidRequest, match='when_full must be "wait" or "raise"'):
        Request("x", when_full=bad)


def test_a_backend_without_a_bounded_queue_refuses_the_question() -> None:
    assert ScriptedLLM().run("x", when_full="wait") == "ok"
    with pytest.raises(UnsupportedFeature, match="has no bounded queue"):
        ScriptedLLM().run("x", when_full="raise")


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_an_impossible_queue_is_refused_before_loading(value: Any) -> None:
    with pytest.raises(ParameterError, match="max_waiting must be an integer >= 1"):
        TransformersLLM("/no/such/model", max_waiting=value)


# --- leaving --------------------------------------------------------------------------------------------------------


async def timed_out(llm: TransformersLLM) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await llm.arun("hello", **LONG)


async def waited_for(llm: TransformersLLM) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(llm.acomplete("hello", **LONG), 0.05)


async def cancelled(llm: TransformersLLM) -> None:
    call = asyncio.create_task(llm.abatch_run(["hello", "you"], **LONG))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def left_async_stream(llm: TransformersLLM) -> None:
    pieces = llm.astream("hello", **LONG)
    await asyncio.wait([asyncio.ensure_future(anext(pieces))], timeout=0.05)
    await asyncio.sleep(0)
    # The reader goes away: its loop ends, and with it all generators.


@pytest.mark.parametrize("leave", [timed_out, waited_for, cancelled, left_async_stream])
def test_leaving_a_call_frees_its_slot_within_a_step(
    llm: TransformersLLM, forwards: ForwardCounter, leave: Callable[[TransformersLLM], Any]
) -> None:
    assert eventually(lambda: is_idle(llm))
    forwards.n_calls = 0
    forwards.gate.clear()  # the first step lasts until everybody has left
    asyncio.run(leave(llm))
    assert forwards.n_calls == 1
    forwards.gate.set()
    assert eventually(lambda: is_idle(llm))
    assert forwards.n_calls <= 2
    assert llm._routes.figures.live_bytes == 0  # pyright: ignore[reportOptionalMemberAccess]


def test_a_dropped_stream_frees_its_slot(llm: TransformersLLM, forwards: ForwardCounter) -> None:
    stream = llm.stream("hello", **LONG)
    next(stream)
    forwards.gate.clear()
    n_before = forwards.n_calls
    del stream
    gc.collect()
    forwards.gate.set()
    assert eventually(lambda: is_idle(llm))
    assert forwards.n_calls <= n_before + 2


def test_leaving_while_waiting_for_a_place_leaves_nothing_behind(model_folder: Callable[..., Path]) -> None:
    async def main(llm: TransformersLLM) -> None:
        calls = [asyncio.create_task(llm.arun("hello", max_tokens=2)) for _ in range(100)]
        await asyncio.to_thread(counter.first.wait, SOON_S)
        for call in calls[1:]:
            call.cancel()
        await asyncio.wait(calls[1:])
        counter.gate.set()
        await calls[0]

    with TransformersLLM(str(model_folder()), max_waiting=2) as llm:
        counter = ForwardCounter(llm)
        counter.gate.clear()
        asyncio.run(main(llm))
        assert eventually(lambda: is_idle(llm))
        assert llm.batch_run(["x"] * 9, max_tokens=1)
        counter.remove()


@pytest.mark.parametrize("engine", [True, False])
def test_a_program_that_holds_a_started_stream_ends_without_a_word(engine: bool) -> None:
    program = f"import llmkit; llm = llmkit.load(engine={engine}); pieces = llm.stream('Hello!'); print(next(pieces))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("Hello\n", "")


@pytest.mark.parametrize("leave", [timed_out, waited_for, cancelled, left_async_stream])
def test_leaving_a_call_that_waits_for_another_frees_its_place_and_its_loop_at_once(
    narrow: TransformersLLM, held: ForwardCounter, leave: Callable[[TransformersLLM], Any]
) -> None:
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(narrow.run, "hello", max_tokens=2)
        assert held.first.wait(SOON_S)
        asyncio.run(leave(narrow))  # while the model stands still
        if not narrow._routes.has_engine:  # the engine's steps, which stand still as well, free its places
            assert not narrow_places(narrow)._taken
        held.gate.set()
        assert running.result(SOON_S)
    assert narrow.run("hello", max_tokens=2, when_full="raise")


def test_closing_ends_all_calls_with_an_error_that_says_so(narrow: TransformersLLM, held: ForwardCounter) -> None:
    failures: list[BaseException] = []

    def call(n: int) -> None:
        try:
            narrow.run("hello", **LONG)
        except ModelClosed as error:
            failures.append(error)

    async def calls() -> None:
        results = await asyncio.gather(*(narrow.arun("hello", **LONG) for _ in range(3)), return_exceptions=True)
        failures.extend(result for result in results if isinstance(result, ModelClosed))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    threads.append(threading.Thread(target=lambda: asyncio.run(calls())))
    for thread in threads:
        thread.start()
    assert held.first.wait(SOON_S)
    time.sleep(0.1)
    closing = threading.Thread(target=narrow.close)
    closing.start()
    held.gate.set()
    for thread in [*threads, closing]:
        thread.join(SOON_S)
    assert len(failures) == 6
    assert all("is closed; load it again" in str(error) for error in failures)
