"""What the calls of a model took, and what the model uses: timing, counting and the reports of both.

Every `run` of a subclass is timed here. How a text comes to be is unknown.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmkit.engine.engine import EngineFigures
from llmkit.metrics import GenerationTiming, Metrics, MetricsSnapshot
from llmkit.resources import DeviceMemory, ResourceMonitor, ResourceUsage

_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


class MeasuredCalls(ABC):
    """Times the calls of the class that inherits it, and reports on them. Safe to use from many threads."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._resources = ResourceMonitor()
        self._running = _RunningCall()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        run = cls.__dict__.get("run")
        if run is not None and not getattr(run, "__isabstractmethod__", False):
            cls.run = cls._timed(run)

    @abstractmethod
    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        """One text."""

    @abstractmethod
    def batch_run(self, tasks: Sequence[str], *args: Any, **kwargs: Any) -> list[str]:
        """One text a task."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise where there is nothing left to call."""

    def _num_tokens(self, text: str) -> int:
        """Tokens of a text; here words and punctuation signs, in a backend the model's own tokens."""
        return len(_WORD_OR_SIGN.findall(text))

    def _tokens_per_second(self) -> float:
        """Generated tokens per second of the last call; 0.0 before any."""
        return self._metrics.tokens_per_second()

    def _time_for_generation(self, task: str) -> float:
        """Run a task and return the seconds that it took."""
        self.run(task)
        return self.get_generation_time()

    def get_generation_time(self) -> float:
        """Seconds that the last call took; 0.0 before any."""
        return self._metrics.last.elapsed_s if self._metrics.last else 0.0

    def metrics(self) -> MetricsSnapshot:
        """Figures over all calls so far; prints as a small table."""
        return self._metrics.snapshot()

    def time_to_first_token(self, prompt: str | None = None) -> float | None:
        """Seconds to the first token, of a prompt that is run now or of the last call; None where it is unknown."""
        if prompt is not None:
            self.run(prompt)
        return self._metrics.time_to_first_token()

    def generation_latency(self, prompt: str | None = None) -> float:
        """Seconds a call takes: of a prompt that is run now, or the mean over all calls."""
        return self._metrics.generation_latency() if prompt is None else self._time_for_generation(prompt)

    def throughput(self, prompts: Sequence[str] | None = None) -> float:
        """Generated tokens per second: of prompts that are run now as a batch, or over all calls."""
        if prompts is None:
            return self._metrics.throughput()
        started, before = time.perf_counter(), self._metrics.total_completion_tokens
        self.batch_run(prompts)
        return (self._metrics.total_completion_tokens - before) / (time.perf_counter() - started)

    def track_resource_utilization(self) -> ResourceUsage:
        """Memory, processor and device use right now; prints as a table."""
        return self._resources.measure(self._device_memory(), self._resource_details(), self._engine_figures())

    def _device_memory(self) -> tuple[DeviceMemory, ...]:
        return ()

    def _engine_figures(self) -> EngineFigures | None:
        """What the model's engine holds and has done, where it has one."""
        return None

    def _resource_details(self) -> Mapping[str, str | int | float]:
        return {}

    def _record(self, timing: GenerationTiming) -> None:
        self._running.recorded = True
        self._metrics.record(timing)

    @staticmethod
    def _timed(run: Callable[..., str]) -> Callable[..., str]:
        """`run` with its time recorded once per outermost call, unless it recorded its own figures."""

        @functools.wraps(run)
        def timed_run(self: MeasuredCalls, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            self._check_open()
            running = self._running
            if running.active:
                return run(self, task, *args, **kwargs)
            running.active, running.recorded = True, False
            started = time.perf_counter()
            try:
                text = run(self, task, *args, **kwargs)
            finally:
                running.active = False
            if not running.recorded:
                elapsed_s = time.perf_counter() - started
                self._record(GenerationTiming(elapsed_s, None, self._num_tokens(task or ""), self._num_tokens(text)))
            return text

        return timed_run


class _RunningCall(threading.local):
    """Whether this thread is inside `run`, and whether its figures were recorded."""

    active = False
    recorded = False
