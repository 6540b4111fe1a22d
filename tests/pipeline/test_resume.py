"""Going on after a crash: nothing is computed twice, nothing stale is served, and the file is the same."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import ParameterError, PipelineError
from llmkit.params import GenerationParams
from llmkit.pipeline import Pipeline, Report, step
from llmkit.tasks import TextGeneration
from llmkit.testing import ScriptedLLM

Row = dict[str, Any]
N_ROWS = 60

PROGRAM = textwrap.dedent('''
    """Two sampling steps over rows, some of them equal; each call of the model leaves a line in `calls`."""
    import sys, time
    from llmkit.pipeline import Pipeline
    from llmkit.tasks import TextGeneration
    from llmkit.testing import ScriptedLLM

    out, batch_size, delay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

    def answers(prompt):
        with open(out + ".calls", "a") as calls:
            calls.write(prompt + "\\n")
        time.sleep(delay_s)
        return [f"{prompt}{letter}" for letter in "abcdefgh"]

    def rows():
        for n in range(60):
            yield {"instruction": f"q{n // 2}"}

    sampling = {"do_sample": True, "temperature": 5.0}
    one = TextGeneration(name="one", llm=lambda: ScriptedLLM(answers), params=sampling)
    two = TextGeneration(name="two", llm=lambda: ScriptedLLM(answers), params=sampling,
        input_mappings={"instruction": "generation"}, output_mappings={"generation": "second"})
    print((Pipeline() >> one >> two).run(rows(), out, batch_size=batch_size).reused)
''')


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def started(program: Path, out: Path, batch_size: int, delay_s: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, str(program), str(out), str(batch_size), str(delay_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out.strip()


def n_calls(out: Path) -> int:
    path = out.with_name(out.name + ".calls")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_killed_run_goes_on_repeats_at_most_the_rows_in_flight_and_gives_the_same_bytes(
    program: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    finished(started(program, whole, batch_size=50))
    assert n_calls(whole) == 2 * N_ROWS
    size, n_kills = 4, 0
    for reached in (30, 70):
        process = started(program, out, size, delay_s=0.01)
        while n_calls(out) < reached and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        n_kills += process.wait(timeout=60) == -signal.SIGKILL
        process.communicate()
        assert not out.exists()
    assert n_kills == 2
    reused = int(finished(started(program, out, batch_size=7)))
    assert out.read_bytes() == whole.read_bytes()
    assert reused >= 70 - 2 * size
    assert n_calls(out) <= 2 * N_ROWS + n_kills * size


def upper(prompt: str) -> str:
    return prompt.upper()


class Runs:
    """Runs a pipeline again and again on one journal."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out.jsonl"

    def column(self, name: str) -> list[Any]:
        return [json.loads(line)[name] for line in self.out.read_text(encoding="utf-8").splitlines()]

    def __call__(self, pipeline: Pipeline, rows: Any, **settings: Any) -> Report:
        return pipeline.run(rows, self.out, journal=self.out.with_name("journal"), **settings)


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def ask(answer: Any = "fine", **parameters: Any) -> TextGeneration:
    params = parameters.pop("llm_params", {})
    return TextGeneration(**{"name": "ask", "llm": ScriptedLLM(answer, **params), **parameters})


ROWS = [{"instruction": text} for text in "abcdef"]


def test_a_second_run_computes_nothing_and_gives_the_same_file(run: Runs) -> None:
    assert run(Pipeline() >> ask(), ROWS).computed == 6
    before = run.out.read_bytes()
    again = run(Pipeline() >> ask(), ROWS)
    assert (again.computed, again.reused) == (0, 6)
    assert run.out.read_bytes() == before


def test_only_new_rows_are_computed_wherever_they_are(run: Runs) -> None:
    run(Pipeline() >> ask(), ROWS)
    changed = [*ROWS[3:], {"instruction": "new"}, *ROWS[:3]]
    report = run(Pipeline() >> ask(), changed, batch_size=2)
    assert (report.computed, report.reused) == (1, 6)
    assert run.column("instruction") == [r["instruction"] for r in changed]


def test_equal_rows_are_different_rows(run: Runs) -> None:
    assert run(Pipeline() >> ask(), [ROWS[0]] * 3, batch_size=2).computed == 3
    report = run(Pipeline() >> ask(), [ROWS[0]] * 5, batch_size=4)
    assert (report.computed, report.reused) == (2, 3)


