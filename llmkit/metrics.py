"""Timings of the generations of one model object: the last one and running totals.

Owns the arithmetic of tokens per second, latency and throughput, and its saved form. It reads no clock and counts no
tokens: whoever generates measures, and records the figures here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias, cast

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True, slots=True)
class GenerationTiming:
    """What one generation took.

    Attributes:
        elapsed_s: Wall-clock seconds from the call to the last token.
        time_to_first_token_s: Seconds from the call to the first token; None where nobody saw it arrive.
        prompt_tokens: Tokens read; None where they were not counted.
        completion_tokens: Tokens generated; None where they were not counted.

    Raises:
        ValueError: A duration is not a finite number >= 0, or a count is not an integer >= 0.
    """

    elapsed_s: float
    time_to_first_token_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None

    def __post_init__(self) -> None:
        _check_seconds("elapsed_s", self.elapsed_s)
        if self.time_to_first_token_s is not None:
            _check_seconds("time_to_first_token_s", self.time_to_first_token_s)
        if self.prompt_tokens is not None:
            _check_count("prompt_tokens", self.prompt_tokens)
        if self.completion_tokens is not None:
            _check_count("completion_tokens", self.completion_tokens)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """All figures of a `Metrics` at one instant; `str()` gives a small table. Immutable."""

    n_generations: int
    total_elapsed_s: float
    total_completion_tokens: int
    tokens_per_second: float
    throughput: float
    generation_latency: float
    time_to_first_token: float | None

    def __str__(self) -> str:
        first_token = "unknown" if self.time_to_first_token is None else f"{self.time_to_first_token:.3f} s"
        rows = (
            ("generations", str(self.n_generations)),
            ("total time", f"{self.total_elapsed_s:.3f} s"),
            ("completion tokens", str(self.total_completion_tokens)),
            ("last: tokens/s", f"{self.tokens_per_second:.1f}"),
            ("last: time to first token", first_token),
            ("all: tokens/s", f"{self.throughput:.1f}"),
            ("all: mean latency", f"{self.generation_latency:.3f} s"),
        )
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value:>12}" for label, value in rows)


@dataclass(frozen=True, slots=True)
class _Totals:
    """Immutable, so that one assignment publishes a consistent set of figures."""

    n_generations: int = 0
    total_elapsed_s: float = 0.0
    # Seconds of only those generations whose tokens were counted: dividing by all seconds would understate throughput.
    counted_elapsed_s: float = 0.0
    total_completion_tokens: int = 0
    last: GenerationTiming | None = None

    def plus(self, timing: GenerationTiming) -> _Totals:
        counted_s = 0.0 if timing.completion_tokens is None else timing.elapsed_s
        return _Totals(
            self.n_generations + 1,
            self.total_elapsed_s + timing.elapsed_s,
            self.counted_elapsed_s + counted_s,
            self.total_completion_tokens + (timing.completion_tokens or 0),
            timing,
        )


class Metrics:
    """Running figures over the generations of one model object. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._write_lock = threading.Lock()
        self._totals = _Totals()

    def record(self, timing: GenerationTiming) -> None:
        """Add one finished generation."""
        with self._write_lock:
            self._totals = self._totals.plus(timing)

    @property
    def last(self) -> GenerationTiming | None:
        """The generation recorded last; None before any."""
        return self._totals.last

    @property
    def n_generations(self) -> int:
        """Generations recorded."""
        return self._totals.n_generations

    @property
    def total_elapsed_s(self) -> float:
        """Seconds of all generations added up; concurrent ones count in full each."""
        return self._totals.total_elapsed_s

    @property
    def total_completion_tokens(self) -> int:
        """Tokens generated, over all generations whose tokens were counted."""
        return self._totals.total_completion_tokens

    def tokens_per_second(self) -> float:
        """Completion tokens a second of the last generation; 0.0 before any, or where its tokens were not counted."""
        return self.snapshot().tokens_per_second

    def throughput(self) -> float:
        """Completion tokens a second over all generations whose tokens were counted; 0.0 before any."""
        return self.snapshot().throughput

    def generation_latency(self) -> float:
        """Mean seconds a generation; 0.0 before any."""
        return self.snapshot().generation_latency

    def time_to_first_token(self) -> float | None:
        """Seconds to the first token of the last generation; None before any, or where it was not seen."""
        return self.snapshot().time_to_first_token

    def snapshot(self) -> MetricsSnapshot:
        """All figures of the same instant."""
        totals = self._totals
        last = totals.last
        return MetricsSnapshot(
            n_generations=totals.n_generations,
            total_elapsed_s=totals.total_elapsed_s,
            total_completion_tokens=totals.total_completion_tokens,
            tokens_per_second=_rate(last.completion_tokens or 0, last.elapsed_s) if last else 0.0,
            throughput=_rate(totals.total_completion_tokens, totals.counted_elapsed_s),
            generation_latency=_rate(totals.total_elapsed_s, totals.n_generations),
            time_to_first_token=last.time_to_first_token_s if last else None,
        )

    def to_state(self) -> dict[str, JSON]:
        """The figures as JSON, for `restore`."""
        return cast("dict[str, JSON]", asdict(self._totals))

    def restore(self, state: Mapping[str, object]) -> None:
        """Replace all figures by those of a `to_state`.

        Raises:
            ValueError: The state is not one that `to_state` gives; the figures stay as they were.
        """
        totals = _totals_from(state)
        with self._write_lock:
            self._totals = totals

    def reset(self) -> None:
        """Forget every generation."""
        with self._write_lock:
            self._totals = _Totals()


