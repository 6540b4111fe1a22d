"""A pipeline that kills its own process at the n-th call of its model, or runs to its end: `killed_run.py OUT [N]`.

Every call leaves a line in `OUT.calls`, so that whoever starts it can count what was done twice.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from llmkit import BaseLLM
from llmkit.pipeline import Pipeline
from llmkit.tasks import TextGeneration

N_ROWS = 2000


class Counting(BaseLLM):
    def __init__(self, calls: str, last: int | None) -> None:
        super().__init__()
        self._calls, self._last, self._n = open(calls, "ab", buffering=0), last, 0  # noqa: SIM115 - as long as it lives

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        self._calls.write(f"{task}\n".encode())
        self._n += 1
        if self._n == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"heard: {task}"


def rows() -> Iterator[dict[str, str]]:
    return ({"instruction": f"row {n}"} for n in range(N_ROWS))


def main(out: str, last: int | None) -> None:
    (Pipeline() >> TextGeneration(name="ask", llm=Counting(f"{out}.calls", last))).run(rows(), out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
