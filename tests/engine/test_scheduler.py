"""The plan of a step: its budget, its order, and the share that prompts keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.engine.prefix_cache import Prefix, PrefixCache
from llmkit.engine.scheduler import Scheduler, Waiting
from llmkit.engine.sequence import TokenSequence
from llmkit.errors import ParameterError
from llmkit.testing.fake_runner import FakeKeysValues
from tests.engine.harness import make_request


def running(scheduler: Scheduler, prompt: list[int], *, n_read: int = 0, arrival: int = 0, n: int = 1) -> TokenSequence:
    request = make_request(prompt, n=n)
    prefix = Prefix(FakeKeysValues(), False, prompt[:n_read])
    unread = prompt[n_read:] or [0]
    sequence = TokenSequence(request, arrival, tuple(range(n)), prefix, unread)
    scheduler.running[sequence] = None
    return sequence


def planned(scheduler: Scheduler) -> list[tuple[TokenSequence, int]]:
    return [(share.sequence, share.n_tokens) for share in scheduler.plan()]


@given(
    tokens_per_step=st.integers(2, 50),
    n_decoding=st.integers(0, 60),
    prompts=st.lists(st.integers(1, 100), max_size=10),
)
def test_a_plan_keeps_its_budget_and_wastes_none_of_it(
    tokens_per_step: int, n_decoding: int, prompts: list[int]
) -> None:
    scheduler = Scheduler(tokens_per_step, 100)
    for _ in range(n_decoding):
        running(scheduler, [1], n_read=1)
    for arrival, n_tokens in enumerate(prompts):
        running(scheduler, [1] * n_tokens, arrival=arrival)
    plan = planned(scheduler)
    assert sum(n for _, n in plan) == min(tokens_per_step, n_decoding + sum(prompts))
    assert all(n >= 1 for _, n in plan)
    for_prompts = sum(n for sequence, n in plan if not sequence.is_decoding)
    assert for_prompts >= min(sum(prompts), max(1, tokens_per_step // 4))


def test_decoding_goes_first_and_prompts_follow_in_the_order_of_arrival() -> None:
    scheduler = Scheduler(10, 10)
    late = running(scheduler, [1] * 6, arrival=3)
    early = running(scheduler, [1] * 5, n_read=1, arrival=2)
    decoding = running(scheduler, [1], n_read=1, arrival=4)
    assert planned(scheduler) == [(decoding, 1), (early, 4), (late, 5)]


def test_decoding_sequences_take_turns_where_not_all_fit() -> None:
    scheduler = Scheduler(2, 10)
    sequences = [running(scheduler, [1], n_read=1) for _ in range(5)]
    served = [sequence for _ in range(5) for sequence, _ in planned(scheduler)]
    assert all(served.count(sequence) == 2 for sequence in sequences)


def test_a_token_is_asked_for_only_at_the_end_of_the_prompt() -> None:
    scheduler = Scheduler(4, 10)
    sequence = running(scheduler, [1, 2, 3, 4, 5], n=2)
    first = scheduler.plan()[0].to_slice()
    assert (list(first.token_ids), first.start, list(first.samplers)) == ([1, 2, 3, 4], 0, [])
    del sequence.unread[:4]
    sequence.prefix.token_ids.extend([1, 2, 3, 4])
    last = scheduler.plan()[0].to_slice()
    assert (list(last.token_ids), last.start) == ([5], 4)
    assert list(last.samplers) == sequence.request.samplers


def test_a_prompt_counts_as_many_times_as_it_will_be_split() -> None:
    scheduler = Scheduler(10, 5)
    running(scheduler, [1], n=4)
    assert scheduler.has_room_for(make_request([1]))
    assert not scheduler.has_room_for(make_request([1], n=2))


@pytest.mark.parametrize(
    ("n_shared", "n_read", "arrival", "awaits"),
    [
        (64, 0, 1, True),
        (63, 0, 1, False),  # less than a block
        (100, 99, 1, True),
        (100, 100, 1, False),  # it is there already
        (100, 0, 3, False),  # the other one came later
    ],
)
def test_a_request_awaits_the_beginning_that_another_reads(
    n_shared: int, n_read: int, arrival: int, awaits: bool
) -> None:
    scheduler, cache = Scheduler(10, 10), PrefixCache()
    ahead = running(scheduler, [1] * n_shared + [2] * 9, arrival=arrival)
    cache.add(ahead.prefix)
    ahead.prefix.token_ids.extend(([1] * n_shared)[:n_read])
    waiting = Waiting(make_request([1] * n_shared + [3]), 2)
    assert scheduler.awaits_prefix(waiting, cache) == awaits


def test_waiting_for_a_beginning_ends_when_it_is_read() -> None:
    scheduler, cache = Scheduler(10, 10), PrefixCache()
    ahead = running(scheduler, [1] * 100 + [2] * 50, arrival=1)
    cache.add(ahead.prefix)
    waiting = Waiting(make_request([1] * 100 + [3]), 2)
    assert scheduler.awaits_prefix(waiting, cache)
    ahead.prefix.token_ids.extend([1] * 99)
    assert scheduler.awaits_prefix(waiting, cache)
    ahead.prefix.token_ids.extend([1])
    assert not scheduler.awaits_prefix(waiting, cache)


def test_the_last_token_of_a_prompt_is_not_worth_waiting_for() -> None:
    scheduler, cache = Scheduler(10, 10), PrefixCache()
    ahead = running(scheduler, [1] * 64 + [2], arrival=1)
    cache.add(ahead.prefix)
    assert not scheduler.awaits_prefix(Waiting(make_request([1] * 64), 2), cache)


@pytest.mark.parametrize(("tokens_per_step", "max_running"), [(1, 1), (2, 0)])
def test_bounds_too_small_are_refused(tokens_per_step: int, max_running: int) -> None:
    with pytest.raises(ParameterError, match="must be at least"):
        Scheduler(tokens_per_step, max_running)
