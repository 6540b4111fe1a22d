"""Timing and its record: interleaved rounds, quartiles, and rows for the table and the JSON file.

It knows nothing of what is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: a median, its quartiles, and the limit that it must keep.

    Attributes:
        workload: what was done.
        what: which figure of it.
        unit: `s`, or `x` for a ratio of wall times (below 1 is faster than the other side).
        median: the middle of the rounds.
        low: the first quartile.
        high: the third quartile.
        n: rounds.
        limit: the most that the median may be; None where there is no promise.
    """

    workload: str
    what: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    limit: float | None = None

    @property
    def keeps_limit(self) -> bool | None:
        return None if self.limit is None else self.median <= self.limit


def row(workload: str, what: str, unit: str, values: Sequence[float], limit: float | None = None) -> Row:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Row(workload, what, unit, median, low, high, len(values), limit)


def in_own_thread(call: Callable[[], T]) -> T:
    """What a call gives, made in a thread of its own, whose OpenMP pool ends with it.

    As soon as the pools of a process have more threads than there are cores, libgomp lets all of them sleep at once
    when they wait: a pool that one side leaves behind makes every side slow.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def elapsed_s(call: Callable[[], object]) -> float:
    """Seconds of a call in a thread of its own."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return in_own_thread(timed)


def interleaved(
    sides: Mapping[str, Callable[[], object]], n_rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one warm-up of each.

    All sides run in every round, so a machine that slows down slows all of them; every other round runs them in
    reverse, so that none always comes first.

    Args:
        sides: what is timed.
        n_rounds: how often.
        before: called before the warm-up and before each round, untimed: it may draw other prompts.
    """
    before()
    for call in sides.values():
        elapsed_s(call)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(n_rounds):
        before()
        for name in list(sides) if n % 2 == 0 else reversed(sides):
            seconds[name].append(elapsed_s(sides[name]))
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios of the two sides, round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
