"""Memory for keys and values: adopted or copied, evicted in order, never beyond the budget."""

import pytest

from llmkit.engine.memory import KVMemory
from llmkit.engine.prefix_cache import Prefix
from llmkit.engine.runner import TILE
from llmkit.engine.sequence import EngineRequest
from llmkit.testing.fake_runner import FakeRunner
from tests.engine.harness import make_request


class Books:
    """A memory, and how its prefixes come to have tokens."""

    def __init__(self, tiles: int, max_cached_tiles: int | None = None) -> None:
        self.runner = FakeRunner()
        max_cached_bytes = None if max_cached_tiles is None else max_cached_tiles * TILE
        self.memory = KVMemory(self.runner, tiles * TILE, max_cached_bytes=max_cached_bytes)

    def begin(self, prompt: list[int], *, max_tokens: int = 1, reproducible: bool = False) -> Prefix:
        request = make_request(prompt, max_tokens=max_tokens, reproducible=reproducible)
        assert self.memory.has_room_for(request)
        prefix = self.memory.begin(request)
        self._read(prefix, request)
        return prefix

    def keep(self, prompt: list[int], **wishes: bool) -> Prefix:
        prefix = self.begin(prompt, **wishes)
        self.memory.retire(prefix)
        return prefix

    def holds(self, prefix: Prefix) -> bool:
        return prefix.keys_values in self.runner.in_use

    def _read(self, prefix: Prefix, request: EngineRequest) -> None:
        unread = request.prompt_ids[len(prefix) :]
        for token_id in unread:
            prefix.keys_values.append(token_id, request.reproducible)
        self.memory.read(prefix, unread)
        assert self.runner.allocated_bytes <= self.memory.budget_bytes


def filled(token_id: int, tiles: int) -> list[int]:
    """A prompt that, with one new token, fills whole tiles."""
    return [token_id] * (tiles * TILE - 1)


def test_a_whole_prefix_is_adopted() -> None:
    books = Books(10)
    left = books.keep([1] * 100)
    assert books.begin([1] * 100 + [2] * 200) is left
    assert (books.runner.n_forked, books.memory.n_adopted) == (0, 1)


@pytest.mark.parametrize(("n_longer", "is_adopted"), [(0, True), (1, True), (TILE, True), (TILE + 1, False)])
def test_a_prefix_is_adopted_if_little_is_cut_off(n_longer: int, is_adopted: bool) -> None:
    books = Books(20)
    left = books.keep([1] * 100 + [2] * n_longer)
    taken = books.begin([1] * 100 + [3] * 200)
    assert (taken is left) == is_adopted
    assert (books.memory.n_adopted, books.memory.n_forked) == ((1, 0) if is_adopted else (0, 1))
    assert taken.token_ids == [1] * 100 + [3] * 200


def test_a_prefix_in_use_is_copied() -> None:
    books = Books(10)
    running = books.begin([1] * 100)
    taken = books.begin([1] * 100 + [2])
    assert taken is not running
    assert (books.memory.n_forked, books.memory.hit_tokens) == (1, 100)


def test_a_reproducible_prefix_stays_when_a_fast_request_uses_it() -> None:
    books = Books(10)
    left = books.keep([1] * 100, reproducible=True)
    taken = books.begin([1] * 100 + [2])
    assert taken is not left
    assert left in books.memory.cache.idle
    assert not taken.reproducible


def test_a_long_prefix_is_adopted_where_there_is_no_room_for_a_copy() -> None:
    books = Books(5)
    left = books.keep(filled(1, 4))
    taken = books.begin([1] * 64 + [2] * 191, max_tokens=1)
    assert taken is left
    assert taken.token_ids == [1] * 64 + [2] * 191


def test_a_fast_request_that_adopts_a_reproducible_prefix_makes_it_fast() -> None:
    books = Books(5)
    left = books.keep(filled(1, 4), reproducible=True)
    assert books.begin(filled(1, 4)) is left
    assert not left.reproducible


def test_a_prefix_bigger_than_the_newcomer_is_given_up_where_both_do_not_fit() -> None:
    books = Books(5)
    left = books.keep(filled(1, 5))
    taken = books.begin([1] * 100)
    assert not books.holds(left)
    assert taken.token_ids == [1] * 100
    assert books.memory.hit_tokens == 0


