"""The order of prefixes: the longest there is, is found among few and among many."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.engine import prefix_cache
from llmkit.engine.prefix_cache import Prefix, PrefixCache, n_common
from llmkit.testing.fake_runner import FakeKeysValues

# Runs of equal tokens, so that prompts share whole blocks and part at any place.
TOKENS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 80)), min_size=1, max_size=4).map(
    lambda runs: [token for token, n in runs for _ in range(n)]
)
ENTRIES = st.lists(st.tuples(TOKENS, st.booleans(), st.booleans()), max_size=8)


def added(cache: PrefixCache, tokens: list[int], *, reproducible: bool = False, idle: bool = True) -> Prefix:
    prefix = Prefix(FakeKeysValues(), reproducible)
    cache.add(prefix)
    prefix.token_ids.extend(tokens)
    if idle:
        cache.retire(prefix, 7)
    return prefix


def check_longest(cache: PrefixCache, prefixes: list[Prefix], wanted: list[int], reproducible: bool) -> None:
    lengths = [n_common(p.token_ids, wanted) for p in prefixes if p.reproducible or not reproducible]
    match = cache.longest(wanted, reproducible)
    assert (match.n_tokens if match else 0) == max(lengths, default=0)
    if match:
        assert match.prefix.token_ids[: match.n_tokens] == wanted[: match.n_tokens]
        assert match.prefix.reproducible or not reproducible


@given(entries=ENTRIES, wanted=TOKENS, reproducible=st.booleans())
def test_the_longest_match_is_found_at_any_token(
    entries: list[tuple[list[int], bool, bool]], wanted: list[int], reproducible: bool
) -> None:
    cache = PrefixCache()
    prefixes = [added(cache, tokens, reproducible=mode, idle=idle) for tokens, mode, idle in entries]
    check_longest(cache, prefixes, wanted, reproducible)


@given(entries=ENTRIES, wanted=TOKENS, data=st.data())
def test_what_was_cut_off_or_removed_is_not_found(
    entries: list[tuple[list[int], bool, bool]], wanted: list[int], data: st.DataObject
) -> None:
    cache = PrefixCache()
    prefixes = [added(cache, tokens, reproducible=mode, idle=idle) for tokens, mode, idle in entries]
    for prefix in list(prefixes):
        kind = data.draw(st.sampled_from(["stays", "is cut", "grows", "is removed"]))
        if kind == "is removed":
            cache.remove(prefix)
            prefixes.remove(prefix)
        elif kind != "stays":
            if prefix in cache.idle:
                assert cache.revive(prefix) == 7
            del prefix.token_ids[data.draw(st.integers(1, len(prefix))) :]
            prefix.token_ids.extend(data.draw(TOKENS) if kind == "grows" else [])
            if data.draw(st.booleans()):
                cache.retire(prefix, 7)
    check_longest(cache, prefixes, wanted, False)
    for prefix in prefixes:
        cache.remove(prefix)
    assert not cache.live
    assert not cache.idle
    assert cache.longest(wanted, False) is None


@given(entries=ENTRIES, tokens=TOKENS, mode=st.booleans())
def test_prefixes_of_each_other_are_found(
    entries: list[tuple[list[int], bool, bool]], tokens: list[int], mode: bool
) -> None:
    cache = PrefixCache()
    others = [added(cache, other, reproducible=mode, idle=idle) for other, mode, idle in entries]
    prefix = added(cache, tokens, reproducible=mode, idle=False)
    covering = {p for p in others if p.token_ids[: len(tokens)] == tokens and (p.reproducible or not mode)}
    covered = [
        p for p in others if p in cache.idle and tokens[: len(p)] == p.token_ids and (mode or not p.reproducible)
    ]
    found = cache.covering(prefix)
    assert found in covering if covering else found is None
    assert sorted(map(id, cache.covered_by(prefix))) == sorted(map(id, covered))


def test_nothing_in_common_is_no_match() -> None:
    cache = PrefixCache()
    added(cache, [1, 2, 3])
    assert cache.longest([2, 3], False) is None
    assert cache.longest([], False) is None


def test_of_equal_matches_the_one_that_can_be_adopted_whole_is_taken() -> None:
    cache = PrefixCache()
    added(cache, [1, 2], idle=False)
    added(cache, [1, 2, 3])
    added(cache, [1, 2], reproducible=True)
    best = added(cache, [1, 2])
    added(cache, [1, 2, 3, 4])
    match = cache.longest([1, 2, 9], False)
    assert match is not None
    assert match.prefix is best


def test_touching_makes_a_prefix_the_most_recently_used() -> None:
    cache = PrefixCache()
    first, second = added(cache, [1]), added(cache, [2])
    live = added(cache, [3], idle=False)
    cache.touch(first)
    cache.touch(live)
    assert list(cache.idle) == [second, first]


@pytest.mark.parametrize(("first", "second", "n"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], (1, 2, 4, 5), 2)])
def test_common_tokens_are_counted(first: list[int], second: list[int], n: int) -> None:
    assert n_common(first, second) == n


def test_many_idle_prefixes_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, cache, n_compared = random.Random(1), PrefixCache(), [0]
    system = draw.choices(range(100), k=150)  # that all of them begin with
    prefixes = [added(cache, [*system, *draw.choices(range(100), k=90)]) for _ in range(2000)]

    def counted(first: list[int], second: list[int]) -> int:
        n_compared[0] += 1
        return n_common(first, second)

    monkeypatch.setattr(prefix_cache, "n_common", counted)
    monkeypatch.setattr(prefix_cache, "_tokens", lambda prefix: counted([], []) or prefix.token_ids)
    for prefix in prefixes[::100]:
        match = cache.longest([*prefix.token_ids[:200], 100], False)
        assert match is not None
        assert (match.prefix, match.n_tokens) == (prefix, 200)
        longer = added(cache, [*prefix.token_ids, 5], idle=False)
        assert cache.covering(longer) is None
        assert cache.covered_by(longer) == [prefix]
        cache.remove(longer)
    assert n_compared[0] / len(prefixes[::100]) < 100
