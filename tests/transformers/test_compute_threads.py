"""The pools that torch computes with: whoever computes here gives its own back when it has nothing to do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from llmkit_transformers import TransformersLLM, compute_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")


def n_helpers() -> int:
    """Threads of this process that Python knows nothing of."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def wait_until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def compute() -> None:
    """A product that two threads share."""
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)


def test_a_pool_ends_when_it_is_given_back_and_comes_again_when_needed() -> None:
    counts: list[int] = []

    def go() -> None:
        counts.append(n_helpers())
        for _ in range(2):
            compute()
            counts.append(n_helpers())
            compute_threads.give_back()
            assert wait_until(lambda: n_helpers() == counts[0])

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert counts == [counts[0], counts[0] + 1, counts[0] + 1]


def test_giving_back_what_was_never_there_does_nothing() -> None:
    thread = threading.Thread(target=compute_threads.give_back)
    thread.start()
    thread.join()


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("engine", [True, False])
def test_an_idle_model_keeps_no_pool(engine: bool) -> None:
    compute_threads.give_back()
    before = n_helpers()
    with TransformersLLM(engine=engine) as llm:
        for options in ({}, {"seed": 1, "temperature": 1.0}, {"num_beams": 2}):
            llm.run("What is the capital of France?", max_tokens=4, **options)
        assert wait_until(lambda: n_helpers() <= before)
