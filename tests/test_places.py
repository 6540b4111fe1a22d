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
    places.take("first", wait=False)
    with pytest.raises(QueueFull, match="max_waiting is 1"):
        places.take("second", wait=False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(places.take, "second", wait=True)
        places.give_back("first")
        waiting.result(SOON_S)


def test_a_place_is_given_back_once_and_by_its_owner_alone() -> None:
    places = Places(1)
    places.take("first", wait=False)
    places.give_back("a stranger")
    with pytest.raises(QueueFull):
        places.take("second", wait=False)
    for _ in range(2):
        places.give_back("first")
    places.take("second", wait=False)
    with pytest.raises(QueueFull):
        places.take("third", wait=False)


def test_whoever_waits_longest_is_next() -> None:
    async def main() -> list[int]:
        places, order = Places(1), list[int]()
        places.take("first", wait=False)

        async def one(number: int) -> None:
            await places.atake(number, wait=True)
            order.append(number)
            places.give_back(number)

        calls = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        places.give_back("first")
        await asyncio.gather(*calls)
        return order

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_who_is_cancelled_leaves_no_place_taken() -> None:
    async def main() -> None:
        places = Places(1)
        await places.atake(1, wait=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(places.atake(2, wait=True), 0.01)
        places.give_back(1)
        places.take(3, wait=False)

        # The place comes in the very moment in which its taker is cancelled.
        taker = asyncio.create_task(places.atake(4, wait=True))
        await asyncio.sleep(0)
        places.give_back(3)
        taker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taker
        places.take(5, wait=False)

    asyncio.run(main())


def test_many_takers_in_threads_and_loops_share_the_places() -> None:
    places, lock, n_inside, most = Places(3), threading.Lock(), 0, 0

    def work(owner: object) -> None:
        nonlocal n_inside, most
        with lock:
            n_inside += 1
            most = max(most, n_inside)
        time.sleep(0.001)
        with lock:
            n_inside -= 1
        places.give_back(owner)

    def in_thread(number: int) -> None:
        places.take(number, wait=True)
        work(number)

    async def in_loop() -> None:
        async def one(number: int) -> None:
            await places.atake(number, wait=True)
            work(number)

        await asyncio.gather(*(one(number) for number in range(40, 80)))

    with ThreadPoolExecutor(8) as threads:
        loop = threads.submit(asyncio.run, in_loop())
        list(threads.map(in_thread, range(40)))
        loop.result(SOON_S)
    assert most == 3
    for number in range(3):
        places.take(number, wait=False)


def test_closing_refuses_those_who_wait_and_those_who_come() -> None:
    places = Places(1)
    places.take(1, wait=False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(places.take, 2, wait=True)
        while not places._waiting:
            time.sleep(0.001)
        places.close(lambda: ModelClosed("m"))
        with pytest.raises(ModelClosed, match="'m' is closed"):
            waiting.result(SOON_S)
    with pytest.raises(ModelClosed):
        places.take(3, wait=True)


def test_a_queue_has_room_for_one_at_least() -> None:
    with pytest.raises(ParameterError, match="max_waiting must be at least 1, got 0"):
        Places(0)
