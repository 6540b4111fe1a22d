"""One thread for works: places, leaving, closing, errors; nobody waits for ever, nor for what nobody reads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmkit.errors import GenerationError, ModelClosed, QueueFull
from llmkit.own_thread import OwnThread
from llmkit.types import Chunk
from tests.forks import in_a_fork

SOON_S = 20
Emit = Callable[[Chunk], None]


class Held:
    """A work of two chunks; between them it waits for leave, or for its end."""

    def __init__(self) -> None:
        self.leave, self.begun, self.was_cancelled = threading.Event(), threading.Event(), False

    def __call__(self, emit: Emit, cancelled: threading.Event) -> None:
        emit(Chunk(0, text="a"))
        self.begun.set()
        deadline = time.monotonic() + SOON_S
        while not (self.leave.is_set() or cancelled.is_set()) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.was_cancelled = cancelled.is_set()
        emit(Chunk(0, text="b"))


def short(emit: Emit, _: threading.Event) -> None:
    emit(Chunk(0, text="c"))


def texts(chunks: Iterator[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def atexts(thread: OwnThread, work: Any, **options: bool) -> str:
    return "".join([chunk.text async for chunk in thread.achunks(work, **options)])


@pytest.fixture
def thread() -> Iterator[OwnThread]:
    """A thread in whose queue one work may wait."""
    thread = OwnThread("m", max_waiting=1)
    yield thread
    thread.close()
    assert not thread._thread.is_alive()


def test_threads_and_loops_get_the_chunks_of_their_works(thread: OwnThread) -> None:
    async def main() -> list[str]:
        return await asyncio.gather(*(atexts(thread, short) for _ in range(20)))

    with ThreadPoolExecutor(4) as readers:
        loop = readers.submit(asyncio.run, main())
        found = list(readers.map(lambda _: texts(thread.chunks(short)), range(20)))
        assert found + loop.result(SOON_S) == ["c"] * 40


def test_leaving_cancels_what_runs(thread: OwnThread) -> None:
    held = Held()
    reading = thread.chunks(held)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    thread.run(lambda: None)
    assert held.was_cancelled


def test_who_is_cancelled_while_it_waits_leaves_no_place_taken_and_never_runs(thread: OwnThread) -> None:
    held, never = Held(), Held()
    reading = thread.chunks(held)
    next(reading)

    async def main() -> None:
        calls = [asyncio.create_task(atexts(thread, never)) for _ in range(3)]  # one has the place, two wait for it
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull):
            await atexts(thread, short, may_wait=False)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        late = asyncio.create_task(atexts(thread, short, may_wait=False))
        await asyncio.sleep(0.01)
        held.leave.set()
        assert await late == "c"

    asyncio.run(main())
    assert texts(reading) == "b"
    assert not never.begun.is_set()


def test_a_reader_whose_event_loop_is_closed_holds_nobody_up(thread: OwnThread) -> None:
    held, loop = Held(), asyncio.new_event_loop()
    reading = thread.achunks(held)
    assert loop.run_until_complete(anext(reading)).text == "a"
    loop.close()
    held.leave.set()
    assert texts(thread.chunks(short)) == "c"


@pytest.mark.parametrize("error", [ZeroDivisionError("why"), KeyboardInterrupt("why")])
def test_an_error_is_its_readers_and_the_next_work_runs(thread: OwnThread, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    with pytest.raises(GenerationError, match="'m' failed while generating: why"):
        texts(thread.chunks(fail))
    with pytest.raises(GenerationError):
        asyncio.run(atexts(thread, fail))
    with pytest.raises(type(error)):
        thread.run(fail)
    assert texts(thread.chunks(short)) == "c"


def test_closing_ends_what_runs_and_what_waits_with_an_error_that_says_so(thread: OwnThread) -> None:
    reading = thread.chunks(Held())
    next(reading)
    with ThreadPoolExecutor(4) as readers:
        calls = [
            readers.submit(thread.run, lambda: None),
            readers.submit(lambda: texts(thread.chunks(short))),
            readers.submit(lambda: texts(thread.chunks(short))),
            readers.submit(lambda: asyncio.run(atexts(thread, short))),
        ]
        while not (thread._places._taken and len(thread._places._waiting) == 2 and thread._commands.qsize() == 2):
            time.sleep(0.001)
        thread.close()
        for call in calls:
            with pytest.raises(ModelClosed, match="'m' is closed"):
                call.result(SOON_S)
    with pytest.raises(ModelClosed):
        texts(reading)
    with pytest.raises(ModelClosed):
        thread.run(lambda: None)


def test_a_thread_that_is_dropped_unclosed_ends() -> None:
    thread = OwnThread("m")
    ends = thread.run(threading.current_thread)
    del thread
    ends.join(SOON_S)
    assert not ends.is_alive()


EXITING = """
import threading, time
from llmkit.own_thread import OwnThread
from llmkit.types import Chunk

def endless(emit, cancelled):
    emit(Chunk(0, text="a"))
    while True:
        time.sleep(0.01)

thread = OwnThread("m")
stream = thread.chunks(endless)
next(stream)
for _ in range(3):
    threading.Thread(target=lambda: list(thread.chunks(endless)), daemon=True).start()
"""


def test_a_program_ends_without_waiting_for_what_nobody_closed() -> None:
    ended = subprocess.run([sys.executable, "-c", EXITING], capture_output=True, text=True, timeout=SOON_S, check=True)
    assert ended.stderr == ""


def test_a_forked_process_is_told_to_load_the_model_itself(thread: OwnThread) -> None:
    def refused() -> None:
        calls: list[Callable[[], object]] = [
            lambda: texts(thread.chunks(short)),
            lambda: asyncio.run(atexts(thread, short)),
            lambda: thread.run(lambda: None),
        ]
        for call in calls:
            with pytest.raises(GenerationError, match="load the model in this one"):
                call()
        thread.close()

    assert in_a_fork(refused)
    assert texts(thread.chunks(short)) == "c"
