"""The engine as a whole: whatever else runs, each request gets what it would get alone."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.engine.engine import Engine
from llmkit.engine.runner import TILE, KeysValues
from llmkit.errors import CacheBudgetExceeded, GenerationError, InvalidRequest
from llmkit.testing.fake_runner import FakeKeysValues, FakeRunner, FakeRunnerError
from llmkit.text import OutputText
from tests.engine.harness import SOME_EOS, Driver, alone, decode, make_request


def shared_prompt(rng: random.Random, longest: int) -> list[int]:
    """A prompt over two tokens: a beginning that many have, and an end that few have."""
    n_shared = rng.randrange(longest + 1)
    common = random.Random(rng.randrange(2)).choices(range(2), k=n_shared)
    return [*common, *rng.choices(range(2), k=rng.randrange(1, longest // 4 + 2))]


class Scenario:
    """Requests that arrive and are cancelled at random steps, under random limits."""

    def __init__(self, seed: int, n_requests: int = 12) -> None:
        self.rng = random.Random(seed)
        longest = self.rng.choice([8, 80, 300])
        self.requests = [self._request(longest) for _ in range(n_requests)]
        biggest = max(FakeRunner().bytes_for(len(r.prompt_ids) + r.max_tokens) * r.n_choices for r in self.requests)
        self.driver = Driver(
            kv_budget_bytes=int(biggest * self.rng.choice([1, 1.5, 3, 10, 100])),
            tokens_per_step=self.rng.choice([2, 3, 7, 64, 200, 1000]),
            max_running=self.rng.choice([4, 5, 16]),
        )

    def _request(self, longest: int):
        return make_request(
            shared_prompt(self.rng, longest),
            n=self.rng.choice([1, 1, 1, 2, 4]),
            max_tokens=self.rng.choice([1, 2, 5, 20, 90]),
            reproducible=self.rng.random() < 0.5,
            eos_ids=SOME_EOS,
        )

    def play(self) -> None:
        waiting = list(self.requests)
        while waiting or self.driver.engine.has_work:
            for _ in range(min(len(waiting), self.rng.choice([0, 0, 0, 1, 5]))):
                self.driver.add(waiting.pop())
            if self.driver.open and self.rng.random() < 0.03:
                self.driver.cancel(self.rng.choice(list(self.driver.open)))
            self.driver.step()


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32))
def test_every_request_gets_the_tokens_that_it_gets_alone(seed: int) -> None:
    scenario = Scenario(seed)
    scenario.play()
    driver = scenario.driver
    assert not driver.failed
    for request in scenario.requests:
        for got, expected in zip(driver.tokens[request], alone(request, SOME_EOS), strict=True):
            assert got == (expected[: len(got)] if request in driver.cancelled else expected)
    driver.close()


def test_two_thousand_requests_with_cancellations_leave_nothing_behind() -> None:
    rng, driver = random.Random(0), Driver(kv_budget_bytes=12_000, tokens_per_step=128, max_running=24)
    n_added = 0
    while n_added < 2000 or driver.engine.has_work:
        for _ in range(min(rng.randrange(3), 2000 - n_added)):
            driver.add(make_request(shared_prompt(rng, 200), n=rng.choice([1, 1, 3]), max_tokens=rng.randrange(1, 40)))
            n_added += 1
        if driver.open and rng.random() < 0.15:
            driver.cancel(rng.choice(list(driver.open)))
        driver.step()
    figures = driver.engine.figures()
    assert not driver.open
    assert not driver.failed
    assert len(driver.cancelled) > 100
    assert (figures.running_sequences, figures.live_bytes, figures.promised_bytes) == (0, 0, 0)
    assert 0 < figures.cached_bytes <= figures.budget_bytes
    driver.close()


@settings(max_examples=60)
@given(
    tokens_per_step=st.integers(2, 40),
    max_running=st.integers(1, 6),
    n_before=st.integers(0, 6),
    prompt_tokens=st.integers(1, 300),
    tiles=st.integers(6, 20),
    rng=st.randoms(use_true_random=False),
)
def test_a_request_ends_in_time_while_others_keep_coming(
    tokens_per_step: int, max_running: int, n_before: int, prompt_tokens: int, tiles: int, rng: random.Random
) -> None:
    driver = Driver(kv_budget_bytes=tiles * TILE, tokens_per_step=tokens_per_step, max_running=max_running)
    before = [make_request(shared_prompt(rng, 100), max_tokens=rng.randrange(1, 9)) for _ in range(n_before)]
    request = make_request(shared_prompt(rng, 10)[:1] * prompt_tokens, max_tokens=9)
    driver.add(*before, request)
    prompts_share, texts_share = max(1, tokens_per_step // 4), tokens_per_step - max(1, tokens_per_step // 4)
    work = [(len(r.prompt_ids) // prompts_share + 1, r.max_tokens * (max_running // texts_share + 1)) for r in before]
    work += [(prompt_tokens // prompts_share + 1, 9 * (max_running // texts_share + 1))]
    for _ in range(sum(map(sum, work))):
        for _ in range(rng.randrange(3)):
            driver.add(make_request(shared_prompt(rng, 100), max_tokens=rng.randrange(1, 9)))
        driver.step()
    assert request not in driver.open


def test_nobody_passes_a_request_that_waits_for_memory() -> None:
    driver = Driver(kv_budget_bytes=4 * TILE)
    driver.add(make_request([1], max_tokens=10))
    driver.step()
    big = make_request([2], max_tokens=200)
    driver.add(big)
    for n in range(250):
        driver.add(make_request([3 + n], max_tokens=10))
        driver.step()
    assert big not in driver.open


def test_a_shared_beginning_is_read_once() -> None:
    rng, driver = random.Random(1), Driver(max_running=64)
    common = rng.choices(range(1000), k=400)
    own = [[1000 + n, *rng.choices(range(1000), k=rng.randrange(15, 40))] for n in range(64)]
    requests = [make_request([*common, *tail], max_tokens=10) for tail in own]
    driver.run(*requests)
    assert driver.runner.n_tokens_read == 400 + sum(map(len, own)) + 64 * 9
    assert driver.runner.n_new == 1
    assert driver.engine.figures().hit_requests == 63
    assert driver.engine.figures().hit_tokens == 63 * 400
    assert all(driver.tokens[request] == alone(request) for request in requests)


def test_those_who_await_a_beginning_let_others_pass() -> None:
    driver = Driver(tokens_per_step=64)
    first, second = make_request([1] * 200 + [2]), make_request([1] * 200 + [3])
    other = make_request([4])
    driver.add(first, second, other)
    driver.step()
    assert driver.engine.n_waiting == 1
    driver.run()
    assert driver.runner.n_tokens_read == 201 + 1 + 1 + 3 * 3


def test_one_who_awaits_a_beginning_goes_on_when_its_reader_is_cancelled() -> None:
    driver = Driver(tokens_per_step=64)
    first, second = make_request([1] * 200 + [2]), make_request([1] * 200 + [3])
    driver.add(first, second)
    driver.step()
    driver.cancel(first)
    driver.run()
    assert driver.tokens[second] == alone(second)
    assert driver.runner.n_tokens_read == 201 + 3


def test_choices_share_the_prompt_and_the_logits_of_its_end() -> None:
    driver = Driver(tokens_per_step=1000)
    request = make_request(range(768), n=8, max_tokens=16)
    driver.run(request)
    assert driver.runner.n_tokens_read == 768 + 8 * 15
    assert (driver.runner.n_new, driver.runner.n_forked) == (1, 7)
    assert driver.tokens[request] == alone(request)
    assert len(set(map(tuple, driver.tokens[request]))) == 8


def test_choices_that_end_with_their_first_token_are_not_copied() -> None:
    driver = Driver()
    request = make_request([1, 2, 3], n=4, max_tokens=1)
    driver.run(request)
    assert driver.runner.n_forked == 0
    assert driver.tokens[request] == alone(request)


def test_what_was_promised_to_choices_that_ended_is_free_again() -> None:
    driver, request = Driver(), make_request([1, 2, 3], n=4, max_tokens=100)
    ends = [tokens[0] for tokens in alone(request)[::2]]
    driver.add(make_request([1, 2, 3], n=4, max_tokens=100, eos_ids=ends))
    driver.step()
    figures = driver.engine.figures()
    assert figures.running_sequences == 2
    assert figures.live_bytes + figures.promised_bytes == 2 * driver.runner.bytes_for(103)


def test_a_chat_turn_reads_only_what_is_new() -> None:
    driver, prompt = Driver(), list(range(100))
    for turn in range(5):
        n_read = driver.runner.n_tokens_read
        request = make_request(prompt, max_tokens=30)
        driver.run(request)
        assert driver.tokens[request] == alone(request)
        # The answer's last token was never read; it comes with the new turn.
        assert driver.runner.n_tokens_read - n_read == (100 if turn == 0 else 1 + 10) + 29
        prompt += driver.tokens[request][0] + list(range(turn, turn + 10))
    assert (driver.runner.n_new, driver.runner.n_forked) == (1, 0)
    assert driver.engine.figures().adopted_requests == 4


def test_a_repeated_prompt_is_read_for_its_last_token_alone() -> None:
    driver = Driver()
    driver.run(make_request(range(200), max_tokens=1))
    n_read = driver.runner.n_tokens_read
    driver.run(make_request(range(200), max_tokens=1))
    assert driver.runner.n_tokens_read == n_read + 1


@pytest.mark.parametrize(("first", "then", "n_read_again"), [(False, True, 200), (True, False, 1), (True, True, 1)])
def test_fast_prefixes_never_serve_reproducible_requests(first: bool, then: bool, n_read_again: int) -> None:
    driver = Driver()
    driver.run(make_request(range(200), max_tokens=1, reproducible=first))
    n_read = driver.runner.n_tokens_read
    request = make_request(range(200), max_tokens=1, reproducible=then)
    driver.run(request)
    assert driver.runner.n_tokens_read == n_read + n_read_again
    assert not driver.failed


def test_a_reproducible_request_does_not_await_a_fast_one() -> None:
    driver = Driver(tokens_per_step=64)
    driver.add(make_request([1] * 200), make_request([1] * 200, reproducible=True))
    driver.step()
    assert driver.engine.n_waiting == 0


def test_a_request_that_can_never_fit_is_refused_with_the_figures() -> None:
    engine = Engine(FakeRunner(), kv_budget_bytes=4 * TILE)
    engine.add(make_request([1] * 60, max_tokens=68, n=2))
    with pytest.raises(CacheBudgetExceeded, match=r"2 x 129 tokens .* 384 bytes .* 256 bytes") as caught:
        engine.add(make_request([1] * 60, max_tokens=69, n=2))
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (6 * TILE, 4 * TILE)
    assert engine.n_waiting == 1


def test_more_choices_than_may_run_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 choices at most, got 3"):
        Engine(FakeRunner(), kv_budget_bytes=1 << 20, max_running=2).add(make_request([1], n=3))


def test_a_request_waits_for_memory() -> None:
    driver = Driver(kv_budget_bytes=3 * TILE)
    first, second = make_request([1], max_tokens=100), make_request([2], max_tokens=100)
    driver.add(first, second)
    driver.step()
    assert driver.engine.figures().running_sequences == 1
    driver.run()
    assert [driver.tokens[r] for r in (first, second)] == [alone(r) for r in (first, second)]


def test_a_step_that_raises_fails_its_own_requests_and_no_others() -> None:
    driver = Driver(FakeRunner(fail_at={3}), max_running=2)
    victims = [make_request([n] * 10, max_tokens=8) for n in (1, 2)]
    survivors = [make_request([n] * 10, max_tokens=8) for n in (3, 4)]
    driver.run(*victims, *survivors)
    assert set(driver.failed) == set(victims)
    assert all(driver.tokens[request] == alone(request) for request in survivors)
    for error in driver.failed.values():
        assert isinstance(error, GenerationError)
        assert isinstance(error.__cause__, FakeRunnerError)
    first, second = driver.failed.values()
    assert first is not second
    driver.close()


def test_who_had_no_part_in_a_failed_step_goes_on() -> None:
    driver = Driver(FakeRunner(fail_at={5}), tokens_per_step=2)
    requests = [make_request([n], max_tokens=8) for n in range(3)]
    driver.run(*requests)
    assert 0 < len(driver.failed) < 3
    for request in set(requests) - set(driver.failed):
        assert driver.tokens[request] == alone(request)


def test_what_a_failed_request_read_is_not_reused() -> None:
    driver = Driver(FakeRunner(fail_at={3}), tokens_per_step=64)
    driver.run(make_request(range(200)))
    assert driver.engine.figures().cached_prefixes == 0
    request = make_request(range(200))
    driver.run(request)
    assert driver.tokens[request] == alone(request)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), fail_at=st.sets(st.integers(1, 60), max_size=6))
def test_failures_leave_no_trace_in_the_others(seed: int, fail_at: set[int]) -> None:
    scenario = Scenario(seed)
    scenario.driver.runner._fail_at = fail_at
    scenario.play()
    for request in set(scenario.requests) - set(scenario.driver.failed) - scenario.driver.cancelled:
        assert scenario.driver.tokens[request] == alone(request, SOME_EOS)
    scenario.driver.close()


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_a_text_that_cannot_be_decoded_fails_its_own_request(n_tokens: int) -> None:
    def decode_some(token_ids: Sequence[int]) -> str:
        if len(token_ids) == n_tokens:
            raise UnicodeError("no such token")
        return "."

    driver = Driver()
    broken, sound = make_request([1], n=3), make_request([2])
    broken.outputs = [OutputText(decode_some), *broken.outputs[1:]]
    driver.run(broken, sound)
    assert isinstance(driver.failed[broken].__cause__, UnicodeError)
    assert driver.tokens[sound] == alone(sound)
    driver.close()


class RefusesToFork(FakeRunner):
    def fork(self, source: KeysValues, n_tokens: int) -> FakeKeysValues:
        raise MemoryError("no memory for a copy")


class RefusesToTruncate(FakeRunner):
    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        raise MemoryError("the buffer is gone")


def test_choices_that_cannot_be_copied_fail_their_request() -> None:
    driver = Driver(RefusesToFork())
    choices, single = make_request([1, 2], n=3), make_request([3])
    driver.run(choices, single)
    assert isinstance(driver.failed[choices].__cause__, MemoryError)
    assert driver.tokens[single] == alone(single)
    driver.close()


@pytest.mark.parametrize(("runner", "n_more"), [(RefusesToFork(), 200), (RefusesToTruncate(), 1)])
def test_a_prefix_that_cannot_be_reused_fails_the_request_that_wanted_it(runner: FakeRunner, n_more: int) -> None:
    driver = Driver(runner)
    driver.run(make_request([*range(100), *[7] * n_more], max_tokens=1))
    victim, sound = make_request([*range(100), 8]), make_request([5])
    driver.run(victim, sound)
    assert isinstance(driver.failed[victim].__cause__, MemoryError)
    assert driver.tokens[sound] == alone(sound)
    driver.close()


def test_a_cancelled_request_leaves_what_it_has_read() -> None:
    driver = Driver(tokens_per_step=64)
    request = make_request(range(200))
    driver.add(request)
    driver.step()
    driver.cancel(request)
    assert driver.engine.figures().running_sequences == 0
    assert driver.engine.figures().cached_bytes == TILE
    driver.run(make_request(range(200)))
    assert driver.engine.figures().hit_tokens == 64


def test_a_waiting_request_can_be_cancelled() -> None:
    driver = Driver(max_running=1)
    first, second = make_request([1]), make_request([2])
    driver.add(first, second)
    driver.step()
    driver.cancel(second)
    driver.run()
    assert driver.tokens[second] == [[]]


def test_max_tokens_ends_a_choice_whose_output_does_not() -> None:
    request = make_request([1], max_tokens=3)
    request.outputs[0]._max_tokens = None
    driver = Driver()
    driver.run(request)
    assert len(driver.tokens[request][0]) == 3
    assert request.outputs[0].finish_reason == "length"


def test_pieces_join_to_the_text_of_the_tokens() -> None:
    driver = Driver()
    request = make_request([1, 2], n=2, max_tokens=6)
    driver.run(request)
    assert driver.texts[request] == [decode(tokens) for tokens in alone(request)]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt_ids": ()}, "at least one token, got none"),
        ({"samplers": []}, "got 0 samplers and 1 outputs"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_a_malformed_request_is_refused(fields: dict[str, object], problem: str) -> None:
    request = make_request([1])
    sound = {name: getattr(request, name) for name in request.__dataclass_fields__}
    with pytest.raises(InvalidRequest, match=problem):
        type(request)(**{**sound, **fields})
