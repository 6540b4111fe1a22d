"""The owner thread: many threads hand in, one runs; nothing waits forever, and nothing is left behind."""

import gc
import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmkit.engine.engine import Engine
from llmkit.engine.runner import KeysValues, Slice
from llmkit.engine.sequence import Delta, Event, Failure
from llmkit.engine.worker import EngineWorker, Ticket
from llmkit.errors import CacheBudgetExceeded, GenerationError, ModelClosed, ParameterError, QueueFull
from llmkit.testing.fake_runner import FakeRunner
from tests.engine.harness import alone, make_request

SOON_S = 20


class GatedRunner(FakeRunner):
    """A runner whose steps wait for leave."""

    def __init__(self, *, fail_at: Container[int] = ()) -> None:
        super().__init__(fail_at=fail_at)
        self.gate, self.stepping = threading.Semaphore(0), threading.Event()

    def step(self, slices: list[Slice]) -> list[list[int]]:
        self.stepping.set()
        assert self.gate.acquire(timeout=SOON_S)
        return super().step(slices)

    def open(self) -> None:
        self.gate.release(1_000_000)


@pytest.fixture
def started() -> Iterator[Callable[..., EngineWorker]]:
    """Starts workers, and closes them at the end; nothing may be left in their runners."""
    workers: list[tuple[EngineWorker, FakeRunner]] = []

    def start(runner: FakeRunner, *, max_waiting: int = 1000, **limits: int) -> EngineWorker:
        limits = {"kv_budget_bytes": 1 << 20, **limits}
        worker = EngineWorker(lambda: Engine(runner, **limits), name="fake", max_waiting=max_waiting)
        workers.append((worker, runner))
        return worker

    yield start
    for worker, runner in workers:
        if isinstance(runner, GatedRunner):
            runner.open()
        worker.close()
        assert runner.is_closed
        assert not worker._thread.is_alive()


def tokens_of(ticket: Ticket, n: int = 1) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in range(n)]
    for delta in ticket:
        tokens[delta.choice].append(delta.token_id)
    return tokens


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    return holds()


def test_requests_of_many_threads_each_get_their_own_tokens(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(), max_waiting=5, max_running=8, kv_budget_bytes=1 << 14)
    requests = [make_request(range(at % 7, 90 + at), n=1 + at % 3, max_tokens=1 + at % 11) for at in range(120)]
    with ThreadPoolExecutor(16) as threads:
        got = list(threads.map(lambda r: tokens_of(worker.submit(r), r.n_choices), requests))
    assert got == [alone(request) for request in requests]


def test_requests_of_many_threads_share_steps(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner)
    first = worker.submit(make_request([1], max_tokens=2))
    assert runner.stepping.wait(SOON_S)
    tickets = [worker.submit(make_request([n], max_tokens=1)) for n in range(2, 10)]
    runner.open()
    for ticket in [first, *tickets]:
        tokens_of(ticket)
    assert runner.steps == [[1], [1] * 9]


def test_an_idle_worker_wakes_for_each_request(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner())
    for n in range(300):
        request = make_request([n], max_tokens=1)
        assert tokens_of(worker.submit(request)) == alone(request)


def test_a_worker_rests_when_it_has_nothing_more_to_do_and_not_between_steps() -> None:
    runner, rests = FakeRunner(), []
    worker = EngineWorker(
        lambda: Engine(runner, kv_budget_bytes=1 << 20), before_sleep=lambda: rests.append(len(runner.steps))
    )
    for _ in range(2):
        tokens_of(worker.submit(make_request([1, 2], max_tokens=5)))
        assert eventually(lambda: rests[-1:] == [len(runner.steps)])
    worker.close()
    assert set(rests) == {0, 5, 10}


def test_an_idle_worker_uses_no_processor_time(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner())
    tokens_of(worker.submit(make_request([1])))
    before_s = worker.run_in_thread(time.thread_time)
    time.sleep(0.5)
    assert worker.run_in_thread(time.thread_time) - before_s < 0.02


def test_closing_a_ticket_frees_its_place_within_a_step(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner)
    ticket = worker.submit(make_request([1], max_tokens=1000))
    runner.gate.release()
    next(ticket)
    ticket.close()
    runner.gate.release(2)  # the step that runs at the time, and one that must not come
    assert eventually(lambda: worker.figures.running_sequences == 0)
    assert len(runner.steps) <= 2
    assert len(list(ticket)) <= 1  # what had come before the end


def test_a_dropped_ticket_cancels(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(delay_s=0.001))
    ticket = worker.submit(make_request([1], max_tokens=500_000))
    next(ticket)
    del ticket
    gc.collect()
    assert eventually(lambda: worker.figures.running_sequences == 0)


def test_a_closed_generator_over_a_ticket_cancels(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(delay_s=0.001))

    def pieces() -> Iterator[str]:
        with worker.submit(make_request([1], max_tokens=500_000)) as ticket:
            for delta in ticket:
                yield delta.text

    generator = pieces()
    next(generator)
    generator.close()
    assert eventually(lambda: worker.figures.running_sequences == 0)


