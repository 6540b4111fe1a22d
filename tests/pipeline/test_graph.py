"""Joining steps, and what is refused before anything is loaded."""

from typing import Any

import pytest

from llmkit import BaseLLM
from llmkit.errors import PipelineError
from llmkit.pipeline import Pipeline, route, step
from llmkit.tasks import TextGeneration


def must_not_load() -> BaseLLM:
    raise AssertionError("a model was loaded")


def text_generation(name: str, reads: str = "instruction", writes: str = "generation") -> TextGeneration:
    inputs = {"instruction": reads} if reads != "instruction" else {}
    outputs = {"generation": writes} if writes != "generation" else {}
    return TextGeneration(name=name, llm=must_not_load, input_mappings=inputs, output_mappings=outputs)


def keep(row: dict[str, Any]) -> dict[str, Any]:
    return row


def nothing(row: dict[str, Any]) -> None:
    return None


def edges(pipeline: Pipeline) -> set[tuple[str, str]]:
    return set(pipeline.graph.edges)


def test_steps_follow_each_other_and_joining_leaves_the_pipeline_as_it_was() -> None:
    first = Pipeline() >> text_generation("ask")
    second = first >> keep
    assert edges(first) == {("", "ask")}
    assert edges(second) == {("", "ask"), ("ask", "keep")}


def test_a_list_branches_and_what_follows_it_gets_all_branches() -> None:
    pipeline = Pipeline() >> keep >> [step(keep, name="left"), Pipeline() >> step(keep, name="right")] >> nothing
    assert edges(pipeline) == {
        ("", "keep"),
        ("keep", "left"),
        ("keep", "right"),
        ("left", "nothing"),
        ("right", "nothing"),
    }
    assert pipeline.graph.order().index("nothing") == 3


def test_a_name_that_is_there_twice_is_refused_with_the_graph() -> None:
    with pytest.raises(PipelineError, match="two steps are named 'ask'") as error:
        Pipeline() >> text_generation("ask") >> keep >> text_generation("ask")
    assert "  rows >> ask" in str(error.value)
    assert "  ask >> keep" in str(error.value)


def test_a_circle_is_refused_with_the_graph() -> None:
    again = step(keep, name="again")
    with pytest.raises(PipelineError, match="follow each other in a circle") as error:
        Pipeline() >> again >> keep >> again
    assert "  keep >> again" in str(error.value)


def test_a_missing_column_is_refused_before_a_model_is_loaded() -> None:
    pipeline = Pipeline() >> text_generation("ask") >> text_generation("judge", reads="answer", writes="verdict")
    with pytest.raises(PipelineError, match="'judge' needs the column 'answer'") as error:
        pipeline.stream([{"instruction": "hello"}])
    assert "generation, instruction, model_name" in str(error.value)
    assert "  ask >> judge" in str(error.value)


def test_the_columns_of_the_source_are_checked() -> None:
    with pytest.raises(PipelineError, match="'ask' needs the column 'instruction', the columns there are: prompt"):
        (Pipeline() >> text_generation("ask")).check([{"prompt": "hello"}])


def test_a_column_must_come_from_every_branch() -> None:
    branches = [step(keep, name="with", writes=["x"]), step(keep, name="without", writes=[])]
    pipeline = Pipeline() >> branches >> step(keep, name="user", reads=["x"])
    with pytest.raises(PipelineError, match="'user' needs the column 'x'"):
        pipeline.check([{"y": 1}])


def test_a_function_that_does_not_say_what_it_writes_leaves_later_columns_unchecked() -> None:
    (Pipeline() >> keep >> text_generation("ask")).check([{"prompt": "hello"}])


def test_a_task_that_would_write_over_a_column_is_refused_before_a_model_is_loaded() -> None:
    pipeline = Pipeline() >> text_generation("ask") >> text_generation("judge", reads="generation")
    with pytest.raises(PipelineError, match="'judge' would write over the column 'generation'"):
        pipeline.check([{"instruction": "hello"}])


def test_a_route_must_lead_somewhere() -> None:
    with pytest.raises(PipelineError, match="nothing follows the route 'keep'"):
        (Pipeline() >> route(keep)).check()


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(PipelineError, match="a step must be a Step, a function, a route or a pipeline, got 3"):
        Pipeline() >> 3  # pyright: ignore


def test_the_drawing_is_mermaid() -> None:
    def by_length(row: dict[str, Any]) -> str:
        return "short"

    pipeline = Pipeline() >> text_generation("ask") >> route(by_length) >> [step(keep, name="short"), keep]
    assert pipeline.draw() == (
        "flowchart LR\n"
        "  source([rows])\n"
        '  n0["ask<br>TextGeneration"]\n'
        '  n1{"by_length"}\n'
        '  n2["short"]\n'
        '  n3["keep"]\n'
        "  result([results])\n"
        "  source --> n0\n"
        "  n0 --> n1\n"
        "  n1 --> n2\n"
        "  n1 --> n3\n"
        "  n2 --> result\n"
        "  n3 --> result\n"
    )


def test_a_step_alone_says_how_a_pipeline_begins() -> None:
    with pytest.raises(TypeError, match=r"Pipeline\(\) >> step >> step"):
        step(lambda row: row, name="a") >> step(lambda row: row, name="b")
