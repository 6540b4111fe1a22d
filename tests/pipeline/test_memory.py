"""Memory does not grow with the rows: 100,000 of them through a fork, two steps, a journal and a file."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmkit import BaseLLM
from llmkit.pipeline import Pipeline, route, step
from llmkit.tasks import TextGeneration

N_ROWS = 100_000
MAX_GROWTH_BYTES = 8 * 2**20


class Echo(BaseLLM):
    """Keeps nothing of what it is asked."""

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        return f"heard: {task}"


ECHO = Echo()


def heard(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "heard": ECHO.run(row["instruction"])}


@pytest.mark.slow
def test_memory_stays_the_same_over_100_000_rows(tmp_path: Path) -> None:
    process, seen = psutil.Process(), list[int]()

    def rows() -> Iterator[dict[str, Any]]:
        for n in range(N_ROWS):
            if n % 10_000 == 0:
                gc.collect()
                seen.append(process.memory_info().rss)
            yield {"instruction": f"row {n} of many, with some text behind it to take its place " * 3}

    def every_tenth(row: dict[str, Any]) -> str:
        return "ask" if "0 of" in row["instruction"] else "rest"

    ask = TextGeneration(name="ask", llm=ECHO)
    pipeline = (
        Pipeline() >> step(heard, writes=["heard"]) >> route(every_tenth) >> [ask, step(lambda r: r, name="rest")]
    )
    report = pipeline.run(rows(), tmp_path / "out.jsonl")
    assert (report.rows_out, report.failed) == (N_ROWS, 0)
    # Kept in memory, the rows would take 60 MB, and their keys alone 10 MB.
    assert seen[-1] - seen[2] < MAX_GROWTH_BYTES, [rss // 2**20 for rss in seen]
