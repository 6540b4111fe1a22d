"""What this process, its CPU and its memory use at the moment, by psutil.

Owns the measurement and its readable form. It asks no accelerator: backends measure their devices and hand the figures
over as `DeviceMemory`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

import psutil

from llmkit.engine.engine import EngineFigures


def _no_extra() -> Mapping[str, str | int | float]:
    return MappingProxyType({})


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one accelerator, in bytes.

    Raises:
        ValueError: A size is negative.
    """

    name: str
    used_bytes: int
    total_bytes: int

    def __post_init__(self) -> None:
        for label, size in (("used_bytes", self.used_bytes), ("total_bytes", self.total_bytes)):
            if size < 0:
                raise ValueError(f"{label} must be >= 0, got {size}")


@dataclass(frozen=True)
class ResourceUsage:
    """One measurement; `str()` gives an aligned table. Immutable.

    Attributes:
        process_rss_bytes: Physical memory that this process holds.
        process_cpu_percent: Of one CPU, since the measurement before; over 100 where several threads compute.
        n_threads: Threads of this process.
        system_memory_total_bytes: Physical memory of the machine.
        system_memory_available_bytes: What could be allocated without swapping.
        system_cpu_percent: Of all CPUs together, 0 to 100, since the measurement before.
        n_cpus: Logical CPUs of the machine.
        devices: Memory of each accelerator in use.
        engine: What the generation engine holds and has done; None where the model has none.
        extra: Further figures, by label.
    """

    process_rss_bytes: int
    process_cpu_percent: float
    n_threads: int
    system_memory_total_bytes: int
    system_memory_available_bytes: int
    system_cpu_percent: float
    n_cpus: int
    devices: tuple[DeviceMemory, ...] = ()
    engine: EngineFigures | None = None
    extra: Mapping[str, str | int | float] = field(default_factory=_no_extra)

    def __str__(self) -> str:
        used_bytes = self.system_memory_total_bytes - self.system_memory_available_bytes
        rows = [
            ("process memory", format_bytes(self.process_rss_bytes)),
            ("process CPU", f"{self.process_cpu_percent:.1f} % of one CPU"),
            ("process threads", str(self.n_threads)),
            ("system memory", _of(used_bytes, self.system_memory_total_bytes)),
            ("system CPU", f"{self.system_cpu_percent:.1f} % of {self.n_cpus} CPUs"),
        ]
        rows += [(device.name, _of(device.used_bytes, device.total_bytes)) for device in self.devices]
        rows += [] if self.engine is None else _engine_rows(self.engine)
        rows += [(label, str(value)) for label, value in self.extra.items()]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def to_dict(self) -> dict[str, object]:
        """The figures under their attribute names, of JSON types only."""
        records = {
            "devices": [asdict(device) for device in self.devices],
            "engine": None if self.engine is None else asdict(self.engine),
            "extra": dict(self.extra),
        }
        return {**vars(self), **records}


class ResourceMonitor:
    """Measures this process and its machine. Thread-safe.

    CPU percentages cover the time since the measurement before, or since construction for the first one. Each monitor
    keeps its own interval, so it disturbs no other user of psutil.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = psutil.Process()
        self._process.cpu_percent(interval=None)
        # psutil.cpu_percent keeps its last reading per thread and shares it with the application, hence our own.
        self._cpu_seconds = _system_cpu_seconds()
        self._system_cpu_percent = 0.0

    def measure(
        self,
        devices: Iterable[DeviceMemory] = (),
        extra: Mapping[str, str | int | float] | None = None,
        engine: EngineFigures | None = None,
    ) -> ResourceUsage:
        """Measure now; the arguments are taken over as given."""
        memory = psutil.virtual_memory()
        with self._lock:
            process_cpu_percent = self._process.cpu_percent(interval=None)
            system_cpu_percent = self._measure_system_cpu()
        return ResourceUsage(
            process_rss_bytes=self._process.memory_info().rss,
            process_cpu_percent=process_cpu_percent,
            n_threads=self._process.num_threads(),
            system_memory_total_bytes=memory.total,
            system_memory_available_bytes=memory.available,
            system_cpu_percent=system_cpu_percent,
            n_cpus=psutil.cpu_count() or 1,
            devices=tuple(devices),
            engine=engine,
            extra=MappingProxyType(dict(extra or {})),
        )

    def _measure_system_cpu(self) -> float:
        busy_before, total_before = self._cpu_seconds
        busy, total = _system_cpu_seconds()
        # The kernel counts in ticks of some 10 ms: within one tick the percentage before is the best known.
        if total > total_before:
            share = (busy - busy_before) / (total - total_before)
            self._system_cpu_percent = 100.0 * min(max(share, 0.0), 1.0)
            self._cpu_seconds = (busy, total)
        return self._system_cpu_percent


def _engine_rows(figures: EngineFigures) -> list[tuple[str, str]]:
    kv_bytes = figures.live_bytes + figures.promised_bytes + figures.cached_bytes
    return [
        ("KV live", format_bytes(figures.live_bytes)),
        ("KV promised", format_bytes(figures.promised_bytes)),
        ("KV cached", f"{format_bytes(figures.cached_bytes)} in {figures.cached_prefixes} prefixes"),
        ("KV together", _of(kv_bytes, figures.budget_bytes)),
        ("cache hits", f"{figures.hit_requests} of {figures.started_requests} requests, {figures.hit_tokens} tokens"),
        ("queue", f"{figures.waiting_requests} requests wait, {figures.running_sequences} sequences run"),
    ]


def format_bytes(n_bytes: int) -> str:
    """A size in binary units with three or four digits, such as `1.50 GiB`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{n_bytes} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def _of(used_bytes: int, total_bytes: int) -> str:
    percent = 100.0 * used_bytes / total_bytes if total_bytes else 0.0
    return f"{format_bytes(used_bytes)} of {format_bytes(total_bytes)} ({percent:.0f} %)"


def _system_cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all CPUs since boot."""
    times = psutil.cpu_times()._asdict()
    # Linux counts the time of guests twice: inside user and nice, and by itself.
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return total - times["idle"] - times.get("iowait", 0.0), total
