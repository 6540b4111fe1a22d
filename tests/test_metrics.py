from __future__ import annotations

import json
import math
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.metrics import GenerationTiming, Metrics

SECONDS = st.floats(0, 1e6)
COUNTS = st.integers(0, 10**9)
TIMINGS = st.builds(GenerationTiming, SECONDS, st.none() | SECONDS, st.none() | COUNTS, st.none() | COUNTS)
TIMING = GenerationTiming(2.0, 0.5, 10, 8)


def test_all_figures_are_zero_before_any_generation() -> None:
    metrics = Metrics()
    assert metrics.last is None
    assert (metrics.n_generations, metrics.total_elapsed_s, metrics.total_completion_tokens) == (0, 0.0, 0)
    assert (metrics.tokens_per_second(), metrics.throughput(), metrics.generation_latency()) == (0.0, 0.0, 0.0)
    assert metrics.time_to_first_token() is None


def test_rates_are_of_the_last_run_and_throughput_is_of_all() -> None:
    metrics = Metrics()
    metrics.record(TIMING)
    metrics.record(GenerationTiming(6.0, None, 10, 72))
    assert metrics.tokens_per_second() == 12.0
    assert metrics.throughput() == 10.0
    assert metrics.generation_latency() == 4.0
    assert metrics.time_to_first_token() is None
    assert (metrics.n_generations, metrics.total_elapsed_s, metrics.total_completion_tokens) == (2, 8.0, 80)


def test_a_run_without_token_count_does_not_lower_throughput() -> None:
    metrics = Metrics()
    metrics.record(TIMING)
    metrics.record(GenerationTiming(100.0, None, None, None))
    assert metrics.throughput() == 4.0
    assert metrics.tokens_per_second() == 0.0
    assert metrics.generation_latency() == 51.0


def test_a_generation_faster_than_the_clock_gives_no_division_error() -> None:
    metrics = Metrics()
    metrics.record(GenerationTiming(0.0, 0.0, 1, 5))
    assert metrics.tokens_per_second() == 0.0
    assert metrics.throughput() == 0.0


@pytest.mark.parametrize("field", ["elapsed_s", "time_to_first_token_s"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1"])
def test_a_timing_refuses_what_is_no_duration(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a finite number of seconds >= 0, got {value!r}"):
        replace(TIMING, **{field: value})


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_a_timing_refuses_what_is_no_count(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be an integer >= 0, got {value!r}"):
        replace(TIMING, **{field: value})


@given(st.lists(TIMINGS, max_size=5))
def test_a_state_survives_json_and_restores_every_figure(timings: list[GenerationTiming]) -> None:
    metrics, other = Metrics(), Metrics()
    for timing in timings:
        metrics.record(timing)
    other.record(TIMING)
    other.restore(json.loads(json.dumps(metrics.to_state())))
    assert other.snapshot() == metrics.snapshot()
    assert other.last == metrics.last


@pytest.mark.parametrize(
    "change",
    [
        {"n_generations": -1},
        {"n_generations": 0},
        {"total_elapsed_s": math.nan},
        {"counted_elapsed_s": 1e9},
        {"total_completion_tokens": 1.5},
        {"last": None},
        {"last": [1]},
        {"last": {"elapsed_s": 1.0}},
        {"unknown": 1},
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    metrics = Metrics()
    metrics.record(TIMING)
    before = metrics.to_state()
    with pytest.raises(ValueError, match="must"):
        metrics.restore({**before, "total_elapsed_s": 5.0, **change})
    assert metrics.to_state() == before


def test_a_state_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="metrics must be an object"):
        Metrics().restore([1])  # type: ignore[arg-type]


def test_reset_forgets_every_generation() -> None:
    metrics = Metrics()
    metrics.record(TIMING)
    metrics.reset()
    assert metrics.snapshot() == Metrics().snapshot()


def test_snapshot_prints_every_figure_in_aligned_lines() -> None:
    metrics = Metrics()
    metrics.record(TIMING)
    lines = str(metrics.snapshot()).splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert "0.500 s" in lines[4]


def test_concurrent_records_are_all_counted() -> None:
    metrics = Metrics()

    def record_many() -> None:
        for _ in range(2000):
            metrics.record(TIMING)

    threads = [threading.Thread(target=record_many) for _ in range(8)]
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # otherwise threads rarely meet inside one record
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_interval_s)
    assert metrics.n_generations == 16_000
    assert metrics.total_completion_tokens == 8 * 16_000