def _rate(amount: float, divisor: float) -> float:
    return amount / divisor if divisor > 0 else 0.0


def _totals_from(state: object) -> _Totals:
    values = _exact_keys("metrics", state, _Totals)
    last = values["last"]
    totals = _Totals(
        n_generations=_check_count("n_generations", values["n_generations"]),
        total_elapsed_s=_check_seconds("total_elapsed_s", values["total_elapsed_s"]),
        counted_elapsed_s=_check_seconds("counted_elapsed_s", values["counted_elapsed_s"]),
        total_completion_tokens=_check_count("total_completion_tokens", values["total_completion_tokens"]),
        last=None if last is None else _timing_from(last),
    )
    if (totals.last is None) != (totals.n_generations == 0):
        raise ValueError(f"last must be null exactly when n_generations is 0, got n_generations {totals.n_generations}")
    if totals.counted_elapsed_s > totals.total_elapsed_s:
        raise ValueError(
            f"counted_elapsed_s must be at most total_elapsed_s ({totals.total_elapsed_s}), "
            f"got {totals.counted_elapsed_s}"
        )
    return totals


def _timing_from(state: object) -> GenerationTiming:
    values = _exact_keys("metrics.last", state, GenerationTiming)
    # The constructor checks types and ranges, so these casts promise nothing that it does not verify.
    return GenerationTiming(
        elapsed_s=cast("float", values["elapsed_s"]),
        time_to_first_token_s=cast("float | None", values["time_to_first_token_s"]),
        prompt_tokens=cast("int | None", values["prompt_tokens"]),
        completion_tokens=cast("int | None", values["completion_tokens"]),
    )


def _exact_keys(where: str, state: object, record: type[_Totals] | type[GenerationTiming]) -> Mapping[str, object]:
    names = {field.name for field in fields(record)}
    if not isinstance(state, Mapping):
        raise ValueError(f"{where} must be an object with {sorted(names)}, got {state!r}")
    values = cast("Mapping[str, object]", state)
    if set(values) != names:
        raise ValueError(f"{where} must have exactly the keys {sorted(names)}, got {sorted(map(str, values))}")
    return values


def _check_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of seconds >= 0, got {value!r}")
    return float(value)


def _check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    return value