def test_cancelling_from_another_thread_ends_the_iteration(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner)
    request = make_request([1], max_tokens=100)
    ticket = worker.submit(request)
    with ThreadPoolExecutor(1) as thread:
        tokens = thread.submit(tokens_of, ticket)
        worker.cancel(request)
        runner.gate.release(1)
        assert len(tokens.result(SOON_S)[0]) <= 1


def test_cancelling_what_is_over_does_nothing(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner())
    request = make_request([1])
    ticket = worker.submit(request)
    tokens_of(ticket)
    worker.cancel(request)
    ticket.close()
    assert list(ticket) == []
    assert tokens_of(worker.submit(make_request([2]))) == alone(make_request([2]))


def test_a_full_queue_refuses_who_will_not_wait(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner, max_waiting=2, max_running=1)
    tickets = [worker.submit(make_request([1]))]
    assert runner.stepping.wait(SOON_S)
    assert eventually(lambda: len(worker._placed) == 1)  # it started, its place is given back after the step
    tickets.append(worker.submit(make_request([2])))
    with pytest.raises(QueueFull, match="max_waiting is 2"):
        worker.submit(make_request([3], may_wait=False))
    runner.open()
    assert [tokens_of(ticket) for ticket in tickets] == [alone(make_request([n])) for n in (1, 2)]
    tokens_of(worker.submit(make_request([3], may_wait=False)))


def test_a_full_queue_lets_wait_who_will(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner, max_waiting=1, max_running=1)
    first = worker.submit(make_request([1]))
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(lambda: tokens_of(worker.submit(make_request([2]))))
        time.sleep(0.05)
        assert not second.done()
        runner.open()
        assert second.result(SOON_S) == alone(make_request([2]))
    tokens_of(first)


def test_cancelling_a_waiting_request_gives_its_place_to_another(started: Callable[..., EngineWorker]) -> None:
    runner = GatedRunner()
    worker = started(runner, max_waiting=1, max_running=1)
    running = worker.submit(make_request([1], max_tokens=1000))
    runner.gate.release()
    next(running)
    waiting = worker.submit(make_request([2]))
    waiting.close()
    runner.gate.release(2)
    with ThreadPoolExecutor(1) as thread:
        third = thread.submit(worker.submit, make_request([3]))
        assert isinstance(third.result(SOON_S), Ticket)


def test_a_request_that_can_never_fit_is_refused_by_submit(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(), kv_budget_bytes=128, max_waiting=1)
    for _ in range(3):  # a refusal takes no place
        with pytest.raises(CacheBudgetExceeded):
            worker.submit(make_request([1], max_tokens=128))
    tokens_of(worker.submit(make_request([1])))


def test_closing_ends_everything_with_an_error(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(delay_s=0.001), max_running=1, max_waiting=2)
    running = worker.submit(make_request([1], max_tokens=500_000))
    next(running)
    waiting = [worker.submit(make_request([2])) for _ in range(2)]
    with ThreadPoolExecutor(3) as threads:
        blocked = [threads.submit(worker.submit, make_request([3])) for _ in range(3)]
        time.sleep(0.05)
        worker.close()
        for future in blocked:
            with pytest.raises(ModelClosed):
                tokens_of(future.result(SOON_S))
    for ticket in [running, *waiting]:
        with pytest.raises(ModelClosed, match="'fake' is closed"):
            tokens_of(ticket)
        assert list(ticket) == []


def test_closing_is_safe_twice_and_from_many_threads(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: worker.close(), range(8)))
    with pytest.raises(ModelClosed):
        worker.submit(make_request([1]))
    with pytest.raises(ModelClosed):
        worker.run_in_thread(lambda: None)
    worker.cancel(make_request([1]))


def test_nobody_is_forgotten_when_closing_races_with_submitting() -> None:
    for _ in range(30):
        worker = EngineWorker(lambda: Engine(FakeRunner(), kv_budget_bytes=1 << 20))

        def submit(n: int, worker: EngineWorker = worker) -> bool:
            try:
                return tokens_of(worker.submit(make_request([n]))) == alone(make_request([n]))
            except ModelClosed:
                return True

        with ThreadPoolExecutor(5) as threads:
            outcomes = [threads.submit(submit, n) for n in range(12)]
            threads.submit(worker.close)
            assert all(outcome.result(SOON_S) for outcome in outcomes)
        worker.close()


def test_closing_from_a_receiver_does_not_wait_for_itself(started: Callable[..., EngineWorker]) -> None:
    worker, over = started(FakeRunner()), threading.Event()

    def receive(event: Event | None) -> None:
        worker.close()
        if event is None:
            over.set()

    worker.submit_to(receive, make_request([1]))
    assert over.wait(SOON_S)


