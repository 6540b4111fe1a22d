"""Calls on an engine: chunks for threads and loops, and a change of the model that nobody sees half of."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue

import pytest

from llmkit.engine.calls import EngineCalls
from llmkit.engine.engine import Engine
from llmkit.engine.sequence import Event
from llmkit.errors import GenerationError, ModelClosed
from llmkit.testing.fake_runner import FakeRunner
from tests.engine.harness import alone, make_request
from tests.forks import in_a_fork

PROMPT = list(range(100))


@pytest.fixture
def started() -> Iterator[Callable[[FakeRunner], EngineCalls]]:
    every: list[EngineCalls] = []

    def start(runner: FakeRunner) -> EngineCalls:
        calls = EngineCalls(lambda: Engine(runner, kv_budget_bytes=1 << 20), name="fake", logprobs=lambda _: None)
        every.append(calls)
        return calls

    yield start
    for calls in every:
        calls.close()


def test_threads_and_loops_get_the_same_chunks(started: Callable[[FakeRunner], EngineCalls]) -> None:
    calls = started(FakeRunner())
    requests = [make_request(range(n, 70 + n), max_tokens=5) for n in range(3)]
    chunks = list(calls.chunks(enumerate(requests)))

    async def gathered() -> list[int]:
        again = [make_request(range(n, 70 + n), max_tokens=5) for n in range(3)]
        return [token async for chunk in calls.achunks(enumerate(again)) for token in (chunk.request, *chunk.token_ids)]

    for index, request in enumerate(requests):
        tokens = [token for chunk in chunks if chunk.request == index for token in chunk.token_ids]
        assert [tokens] == alone(request)
    assert sorted(asyncio.run(gathered())) == sorted(n for c in chunks for n in (c.request, *c.token_ids))


class Arrivals:
    """A queue that notes how many events come at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._queue: SimpleQueue[tuple[int, list[Event | None]]] = SimpleQueue()

    def put(self, item: tuple[int, list[Event | None]]) -> None:
        self.sizes.append(len(item[1]))
        self._queue.put(item)

    def get(self) -> tuple[int, list[Event | None]]:
        return self._queue.get()


