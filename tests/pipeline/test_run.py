"""What comes out of a run: order, branches, routes, failing rows, seeds, models' lives, counts."""

from collections.abc import Iterator
from typing import Any

import pytest

from llmkit.errors import ParameterError, PipelineError
from llmkit.pipeline import Pipeline, route, step
from llmkit.tasks import METADATA, Step, TextGeneration, failure
from llmkit.testing import ScriptedLLM

Row = dict[str, Any]
SAMPLED = {"do_sample": True, "temperature": 5.0}
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def upper(prompt: str) -> str:
    if prompt == "bad":
        raise RuntimeError("no answer")
    return prompt.upper()


def ask(name: str = "ask", **parameters: Any) -> TextGeneration:
    return TextGeneration(**{"name": name, "llm": ScriptedLLM(upper), "add_raw_output": False, **parameters})


def then(name: str, **parameters: Any) -> TextGeneration:
    """A second question, about the answer to the first."""
    maps = {"input_mappings": {"instruction": "generation"}, "output_mappings": {"generation": name}}
    return ask(name, **maps, **parameters)


def asking(*instructions: str) -> list[Row]:
    return [{"instruction": text} for text in instructions]


def values(rows: Any, column: str) -> list[Any]:
    return [row.get(column) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_rows_come_out_in_their_order(batch_size: int) -> None:
    rows = list((Pipeline() >> ask() >> then("again")).stream(asking("a", "b", "c"), batch_size=batch_size))
    assert values(rows, "again") == ["A", "B", "C"]
    assert values(rows, "instruction") == ["a", "b", "c"]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_branches_keep_the_order_of_rows_and_then_of_branches(batch_size: int) -> None:
    def left(row: Row) -> list[Row]:
        return [{**row, "by": "left 1"}, {**row, "by": "left 2"}]

    def right(row: Row) -> Row:
        return {**row, "by": "right"}

    rows = list((Pipeline() >> [left, right] >> ask()).stream(asking("a", "b"), batch_size=batch_size))
    assert [(row["generation"], row["by"]) for row in rows] == [
        (letter, by) for letter in "AB" for by in ("left 1", "left 2", "right")
    ]


def test_a_route_sends_each_row_where_the_function_says() -> None:
    def chosen(row: Row) -> list[str] | str | None:
        return {"one": "first", "both": ["second", "first"], "none": None}[row["instruction"]]

    def marks(name: str) -> Any:
        return step(lambda row: {**row, "went": name}, name=name)

    pipeline = Pipeline() >> route(chosen) >> [marks("first"), marks("second")]
    rows = list(pipeline.stream(asking("one", "both", "none", "one")))
    assert [(row["instruction"], row["went"]) for row in rows] == [
        ("one", "first"),
        ("both", "first"),
        ("both", "second"),
        ("one", "first"),
    ]


def test_a_route_to_no_step_is_an_error_and_one_that_fails_lets_the_row_leave_with_its_reason() -> None:
    def chosen(row: Row) -> str:
        return row["to"]

    pipeline = Pipeline() >> route(chosen) >> [step(lambda row: row, name="first")]
    with pytest.raises(PipelineError, match="chosen must choose among first, got 'firstt'; did you mean 'first'"):
        list(pipeline.stream([{"to": "firstt"}]))
    assert list(pipeline.stream([{"to": "first"}, {"x": 1}])) == [
        {"to": "first"},
        {"x": 1, METADATA: {"error_chosen": "KeyError: 'to'"}},
    ]


def test_a_bad_row_gives_none_and_its_reason_and_costs_no_other() -> None:
    rows = list((Pipeline() >> ask()).stream(asking("a", "bad", "c")))
    assert values(rows, "generation") == ["A", None, "C"]
    assert failure(rows[1], "ask") == "RuntimeError: no answer"


def test_a_function_that_fails_on_a_row_leaves_the_others_alone() -> None:
    def half(row: Row) -> Row:
        return {**row, "half": 10 / row["n"]}

    rows = list((Pipeline() >> step(half, writes=["half"])).stream([{"n": 5}, {"n": 0}, {"n": 2}]))
    assert rows[0] == {"n": 5, "half": 2.0}
    assert rows[1] == {"n": 0, "half": None, METADATA: {"error_half": "ZeroDivisionError: division by zero"}}
    assert rows[2] == {"n": 2, "half": 5.0}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_a_failure_of_its_row(value: object) -> None:
    rows = list((Pipeline() >> step(lambda row: {**row, "x": value}, name="f", writes=["x"])).stream([{"n": 1}]))
    assert rows[0]["x"] is None
    assert "f must give what JSON holds" in rows[0][METADATA]["error_f"]


def test_a_fault_of_all_rows_ends_the_run() -> None:
    def no_model() -> ScriptedLLM:
        raise ParameterError("no such model")

    with pytest.raises(ParameterError, match="no such model"):
        list((Pipeline() >> ask(llm=no_model)).stream(asking("a")))


class Shuffled(Step):
    """Drops, doubles and reverses."""

    carries: bool = True

    @property
    def inputs(self) -> list[str]:
        return ["n"]

    @property
    def outputs(self) -> list[str]:
        return ["twice"]

    def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
        for row in reversed(rows):
            made = {**row, "twice": 2 * row["n"]} if self.carries else {"twice": 2 * row["n"]}
            yield [made] * (row["n"] % 3)


@pytest.mark.parametrize("carries", [True, False])
def test_a_step_may_drop_double_and_reorder_rows(carries: bool) -> None:
    rows = list((Pipeline() >> Shuffled(carries=carries)).stream([{"n": n} for n in range(6)]))
    assert values(rows, "twice") == [2, 4, 4, 8, 10, 10]


def sampled(**parameters: Any) -> TextGeneration:
    return ask("sampled", llm=ScriptedLLM(lambda prompt: LETTERS), params=SAMPLED, **parameters)


def test_seeds_come_from_keys_so_neither_batches_nor_neighbours_nor_runs_change_them() -> None:
    rows = asking(*"abcdefgh")
    whole = values((Pipeline() >> sampled()).stream(rows, batch_size=8), "generation")
    assert whole == values((Pipeline() >> sampled(input_batch_size=3)).stream(rows, batch_size=2), "generation")
    assert whole[3:5] == values((Pipeline() >> sampled()).stream(rows[3:5]), "generation")
    assert len(set(whole)) > 1


def test_equal_rows_draw_differently_and_always_the_same() -> None:
    rows = asking(*["same"] * 8)
    drawn = values((Pipeline() >> sampled()).stream(rows, batch_size=3), "generation")
    assert len(set(drawn)) > 2
    assert drawn == values((Pipeline() >> sampled()).stream(rows, batch_size=8), "generation")


def test_steps_of_one_row_draw_differently_and_a_tasks_own_seed_counts() -> None:
    rows = asking(*"abcdefgh")
    one, other = (ask(n, llm=ScriptedLLM(lambda p: LETTERS), params=SAMPLED) for n in ("one", "other"))
    left, right = (values((Pipeline() >> s).stream(rows), "generation") for s in (one, other))
    assert left != right
    seeded = ask("one", llm=ScriptedLLM(lambda p: LETTERS), params={**SAMPLED, "seed": 1})
    assert values((Pipeline() >> seeded).stream(rows), "generation") != left


def test_models_are_loaded_when_needed_and_freed_after_their_last_use() -> None:
    events: list[str] = []

    def loading(name: str) -> Any:
        def load() -> ScriptedLLM:
            events.append(f"load {name}")
            llm = ScriptedLLM(lambda prompt: (events.append(f"{name} {prompt}"), prompt)[1])
            close = llm.close
            llm.close = lambda: (events.append(f"close {name}"), close())[0]
            return llm

        return load

    pipeline = Pipeline() >> ask("one", llm=loading("one")) >> then("two", llm=loading("two"))
    stream = pipeline.stream(asking("a", "b"))
    assert events == []
    assert len(list(stream)) == 2
    assert events == ["load one", "one a", "one b", "close one", "load two", "two a", "two b", "close two"]


def test_a_stream_that_is_left_early_frees_its_models() -> None:
    llms: list[ScriptedLLM] = []

    def load() -> ScriptedLLM:
        llms.append(ScriptedLLM(upper))
        return llms[-1]

    stream = (Pipeline() >> ask(llm=load)).stream(asking(*"abcdef"), batch_size=1)
    assert next(stream)["generation"] == "A"
    stream.close()  # pyright: ignore
    assert [llm._closed for llm in llms] == [True]


def test_an_endless_source_is_read_as_far_as_needed() -> None:
    def numbers() -> Iterator[Row]:
        n = 0
        while True:
            yield {"instruction": str(n)}
            n += 1

    stream = (Pipeline() >> ask()).stream(numbers(), batch_size=2)
    assert [next(stream)["generation"] for _ in range(5)] == list("01234")
    stream.close()  # pyright: ignore


def test_the_report_counts(tmp_path: Any) -> None:
    report = (Pipeline() >> ask() >> then("two")).run(asking("a b", "bad", "c"), tmp_path / "out.jsonl")
    assert (report.rows_in, report.rows_out, report.computed, report.reused) == (3, 3, 6, 0)
    assert report.failed == 2  # the second step finds nothing to ask about
    assert report.tokens == 2 * (3 + 2)  # words and an end


def test_the_bar_tells_rows_tokens_and_failures_and_is_off_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    pipeline = Pipeline("capitals") >> ask()
    pipeline.run(asking("a", "bad"), tmp_path / "out.jsonl", journal=False)
    assert capsys.readouterr().err == ""
    pipeline.run(asking("a", "bad"), tmp_path / "out.jsonl", journal=False, progress=True)
    shown = capsys.readouterr().err
    assert "capitals: 100%" in shown
    assert "rows/s" in shown
    assert "tokens/s, 1 failed" in shown


def test_wrong_settings_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ParameterError, match="batch_size must be at least 1, got 0"):
        (Pipeline() >> ask()).stream(asking("a"), batch_size=0)
    with pytest.raises(ParameterError, match='runner must be "local", "ray" or a RayRunner, got \'spark\''):
        list((Pipeline() >> ask()).stream(asking("a"), runner="spark"))  # pyright: ignore


def test_an_empty_source_gives_an_empty_file(tmp_path: Any) -> None:
    (Pipeline() >> ask()).run([], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b""
