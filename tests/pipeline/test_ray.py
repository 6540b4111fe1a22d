"""The Ray runner on a real local Ray with two CPUs: the results, keys and resume of the local runner."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import ParameterError, PipelineError
from llmkit.pipeline import Pipeline, RayRunner, route, step
from llmkit.tasks import TextGeneration
from llmkit.testing import ScriptedLLM

ray: Any = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning:ray"),
]

Row = dict[str, Any]
N_ROWS = 60
SAMPLED = {"do_sample": True, "temperature": 5.0}


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    # The workers cannot import this file; what it defines travels to them as it is.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def pipeline(loads: Path, slow: Path | None = None) -> Pipeline:
    """Sampling, a fork, and a merge; every load of a model leaves a line with the process that did it."""

    def answers(prompt: str) -> list[str]:
        if slow is not None:
            with slow.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.05)
        return [f"{prompt}{letter}" for letter in "abcdefgh"]

    def load() -> ScriptedLLM:
        with loads.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return ScriptedLLM(answers)

    def fork(row: Row) -> list[str]:
        return ["left"] if (row["generation"] or "a")[-1] in "abcd" else ["left", "right"]

    ask = TextGeneration(name="ask", llm=load, params=SAMPLED)
    branches = [step(lambda row, name=name: {**row, "went": name}, name=name) for name in ("left", "right")]
    return Pipeline() >> ask >> route(fork) >> branches


def rows() -> Iterator[Row]:
    for n in range(N_ROWS):
        yield {"instruction": f"q{n // 2}" if n != 7 else ""}


TWO = RayRunner(concurrency={"ask": 2})


def test_results_are_those_of_the_local_runner_and_each_runner_goes_on_with_the_others_journal(
    two_cpus: None, tmp_path: Path
) -> None:
    local, out = tmp_path / "local.jsonl", tmp_path / "out.jsonl"
    loads = tmp_path / "loads"
    report = pipeline(loads).run(rows(), local, batch_size=50)
    assert report.failed == 1

    # Half of it here, and the rest of it there.
    half = [row for at, row in enumerate(rows()) if at < N_ROWS // 2]
    pipeline(loads).run(half, tmp_path / "half.jsonl", journal=tmp_path / "journal")
    loads.unlink()
    there = pipeline(loads).run(rows(), out, journal=tmp_path / "journal", batch_size=4, runner=TWO)
    assert out.read_bytes() == local.read_bytes()
    assert there.reused > 50
    assert there.failed == 1
    here = pipeline(loads).run(rows(), out, journal=tmp_path / "journal")
    assert (here.computed, out.read_bytes()) == (1, local.read_bytes())  # the row that failed is tried again


def test_a_killed_actor_loses_no_row_and_each_actor_loads_its_model_once(two_cpus: None, tmp_path: Path) -> None:
    local, out, loads, calls = (tmp_path / name for name in ("local.jsonl", "out.jsonl", "loads", "calls"))
    pipeline(tmp_path / "unused").run(rows(), local, journal=False)

    def killing() -> Iterator[Row]:
        """The rows; half way, one of the workers is killed."""
        for at, row in enumerate(rows()):
            if at == N_ROWS // 2:
                while not calls.exists():
                    time.sleep(0.02)
                os.kill(int(calls.read_text().split()[0]), signal.SIGKILL)
            yield row

    report = pipeline(loads, slow=calls).run(killing(), out, batch_size=2, runner=TWO, journal=False)
    assert report.rows_in == N_ROWS
    assert out.read_bytes() == local.read_bytes()
    loaded = loads.read_text().split()
    assert len(loaded) == len(set(loaded)) == 3  # two actors, and one in place of the killed one
    assert str(os.getpid()) not in loaded


def test_a_stream_that_is_left_early_stops_its_actors_and_errors_come_from_workers(two_cpus: None) -> None:
    def endless() -> Iterator[Row]:
        n = 0
        while True:
            yield {"instruction": str(n)}
            n += 1

    def load() -> ScriptedLLM:
        return ScriptedLLM(lambda prompt: prompt)

    def fails() -> ScriptedLLM:
        raise ParameterError("no such model")

    stream = (Pipeline() >> TextGeneration(name="ask", llm=load)).stream(endless(), batch_size=2, runner="ray")
    assert [next(stream)["generation"] for _ in range(9)] == [str(n) for n in range(9)]
    stream.close()  # pyright: ignore
    with pytest.raises(PipelineError, match="ask: ParameterError: no such model"):
        list((Pipeline() >> TextGeneration(name="ask", llm=fails)).stream(endless(), runner="ray"))


def test_what_cannot_work_is_refused_at_once(two_cpus: None) -> None:
    ask = Pipeline() >> TextGeneration(name="ask", llm=ScriptedLLM("fine"))
    with pytest.raises(PipelineError, match="'ask' has a loaded model, which cannot be sent"):
        list(ask.stream(rows(), runner="ray"))
    ask = Pipeline() >> TextGeneration(name="ask", llm=lambda: ScriptedLLM("fine"))
    with pytest.raises(PipelineError, match="need 3 CPUs together, Ray has 2"):
        list(ask.stream(rows(), runner=RayRunner(concurrency=3)))
    with pytest.raises(PipelineError, match="need 1 GPUs together, Ray has 0"):
        list(ask.stream(rows(), runner=RayRunner(num_gpus=1)))
    with pytest.raises(PipelineError, match="there is no step 'askk', the steps are: ask"):
        list(ask.stream(rows(), runner=RayRunner(concurrency={"askk": 2})))
    with pytest.raises(ParameterError, match="concurrency must be a number >= 1, got 0"):
        RayRunner(concurrency=0)
