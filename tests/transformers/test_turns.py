"""The lock that goes round."""

from __future__ import annotations

import threading

from llmkit_transformers.turns import Turns


def test_threads_have_it_in_the_order_in_which_they_ask_and_never_two_at_once() -> None:
    turns, order = Turns(), list[int]()
    holders = 0

    def take(number: int) -> None:
        nonlocal holders
        with turns:
            holders += 1
            assert holders == 1
            order.append(number)
            holders -= 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    with turns:
        for n, thread in enumerate(threads, 1):
            thread.start()
            while len(turns._waiting) < n:
                pass
    for thread in threads:
        thread.join()
    assert order == [*range(6)]
    with turns:
        pass


def test_the_holder_lets_in_whoever_waits_and_has_it_again() -> None:
    turns, seen = Turns(), list[str]()

    def take() -> None:
        with turns:
            seen.append("other")

    other = threading.Thread(target=take)
    with turns:
        turns.let_others()  # nobody waits
        other.start()
        while not turns._waiting:
            pass
        turns.let_others()
        seen.append("holder")
    other.join()
    assert seen == ["other", "holder"]