def test_the_least_recently_used_goes_first() -> None:
    books = Books(8)
    first, second, third = (books.keep(filled(n, 2)) for n in (1, 2, 3))
    books.memory.retire(books.begin([1] * 10 + [9]))  # a copy of the first is a use of it
    books.begin(filled(4, 4))
    assert [books.holds(prefix) for prefix in (first, second, third)] == [True, False, False]


def test_what_is_in_use_is_never_evicted() -> None:
    books = Books(6)
    running, idle = books.begin(filled(1, 3)), books.keep(filled(2, 3))
    request = make_request(filled(3, 3), max_tokens=1)
    books.memory.begin(request)
    assert books.holds(running)
    assert not books.holds(idle)
    assert not books.memory.has_room_for(make_request([4], max_tokens=1))


def test_the_source_of_a_copy_is_not_evicted_for_it() -> None:
    books = Books(7)
    source, other = books.keep(filled(1, 3)), books.keep(filled(2, 2))
    taken = books.begin([1] * 64 + [2] * 100)
    assert books.holds(source)
    assert not books.holds(other)
    assert books.memory.n_forked == 1
    assert taken is not source


def test_promised_bytes_count_before_they_are_allocated() -> None:
    books = Books(4)
    books.begin([1], max_tokens=3 * TILE)
    assert books.memory.live_bytes == TILE
    assert books.memory.reserved_bytes == 4 * TILE
    assert not books.memory.has_room_for(make_request([2], max_tokens=1))


def test_choices_divide_what_was_promised() -> None:
    books, request = Books(6), make_request([1] * 10, n=3, max_tokens=100)
    source = books.memory.begin(request)
    assert books.memory.reserved_bytes == 6 * TILE
    books._read(source, request)
    for _ in range(2):
        books.memory.split(source, request)
        assert books.memory.reserved_bytes == 6 * TILE
    assert set(books.memory.live.values()) == {2 * TILE}


def test_a_prefix_that_another_has_whole_is_not_kept_twice() -> None:
    books = Books(10)
    long, short = books.begin([1] * 100), books.begin([1] * 50)
    books.memory.retire(long)
    books.memory.retire(short)
    assert list(books.memory.cache.idle) == [long]


def test_prefixes_of_what_is_kept_are_dropped() -> None:
    books = Books(10)
    short, long = books.begin([1] * 70), books.begin([1] * 200)
    books.memory.retire(short)
    assert not books.holds(short)  # the running one has all of it
    other = books.keep([1] * 30 + [2])
    books.memory.retire(long)
    assert set(books.memory.cache.idle) == {other, long}
    longer = books.begin([1] * 30 + [2] * 300)
    books.memory.retire(longer)
    assert set(books.memory.cache.idle) == {longer, long}


def test_a_reproducible_prefix_replaces_the_fast_ones_with_which_it_begins() -> None:
    books = Books(10)
    shorter, other = books.keep([1] * 70), books.keep([2] * 70)
    exact = books.keep([1] * 200, reproducible=True)
    assert list(books.memory.cache.idle) == [other, exact]
    assert not books.holds(shorter)
    assert books.memory.cached_bytes == books.runner.allocated_bytes


def test_a_fast_prefix_does_not_replace_a_reproducible_one() -> None:
    books = Books(10)
    fast, exact = books.begin([1] * 50), books.begin([1] * 50, reproducible=True)
    books.memory.retire(fast)
    books.memory.retire(exact)
    assert list(books.memory.cache.idle) == [exact]
    longer = books.begin([2] * 50)
    assert longer is not exact


def test_nothing_read_is_nothing_to_keep() -> None:
    books = Books(10)
    prefix = books.memory.begin(make_request([1, 2]))
    books.memory.retire(prefix)
    assert not books.memory.cache.idle
    assert not books.holds(prefix)


def test_clearing_frees_everything() -> None:
    books = Books(10)
    books.begin([1] * 50)
    books.keep([2] * 50)
    books.memory.clear()
    books.runner.close()
    assert (books.memory.cached_bytes, books.memory.reserved_bytes) == (0, 0)


def test_what_is_kept_for_later_stays_within_a_bound_of_its_own() -> None:
    books = Books(10, max_cached_tiles=3)
    first, second = books.keep(filled(1, 2)), books.keep(filled(2, 1))
    assert books.holds(first)
    assert books.holds(second)
    third = books.keep(filled(3, 2))
    assert [books.holds(prefix) for prefix in (first, second, third)] == [False, True, True]
    assert books.memory.cached_bytes == 3 * TILE
