"""The lock that goes round."""

from __future__ import annotations

import threading

from llmkit_transformers.fair_lock import FairLock


def test_threads_have_it_in_the_order_in_which_they_ask_and_never_two_at_once() -> None:
    lock, order = FairLock(), list[int]()
    holders = 0

    def take(number: int) -> None:
        nonlocal holders
        with lock:
            holders += 1
            assert holders == 1
            order.append(number)
            holders -= 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    with lock:
        for n, thread in enumerate(threads, 1):
            thread.start()
            while len(lock._waiting) < n:
                pass
    for thread in threads:
        thread.join()
    assert order == [*range(6)]
    with lock:
        pass


def test_the_holder_lets_in_whoever_waits_and_has_it_again() -> None:
    lock, seen = FairLock(), list[str]()

    def take() -> None:
        with lock:
            seen.append("other")

    other = threading.Thread(target=take)
    with lock:
        lock.let_others()  # nobody waits
        other.start()
        while not lock._waiting:
            pass
        lock.let_others()
        seen.append("holder")
    other.join()
    assert seen == ["other", "holder"]