def test_a_receiver_gets_every_event_in_the_owner_thread(started: Callable[..., EngineWorker]) -> None:
    worker, over = started(FakeRunner()), threading.Event()
    seen: list[tuple[Event | None, threading.Thread]] = []

    def receive(event: Event | None) -> None:
        seen.append((event, threading.current_thread()))
        if event is None:
            over.set()

    request = make_request([1], n=2)
    worker.submit_to(receive, request)
    assert over.wait(SOON_S)
    assert {thread for _, thread in seen} == {worker._thread}
    events = [event for event, _ in seen]
    assert events.index(None) == len(events) - 1
    by_choice = [[e.token_id for e in events if isinstance(e, Delta) and e.choice == n] for n in (0, 1)]
    assert by_choice == alone(request)


def test_a_receiver_hears_of_a_failure_and_of_the_end() -> None:
    worker = EngineWorker(lambda: Engine(FakeRunner(fail_at={1}), kv_budget_bytes=1 << 20))
    seen: list[Event | None] = []
    worker.submit_to(seen.append, make_request([1], n=2))
    worker.close()
    assert isinstance(seen[0], Failure)
    assert seen[1:] == [None]


def test_a_receiver_that_raises_is_cancelled_alone(started: Callable[..., EngineWorker]) -> None:
    worker, calls = started(FakeRunner(delay_s=0.001)), []

    def receive(event: Event | None) -> None:
        calls.append(event)
        raise RuntimeError("the event loop is closed")

    worker.submit_to(receive, make_request([1], max_tokens=500_000))
    assert tokens_of(worker.submit(make_request([2]))) == alone(make_request([2]))
    assert eventually(lambda: worker.figures.running_sequences == 0)
    assert len(calls) == 2


def test_a_failed_step_reaches_its_caller_and_the_next_one_works(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(fail_at={1}))
    with pytest.raises(GenerationError, match="told to fail at step 1"):
        tokens_of(worker.submit(make_request([1])))
    assert tokens_of(worker.submit(make_request([1]))) == alone(make_request([1]))


class LosesMemory(GatedRunner):
    """A runner that breaks the engine itself, once."""

    has_lost = False

    def free(self, keys_values: KeysValues) -> None:
        super().free(keys_values)
        if not self.has_lost:
            self.has_lost = True
            raise RuntimeError("memory is corrupt")


def test_a_broken_engine_ends_everybody(started: Callable[..., EngineWorker]) -> None:
    runner = LosesMemory(fail_at={1})
    worker = started(runner)
    tickets = [worker.submit(make_request([1]))]
    assert runner.stepping.wait(SOON_S)
    tickets += [worker.submit(make_request([n])) for n in (2, 3)]  # still on their way when it breaks
    runner.open()
    errors = []
    for ticket in tickets:
        with pytest.raises(GenerationError, match="memory is corrupt") as caught:
            tokens_of(ticket)
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 3


def test_after_an_interrupt_in_its_thread_calls_hear_of_it_until_the_worker_is_closed(
    started: Callable[..., EngineWorker],
) -> None:
    class Interrupted(FakeRunner):
        def step(self, slices: list[Slice]) -> list[list[int]]:
            raise KeyboardInterrupt

    worker = started(Interrupted())
    calls: list[Callable[[], object]] = [
        lambda: tokens_of(worker.submit(make_request([1]))),
        lambda: worker.submit(make_request([1])),
        lambda: worker.run_in_thread(lambda: None),
    ]
    for call in calls:
        with pytest.raises(GenerationError, match="the engine broke down, load the model again: KeyboardInterrupt"):
            call()
    worker.close()
    for call in calls:
        with pytest.raises(ModelClosed):
            call()


def test_other_work_runs_in_the_same_thread_between_steps(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner(delay_s=0.001))
    ticket = worker.submit(make_request([1], max_tokens=500_000))
    next(ticket)
    assert worker.run_in_thread(threading.current_thread) is worker._thread
    assert worker.run_in_thread(lambda: worker.run_in_thread(threading.current_thread)) is worker._thread
    with pytest.raises(ZeroDivisionError):
        worker.run_in_thread(lambda: 1 / 0)
    next(ticket)
    ticket.close()


def test_the_engine_is_made_in_its_thread_and_errors_reach_the_maker() -> None:
    threads: list[threading.Thread] = []

    def make() -> Engine:
        threads.append(threading.current_thread())
        raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        EngineWorker(make)
    assert threads[0] is not threading.current_thread()


def test_figures_tell_what_was_done(started: Callable[..., EngineWorker]) -> None:
    worker = started(FakeRunner())
    for _ in range(2):
        tokens_of(worker.submit(make_request([1] * 200, max_tokens=1)))
    assert eventually(lambda: worker.figures.steps == 2)
    figures = worker.figures
    assert (figures.hit_requests, figures.hit_tokens, figures.started_requests) == (1, 199, 2)
    assert (figures.adopted_requests, figures.cached_prefixes, figures.cached_bytes) == (1, 1, 256)
    assert (figures.waiting_requests, figures.running_sequences, figures.live_bytes) == (0, 0, 0)


def test_a_queue_without_places_is_refused() -> None:
    with pytest.raises(ParameterError, match="max_waiting must be at least 1, got 0"):
        EngineWorker(lambda: Engine(FakeRunner(), kv_budget_bytes=1), max_waiting=0)
