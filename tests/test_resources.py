from __future__ import annotations

import json
import mmap
import os
import threading
import time

import psutil
import pytest

from llmkit.engine.engine import EngineFigures
from llmkit.resources import DeviceMemory, ResourceMonitor, ResourceUsage, format_bytes


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_memory_and_threads_are_those_of_this_process() -> None:
    usage = ResourceMonitor().measure()
    rss = psutil.Process(os.getpid()).memory_info().rss
    assert usage.process_rss_bytes == pytest.approx(rss, rel=0.2)
    assert usage.n_threads >= threading.active_count()
    assert usage.system_memory_total_bytes == psutil.virtual_memory().total
    assert 0 < usage.system_memory_available_bytes <= usage.system_memory_total_bytes
    assert usage.n_cpus == psutil.cpu_count()


def test_growth_of_the_process_shows() -> None:
    monitor = ResourceMonitor()
    before = monitor.measure().process_rss_bytes
    with mmap.mmap(-1, 64_000_000) as block:  # memory of its own, where the heap may have as much to spare
        block.write(b"x" * len(block))
        assert monitor.measure().process_rss_bytes - before > 40_000_000


def test_the_first_measurement_already_shows_cpu_use_since_construction() -> None:
    monitor = ResourceMonitor()
    burn(0.3)
    usage = monitor.measure()
    assert usage.process_cpu_percent > 10
    assert 0 < usage.system_cpu_percent <= 100


def test_cpu_use_covers_only_the_time_since_the_measurement_before() -> None:
    monitor = ResourceMonitor()
    burn(0.3)
    busy = monitor.measure().process_cpu_percent
    time.sleep(0.3)
    assert monitor.measure().process_cpu_percent < busy / 2


def test_a_measurement_from_another_thread_sees_the_same_interval() -> None:
    monitor = ResourceMonitor()
    burn(0.3)
    seen: list[ResourceUsage] = []
    thread = threading.Thread(target=lambda: seen.append(monitor.measure()))
    thread.start()
    thread.join()
    assert seen[0].process_cpu_percent > 10
    assert seen[0].system_cpu_percent > 0


def test_two_monitors_keep_separate_intervals() -> None:
    one, two = ResourceMonitor(), ResourceMonitor()
    burn(0.3)
    one.measure()
    assert two.measure().process_cpu_percent > 10


def test_many_threads_may_measure_at_once() -> None:
    monitor = ResourceMonitor()
    usages: list[ResourceUsage] = []
    threads = [threading.Thread(target=lambda: usages.extend(monitor.measure() for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(usages) == 80
    assert all(0 <= usage.system_cpu_percent <= 100 for usage in usages)


def test_devices_and_extra_figures_are_reported() -> None:
    devices = [DeviceMemory("cuda:0", 3 * 2**30, 4 * 2**30)]
    usage = ResourceMonitor().measure(devices, {"KV cache": "2 MiB"})
    assert usage.devices == tuple(devices)
    assert "3.00 GiB of 4.00 GiB (75 %)" in str(usage)
    assert usage.to_dict()["devices"] == [{"name": "cuda:0", "used_bytes": 3 * 2**30, "total_bytes": 4 * 2**30}]


def test_to_dict_is_json_and_holds_every_attribute() -> None:
    usage = ResourceMonitor().measure(extra={"n": 1})
    values = json.loads(json.dumps(usage.to_dict()))
    assert values == {**vars(usage), "devices": [], "extra": {"n": 1}}
    assert values["engine"] is None


def test_the_figures_of_an_engine_stand_in_the_record_and_in_the_table() -> None:
    figures = EngineFigures(2**20, 2**20, 2**21, 2**23, 3, 5, 640, 2, 9, 4, 7, 99)
    usage = ResourceMonitor().measure(engine=figures)
    assert usage.engine == figures
    assert json.loads(json.dumps(usage.to_dict()))["engine"]["cached_bytes"] == 2**21
    shown = {key: value for text in str(usage).splitlines() for key, value in [text.split("  ", 1)]}
    assert {key: value.strip() for key, value in shown.items() if key in ("KV live", "KV together", "queue")} == {
        "KV live": "1.00 MiB",
        "KV together": "4.00 MiB of 8.00 MiB (50 %)",
        "queue": "4 requests wait, 7 sequences run",
    }
    assert "5 of 9 requests, 640 tokens" in shown["cache hits"]
    assert "KV live" not in str(ResourceMonitor().measure())


def test_a_measurement_does_not_change_with_the_callers_mapping() -> None:
    extra = {"n": 1}
    usage = ResourceMonitor().measure(extra=extra)
    extra["n"] = 2
    assert usage.extra == {"n": 1}


def test_the_table_is_aligned() -> None:
    usage = ResourceUsage(2**20, 150.0, 3, 4 * 2**30, 2**30, 50.0, 8, (DeviceMemory("a long device name", 0, 0),))
    lines = str(usage).splitlines()
    column = len("a long device name") + 2
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert "1.00 MiB" in lines[0]
    assert "150.0 % of one CPU" in lines[1]
    assert "3.00 GiB of 4.00 GiB (75 %)" in lines[3]
    assert "50.0 % of 8 CPUs" in lines[4]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 * 2**29, "1.50 GiB"), (2**50, "1024.00 TiB")],
)
def test_sizes_have_human_units(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="used_bytes must be >= 0, got -1"):
        DeviceMemory("x", -1, 1)