@pytest.mark.parametrize("streamed", [True, False])
def test_tokens_that_nobody_reads_along_come_together_and_the_first_at_once(
    streamed: bool, started: Callable[[FakeRunner], EngineCalls], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals, request = Arrivals(), replace(make_request(PROMPT, n=2, max_tokens=30), streamed=streamed)
    monkeypatch.setattr("llmkit.engine.calls._PATIENCE_S", 1000.0)
    monkeypatch.setattr("llmkit.engine.calls.SimpleQueue", lambda: arrivals)
    chunks = list(started(FakeRunner()).chunks([(0, request)]))[1:]
    assert [[t for c in chunks if c.choice == n for t in c.token_ids] for n in range(2)] == alone(request)
    assert arrivals.sizes == ([1] * 61 if streamed else [1, 60])  # two texts of 30 tokens, and the end


def test_held_back_tokens_come_before_the_error_that_ends_them(
    started: Callable[[FakeRunner], EngineCalls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.engine.calls._PATIENCE_S", 1000.0)
    calls = started(FakeRunner(delay_s=0.002))
    reading = calls.chunks([(0, replace(make_request(PROMPT, max_tokens=1000), streamed=False))])
    assert [len(next(reading).token_ids) for _ in range(2)] == [0, 1]
    while calls.figures.steps < 5:
        time.sleep(0.001)
    threading.Thread(target=calls.close).start()
    found: list[int] = []
    with pytest.raises(ModelClosed):
        found.extend(token for chunk in reading for token in chunk.token_ids)
    assert len(found) >= 3


def test_a_change_waits_for_what_runs_and_drops_the_cache(started: Callable[[FakeRunner], EngineCalls]) -> None:
    runner = FakeRunner(delay_s=0.002)
    calls = started(runner)
    reading = calls.chunks([(0, make_request(PROMPT, max_tokens=100))])
    tokens = list(next(reading).token_ids)
    seen: list[int] = []
    changing = threading.Thread(target=calls.exclusively, args=(lambda: seen.append(calls.figures.running_sequences),))
    changing.start()
    late = threading.Thread(target=lambda: seen.append(len(list(calls.chunks([(0, make_request(PROMPT))])))))
    late.start()
    tokens += [token for chunk in reading for token in chunk.token_ids]
    for thread in (changing, late):
        thread.join(20)
    assert len(tokens) == 100
    assert seen == [0, 5]  # the change, then the late one: its prompt and four tokens
    assert calls.figures.hit_requests == 0


def test_a_change_that_fails_lets_everybody_in_again(started: Callable[[FakeRunner], EngineCalls]) -> None:
    calls = started(FakeRunner())

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        calls.exclusively(fail)
    assert len(list(calls.chunks([(0, make_request(PROMPT))]))) == 5
    calls.close()
    with pytest.raises(ModelClosed):
        calls.exclusively(lambda: None)


class Alarm(BaseException):
    """What a signal's handler raises, such as KeyboardInterrupt."""


@pytest.fixture
def alarmed() -> Iterator[None]:
    """The timer's signal raises."""

    def raise_alarm(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, raise_alarm)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarmed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that hits a weak reference's end
def test_a_signal_at_any_moment_leaves_nothing_behind(started: Callable[[FakeRunner], EngineCalls]) -> None:
    calls, moments, n_interrupted = started(FakeRunner()), random.Random(0), 0
    for _ in range(2000):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 5e-4))
                list(calls.chunks([(0, make_request(PROMPT[:5], max_tokens=2))]))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            n_interrupted += 1
    assert n_interrupted > 200
    calls.exclusively(lambda: None)
    assert not calls._open
    assert not calls._worker._places._taken


@pytest.mark.parametrize("moment", ["take_place", "hand_in"])
def test_an_error_right_after_each_half_of_handing_in_leaves_nothing_behind(
    moment: str, started: Callable[[FakeRunner], EngineCalls], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = started(FakeRunner(delay_s=0.001))
    half = getattr(calls._worker, moment)

    def interrupted(*args: object) -> None:
        half(*args)
        raise Alarm

    monkeypatch.setattr(calls._worker, moment, interrupted)
    with pytest.raises(Alarm):
        list(calls.chunks([(0, make_request(PROMPT, max_tokens=100_000))]))
    calls.exclusively(lambda: None)
    assert not calls._open
    assert not calls._worker._places._taken


@pytest.mark.usefixtures("alarmed")
def test_an_interrupted_change_lets_everybody_in_again(started: Callable[[FakeRunner], EngineCalls]) -> None:
    calls = started(FakeRunner(delay_s=0.002))
    reading = calls.chunks([(0, make_request(PROMPT, max_tokens=100_000))])
    next(reading)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Alarm):
        calls.exclusively(lambda: None)
    assert len(list(calls.chunks([(0, make_request(PROMPT))]))) == 5
    reading.close()


def test_a_forked_process_is_told_to_load_the_model_itself(started: Callable[[FakeRunner], EngineCalls]) -> None:
    def refused() -> None:
        requests = [(0, make_request(PROMPT))]
        waits: list[Callable[[], object]] = [
            lambda: list(calls.chunks(requests)),
            lambda: asyncio.run(anext(calls.achunks(requests))),  # type: ignore[arg-type]
            lambda: calls.exclusively(lambda: None),
            calls.drain,
        ]
        for wait in waits:
            with pytest.raises(GenerationError, match="load the model in this one"):
                wait()
        calls.close()

    calls = started(FakeRunner())
    assert in_a_fork(refused)
    assert len(list(calls.chunks([(0, make_request(PROMPT))]))) == 5


def test_prefixes_are_not_forgotten_under_what_runs() -> None:
    engine = Engine(FakeRunner(), kv_budget_bytes=1 << 20)
    engine.add(make_request(PROMPT))
    engine.step()
    with pytest.raises(GenerationError, match="1 sequences are running"):
        engine.forget()
    engine.close()
