"""Places in a queue: first come, first served, and none is ever lost."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmkit.errors import ModelClosed, ParameterError, QueueFull
from llmkit.places import Places

SOON_S = 20


def test_a_full_queue_refuses_or_lets_wait() -> None:
    places = Places(1)
    places.take(wait=False)
    with pytest.raises(QueueFull, match="max_waiting is 1"):
        places.take(wait=False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(places.take, wait=True)
        places.give_back()
        waiting.result(SOON_S)


def test_whoever_waits_longest_is_next() -> None:
    async def main() -> list[int]:
        places, order = Places(1), list[int]()
        places.take(wait=False)

        async def one(number: int) -> None:
            await places.atake(wait=True)
            order.append(number)
            places.give_back()

        calls = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        places.give_back()
        await asyncio.gather(*calls)
        return order

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_who_is_cancelled_leaves_no_place_taken() -> None:
    async def main() -> None:
        places = Places(1)
        await places.atake(wait=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(places.atake(wait=True), 0.01)
        places.give_back()
        places.take(wait=False)

        # The place comes in the very moment in which its taker is cancelled.
        taker = asyncio.create_task(places.atake(wait=True))
        await asyncio.sleep(0)
        places.give_back()
        taker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taker
        places.take(wait=False)

    asyncio.run(main())


def test_many_takers_in_threads_and_loops_share_the_places() -> None:
    places, lock, n_inside, most = Places(3), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal n_inside, most
        with lock:
            n_inside += 1
            most = max(most, n_inside)
        time.sleep(0.001)
        with lock:
            n_inside -= 1
        places.give_back()

    def in_thread(_: int) -> None:
        places.take(wait=True)
        work()

    async def in_loop() -> None:
        async def one() -> None:
            await places.atake(wait=True)
            work()

        await asyncio.gather(*(one() for _ in range(40)))

    with ThreadPoolExecutor(8) as threads:
        loop = threads.submit(asyncio.run, in_loop())
        list(threads.map(in_thread, range(40)))
        loop.result(SOON_S)
    assert most == 3
    for _ in range(3):
        places.take(wait=False)


def test_closing_refuses_those_who_wait_and_those_who_come() -> None:
    places = Places(1)
    places.take(wait=False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(places.take, wait=True)
        while not places._waiting:
            time.sleep(0.001)
        places.close(lambda: ModelClosed("m"))
        with pytest.raises(ModelClosed, match="'m' is closed"):
            waiting.result(SOON_S)
    with pytest.raises(ModelClosed):
        places.take(wait=True)


def test_a_queue_has_room_for_one_at_least() -> None:
    with pytest.raises(ParameterError, match="max_waiting must be at least 1, got 0"):
        Places(0)
