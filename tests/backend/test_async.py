"""Event loops stay free, and whoever leaves ends the generation."""

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from llmkit.errors import (
    ModelClosed,
    UnsupportedParameter,
)
from llmkit.testing import ScriptedLLM
from llmkit.types import Chunk, Request


def gpt_task(content: str = "x", **changes: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **changes}


class Watched(ScriptedLLM):
    """Tells when its generator was closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun, self.ended, self.n_chunks = threading.Event(), threading.Event(), 0

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        try:
            for chunk in super()._generate(requests):
                self.n_chunks += 1
                self.begun.set()
                yield chunk
        finally:
            self.ended.set()


LONG = "word " * 400


def test_cancelling_arun_ends_the_generation() -> None:
    llm = Watched(LONG, delay_s=0.005, max_tokens=400)

    async def cancel() -> None:
        call = asyncio.create_task(llm.arun("x"))
        await asyncio.to_thread(llm.begun.wait, 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(llm.ended.wait, 5)

    asyncio.run(cancel())
    assert llm.n_chunks < 300


def test_leaving_an_async_stream_ends_the_generation() -> None:
    llm = Watched(LONG, delay_s=0.005, max_tokens=400)

    async def leave() -> None:
        pieces = llm.astream("x")
        assert await anext(pieces) == "word"
        await pieces.aclose()
        assert await asyncio.to_thread(llm.ended.wait, 5)

    asyncio.run(leave())
    assert llm.n_chunks < 300


@pytest.mark.parametrize("start", [lambda llm: llm.stream("x"), lambda llm: llm.execute(gpt_task(), stream=True)])
def test_closing_a_stream_ends_the_generation(start: Callable[[Watched], Any]) -> None:
    llm = Watched(LONG)
    pieces = start(llm)
    next(pieces)
    pieces.close()
    assert llm.ended.is_set()
    assert llm.n_chunks == 1


def test_the_event_loop_stays_free_while_a_model_generates() -> None:
    llm = ScriptedLLM("word " * 20, delay_s=0.03)

    async def longest_pause_s() -> float:
        call, pause_s, last = asyncio.create_task(llm.arun("x")), 0.0, time.perf_counter()
        while not call.done():
            await asyncio.sleep(0.001)
            pause_s, last = max(pause_s, time.perf_counter() - last), time.perf_counter()
        return pause_s

    # The generation takes 0.6 s; a loop that waits for it would pause that long.
    assert asyncio.run(longest_pause_s()) < 0.3


def test_async_calls_run_at_the_same_time() -> None:
    llm = ScriptedLLM("word " * 10, delay_s=0.02)

    async def both() -> list[str]:
        return list(await asyncio.gather(llm.arun("x"), llm.arun("y"), llm.arun("z")))

    started = time.perf_counter()
    assert len(set(asyncio.run(both()))) == 1
    assert time.perf_counter() - started < 3 * 0.22


class Threaded(ScriptedLLM):
    """Tells which threads its prompts are encoded in and its fingerprint is computed in, and how many do so at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoded_in: set[threading.Thread] = set()
        self.named_in: set[threading.Thread] = set()
        self.n_naming, self.most_naming = 0, 0

    @property
    def fingerprint(self) -> str | None:
        self.named_in.add(threading.current_thread())
        self.n_naming += 1
        self.most_naming = max(self.most_naming, self.n_naming)
        time.sleep(0.01)
        self.n_naming -= 1
        return "named"

    def _encode(self, request: Request) -> list[int]:
        self.encoded_in.add(threading.current_thread())
        return super()._encode(request)


ASYNC_CALLS: dict[str, Callable[..., Any]] = {
    "arun": lambda llm, task: llm.arun(task),
    "abatch_run": lambda llm, task: llm.abatch_run([task]),
    "acomplete_batch": lambda llm, task: llm.acomplete_batch([Request(task)]),
    "aexecute": lambda llm, task: llm.aexecute(gpt_task(task)),
    "achat": lambda llm, task: llm.achat(task),
}
every_async_call = pytest.mark.parametrize("call", ASYNC_CALLS.values(), ids=ASYNC_CALLS)


@every_async_call
def test_a_fingerprint_is_computed_outside_the_event_loop(
    call: Callable[..., Any],
) -> None:
    llm = Threaded(seed=1)
    asyncio.run(call(llm, "x"))
    assert len(llm.named_in) == 1
    assert threading.current_thread() not in llm.named_in


def test_concurrent_calls_compute_the_fingerprint_one_after_another() -> None:
    llm = Threaded(seed=1)

    async def three() -> list[str | None]:
        return [done.fingerprint for done in await asyncio.gather(*(llm.acomplete("x") for _ in range(3)))]

    assert asyncio.run(three()) == ["named"] * 3
    assert llm.most_naming == 1


@every_async_call
def test_a_long_text_is_encoded_outside_the_event_loop(call: Callable[..., Any]) -> None:
    llm = Threaded()
    asyncio.run(call(llm, "word " * 20_000))
    assert llm.encoded_in
    assert threading.current_thread() not in llm.encoded_in


def test_many_tasks_or_a_long_system_prompt_are_encoded_outside_the_event_loop() -> None:
    many, under = Threaded(), Threaded(system_prompt="word " * 20_000)
    asyncio.run(many.abatch_run(["x"] * 1000))
    asyncio.run(under.arun("x"))
    assert threading.current_thread() not in many.encoded_in | under.encoded_in


def test_a_short_task_costs_no_thread() -> None:
    llm = Threaded()
    asyncio.run(llm.arun("x"))
    assert llm.encoded_in == {threading.current_thread()}


def test_a_stream_refuses_before_its_first_piece_is_asked_for() -> None:
    with pytest.raises(UnsupportedParameter):
        ScriptedLLM().stream("x", top_k=5)


def test_a_with_block_closes_the_model() -> None:
    with ScriptedLLM("yes") as llm:
        assert llm.run("x") == "yes"
    with pytest.raises(ModelClosed, match="'scripted' is closed"):
        llm.run("x")


def test_detach_frees_the_model_once() -> None:
    class Counted(ScriptedLLM):
        n_released = 0

        def _release(self) -> None:
            self.n_released += 1

    llm = Counted()
    llm.detach()
    llm.close()
    assert llm.n_released == 1


def test_an_error_after_everybody_has_left_is_not_reported_as_lost() -> None:
    class Failing(Watched):
        def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
            yield from itertools.islice(super()._generate(requests), 1)
            assert left.wait(5)
            raise ModelClosed("scripted")

    left, reports = threading.Event(), list[dict[str, Any]]()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        call = asyncio.create_task(llm.arun("x"))
        await asyncio.to_thread(llm.begun.wait, 5)
        call.cancel()
        await asyncio.wait([call])
        left.set()
        await asyncio.to_thread(llm.ended.wait, 5)

    llm = Failing(LONG)
    asyncio.run(main())
    gc.collect()
    assert reports == []