CHANGES: dict[str, tuple[TextGeneration, list[Row]]] = {
    "data": (ask(), [{"instruction": text} for text in "uvwxyz"]),
    "another column": (ask(), [{**row, "more": 1} for row in ROWS]),
    "a parameter of the task": (ask(system_prompt="be kind"), ROWS),
    "a generation parameter": (ask(params={"max_tokens": 5}), ROWS),
    "a parameter of the model": (ask(llm_params={"max_tokens": 5}), ROWS),
    "the model's fingerprint": (ask("other"), ROWS),
    "the model's name": (ask(llm_params={"model_name": "other"}), ROWS),
    "the class": (type("Other", (TextGeneration,), {})(name="ask", llm=ScriptedLLM("fine")), ROWS),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_stale_is_served_after_a_change_of(what: str, run: Runs) -> None:
    run(Pipeline() >> ask(), ROWS)
    step_, rows = CHANGES[what]
    report = run(Pipeline() >> step_, rows)
    assert (report.computed, report.reused) == (6, 0)


def test_a_change_of_one_step_leaves_the_results_of_those_before_it(run: Runs) -> None:
    def last(suffix: str) -> Any:
        return step(lambda row: {**row, "last": suffix}, name="last")

    run(Pipeline() >> ask() >> last("x"), ROWS)
    report = run(Pipeline() >> ask() >> last("y"), ROWS)
    assert (report.computed, report.reused) == (6, 6)
    assert set(run.column("last")) == {"y"}
    report = run(Pipeline() >> ask("other") >> last("y"), ROWS)
    assert (report.computed, report.reused) == (12, 0)


MODULE = """
LIMIT = 3
SETTINGS = {{"deep": [1, {deep}]}}

def helper(text):
    {comment}
    return text[:LIMIT] + "{suffix}"

class Cut:
    def __call__(self, text):
        return helper(text) + "{in_class}" + str(SETTINGS)

def cut(row, *, how=Cut()):
    return {{**row, "cut": how(row["instruction"])}}
"""


def module(folder: Path, **changes: str) -> Callable[[Row], Row]:
    given = {"deep": "2", "comment": "# why", "suffix": "!", "in_class": "?", **changes}
    namespace: dict[str, Any] = {"__name__": "users_own_module"}
    exec(compile(MODULE.format(**given), str(folder / "users_own_module.py"), "exec"), namespace)
    return namespace["cut"]


@pytest.mark.parametrize(
    ("changes", "reused"),
    [
        ({}, 6),
        ({"comment": "# another reason\n    # in two lines"}, 6),
        ({"suffix": "."}, 0),
        ({"in_class": "."}, 0),
        ({"deep": "3"}, 0),
    ],
)
def test_a_changed_helper_is_a_changed_step(changes: dict[str, str], reused: int, run: Runs, tmp_path: Path) -> None:
    run(Pipeline() >> module(tmp_path), ROWS)
    assert run(Pipeline() >> module(tmp_path, **changes), ROWS).reused == reused


def test_failed_rows_are_tried_again_and_only_these(run: Runs) -> None:
    class Flaky(ScriptedLLM):
        is_up = False
        fingerprint = "flaky"  # pyright: ignore

        def _generate(self, requests: Any) -> Any:
            if not self.is_up and any("c" in r.prompt[-1].content for r in requests):
                raise RuntimeError("the server is away")
            return super()._generate(requests)

    llm = Flaky("fine")
    report = run(Pipeline() >> ask(llm=llm), ROWS)
    assert (report.failed, report.computed) == (1, 6)
    llm.is_up = True
    report = run(Pipeline() >> ask(llm=llm), ROWS)
    assert (report.failed, report.computed, report.reused) == (0, 1, 5)
    assert run.column("generation") == ["fine"] * 6


def test_a_step_must_be_describable_to_be_resumed_and_only_then(run: Runs) -> None:
    class Same:
        def __call__(self, row: Row) -> Row:
            return row

    with pytest.raises(ParameterError, match="a parameter must be made of"):
        run(Pipeline() >> step(Same(), name="same"), ROWS)
    assert list((Pipeline() >> step(Same(), name="same")).stream(ROWS)) == ROWS


def test_without_a_journal_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    (Pipeline() >> ask()).run(ROWS, tmp_path / "out.jsonl", journal=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_stream_with_a_journal_goes_on_too(tmp_path: Path) -> None:
    llm = ScriptedLLM("fine")
    for _ in range(2):
        list((Pipeline() >> ask(llm=llm)).stream(ROWS, journal=tmp_path / "journal"))
    assert len(llm.requests) == 6


def test_seeds_reach_the_model() -> None:
    llm = ScriptedLLM("fine")
    list((Pipeline() >> ask(llm=llm)).stream(ROWS))
    seeds = [request.params.seed for request in llm.requests]
    assert None not in seeds
    assert len(set(seeds)) == 6
    assert GenerationParams(seed=seeds[0]).seed == seeds[0]


def test_two_runs_cannot_share_a_journal(tmp_path: Path) -> None:
    stream = (Pipeline() >> ask()).stream(ROWS, journal=tmp_path / "journal", batch_size=1)
    next(stream)
    with pytest.raises(PipelineError, match="another run has the journal"):
        list((Pipeline() >> ask()).stream(ROWS, journal=tmp_path / "journal"))
    assert len(list(stream)) == 5
    assert os.listdir(tmp_path) == ["journal"]
