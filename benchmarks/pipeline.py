"""Pipelines: what the framework costs a row, a batch over a shared prefix against a loop, and what a kill costs.

The peer, distilabel 1.5.3, runs the same two steps in an environment of its own under `build/peers`, made when it is
missing; where the package registry does not answer, its rows are left out with a word.
"""

from __future__ import annotations

import contextlib
import random
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmkit
from benchmarks.killed_run import N_ROWS as N_KILLED_ROWS
from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.random_llama import save_random_llama
from llmkit import BaseLLM
from llmkit.pipeline import Pipeline
from llmkit.tasks import TextGeneration

ROOT = Path(__file__).parent.parent
PEER = ROOT / "build" / "peers" / "distilabel"
PEER_REQUIREMENTS = ("distilabel==1.5.3", "requests")  # it does not declare the second one
N_ROWS, N_ROUNDS = 10_000, 9
N_CLASSIFIED, N_FEW_SHOT_ROUNDS = 256, 3
LIMIT_US = 50.0


class Stub(BaseLLM):
    """Answers at once."""

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        return f"heard: {task}"


def pipeline() -> list[Row]:
    """All figures about pipelines."""
    return [*framework_cost(), *few_shot(), *killed()]


def steps() -> tuple[TextGeneration, TextGeneration]:
    llm = Stub()
    maps: dict[str, Any] = {
        "input_mappings": {"instruction": "generation"},
        "output_mappings": {"generation": "second"},
    }
    return TextGeneration(name="one", llm=llm), TextGeneration(name="two", llm=llm, **maps)


def framework_cost() -> list[Row]:
    """What a row costs: all of it, and everything around the steps: keys, journal, order, file."""
    rows = [{"instruction": f"row {n}"} for n in range(N_ROWS)]
    one, two = steps()
    inside: list[float] = []
    for task in (one, two):
        task.process = clocked(task.process, inside)
    whole: list[float] = []
    around: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(N_ROUNDS + 1):
            inside.clear()
            started = time.perf_counter()
            (Pipeline() >> one >> two).run(rows, Path(folder) / f"{number}.jsonl")
            whole.append(time.perf_counter() - started)
            around.append(whole[-1] - sum(inside))
    # The first round warms up.
    whole, around = whole[1:], around[1:]
    workload = f"pipeline, 2 steps, {N_ROWS:,} rows"
    return [
        row(workload, "around the steps, a row", "us", [1e6 * s / N_ROWS for s in around], LIMIT_US),
        row(workload, "all of it, a row", "us", [1e6 * s / N_ROWS for s in whole]),
        *against_distilabel(workload, whole, around),
    ]


def clocked(process: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """A step's `process` whose time is noted, so that it can be taken off the time of the run that it was part of."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        made = list(process(*args, **kwargs))
        seconds.append(time.perf_counter() - started)
        return made

    return timed


def against_distilabel(workload: str, whole_s: list[float], around_s: list[float]) -> list[Row]:
    python = peer_python()
    if python is None:
        return []
    theirs, by_hand = zip(*(_peer_seconds(python) for _ in range(2)), strict=True)
    their_around = [whole - steps for whole, steps in zip(theirs, by_hand, strict=True)]
    median, median_around = statistics.median(theirs), statistics.median(their_around)
    return [
        row(workload, "distilabel 1.5.3, around the steps, a row", "us", [1e6 * s / N_ROWS for s in their_around]),
        row(workload, "distilabel 1.5.3, all of it, a row", "us", [1e6 * s / N_ROWS for s in theirs]),
        row(workload, "around the steps / distilabel's", "x", [s / median_around for s in around_s], 0.01),
        row(workload, "all of it / distilabel's", "x", [s / median for s in whole_s]),
    ]


def peer_python() -> Path | None:
    """The interpreter of distilabel's environment; None, with a word, where it cannot be made."""
    python = PEER / "bin" / "python"
    made = PEER / "complete"
    if made.exists():
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER], check=True, capture_output=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER_REQUIREMENTS]
        subprocess.run(install, check=True, capture_output=True, timeout=900)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError):
        print("distilabel cannot be installed from here: its figures are left out", file=sys.stderr)
        return None
    made.touch()
    return python


def _peer_seconds(python: Path) -> tuple[float, float]:
    """Seconds of its `Pipeline.run` alone, and of its steps by hand; starting Python and importing are not counted."""
    command = [python, ROOT / "benchmarks" / "distilabel_peer.py", str(N_ROWS)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    whole_s, by_hand_s = map(float, finished.stdout.split()[-2:])
    return whole_s, by_hand_s


def few_shot() -> list[Row]:
    """Rows that share 400 tokens, with new texts each round: a pipeline, which has seeds, against loops without.

    The engine keeps the shared prefix for a loop, too; `engine=False` is the loop of a library that keeps nothing.
    """
    draw = random.Random(3)

    def text_of(n_tokens: int) -> str:
        """A small letter is a token of this model."""
        return "".join(draw.choices(string.ascii_lowercase, k=n_tokens))

    def texts() -> list[str]:
        shared = text_of(400)
        return [shared + text_of(draw.randint(15, 40)) for _ in range(N_CLASSIFIED)]

    with contextlib.ExitStack() as closed:
        path = str(save_random_llama(Path(closed.enter_context(tempfile.TemporaryDirectory()))))
        llm, sharing_nothing = (
            closed.enter_context(llmkit.load(path, device="cpu", engine=engine)) for engine in (True, False)
        )
        task = TextGeneration(name="label", llm=llm, params={"max_tokens": 2}, input_batch_size=N_CLASSIFIED)
        sides: dict[str, Callable[[], object]] = {
            "alone": lambda: [sharing_nothing.run(text, max_tokens=2) for text in texts()],
            "loop": lambda: [llm.run(text, max_tokens=2) for text in texts()],
            "pipeline": lambda: list((Pipeline() >> task).stream([{"instruction": text} for text in texts()])),
        }
        seconds = interleaved(sides, N_FEW_SHOT_ROUNDS)
    workload = f"few-shot, {N_CLASSIFIED} rows, random 32 M"
    return [
        row(workload, "loop over run, no prefix shared", "s", seconds["alone"]),
        row(workload, "pipeline / loop, no prefix shared", "x", ratios(seconds["pipeline"], seconds["alone"]), 0.2),
        row(workload, "pipeline / loop, prefix cached", "x", ratios(seconds["pipeline"], seconds["loop"])),
    ]


def killed() -> list[Row]:
    """Rows that are asked about twice because the process was killed once, at three different moments."""
    repeated = [float(_repeated(last)) for last in (77, 1001, 1999)]
    return [row(f"killed and run again, {N_KILLED_ROWS:,} rows", "rows done twice", "rows", repeated, 50)]


def _repeated(last: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        command = [sys.executable, "-m", "benchmarks.killed_run", str(out)]
        ended = subprocess.run([*command, str(last)], cwd=ROOT).returncode
        if ended != -signal.SIGKILL:
            raise RuntimeError(f"the first run must be killed, it ended with {ended}")
        subprocess.run(command, cwd=ROOT, check=True)
        n_calls = len(out.with_name("out.jsonl.calls").read_text().splitlines())
    return n_calls - N_KILLED_ROWS
