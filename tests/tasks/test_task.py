from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

import llmkit
from llmkit.base import BaseLLM
from llmkit.capabilities import Capabilities
from llmkit.errors import InvalidRequest, ModelClosed, ParameterError, UnknownParameter, UnsupportedParameter
from llmkit.tasks import ChatType, Row, Statistics, Task, TextGeneration, failure
from llmkit.testing import ScriptedLLM


class Echo(Task):
    """Asks with `q`, gives `a`; a text `bad` cannot be read, and a row without text cannot be asked."""

    @property
    def inputs(self) -> Sequence[str]:
        return ["q"]

    def format_input(self, input: Row) -> ChatType:
        return [{"role": "user", "content": input["q"].strip()}]

    @property
    def outputs(self) -> Sequence[str]:
        return ["a", "model_name"]

    def format_output(self, output: str | None, input: Row) -> Row:
        if output == "bad":
            raise ValueError(f"cannot read {output!r}")
        return {"a": output}


class Shouting(BaseLLM):
    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        if task == "stop":
            raise RuntimeError("no more")
        return (task or "").upper()


class NoChoices(ScriptedLLM):
    capabilities = Capabilities(params=frozenset({"max_tokens", "seed", "temperature", "do_sample"}), batching=True)


def rows(*texts: Any) -> list[Row]:
    return [{"q": text, "id": n} for n, text in enumerate(texts)]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("model", [ScriptedLLM, NoChoices])
def test_three_rows_by_two_generations(model: type[ScriptedLLM], group: bool) -> None:
    task = Echo(
        llm=model(lambda prompt: f"re {prompt}"), num_generations=2, group_generations=group, add_raw_output=False
    )
    new_rows = next(task.process(rows("a", "b", "c")))
    answers = [f"re {text}" for text in "abc"]
    if group:
        assert [row["a"] for row in new_rows] == [[answer] * 2 for answer in answers]
    else:
        assert [(row["id"], row["a"]) for row in new_rows] == [(n, answers[n]) for n in range(3) for _ in range(2)]


def test_choices_differ_where_they_are_sampled_with_and_without_support() -> None:
    for model in (ScriptedLLM, NoChoices):
        task = Echo(
            llm=model([["x", "y", "z"][n] for n in range(3)]), num_generations=8, params={"temperature": 1.5, "seed": 3}
        )
        assert len({row["a"] for row in task.apply(rows("a"))}) > 1


def test_one_bad_row_gives_none_with_its_reason_and_costs_no_other() -> None:
    answers = {"good": "fine", "odd": "bad", "also good": "fine too", "fails": "boom"}
    task = Echo(llm=ScriptedLLM(answers, fail_on="boom", context_length=20))
    new_rows = task.apply(rows("good", "odd", 7, None, "also good", "fails", "long " * 30, " "))
    assert [row["a"] for row in new_rows] == ["fine", None, None, None, "fine too", None, None, None]
    reasons = [failure(row, "echo_0") for row in new_rows]
    assert reasons[0] is reasons[4] is None
    assert reasons[1] == "ValueError: cannot read 'bad'"
    assert reasons[2] == "AttributeError: 'int' object has no attribute 'strip'"
    assert reasons[3] == "InvalidRequest: a row must have 'q', got the columns 'q', 'id'"
    assert str(reasons[5]).startswith("GenerationError")
    assert str(reasons[6]).startswith("ContextLengthExceeded: the prompt has 30 tokens")
    assert str(reasons[7]).startswith("InvalidRequest")
    assert [row["id"] for row in new_rows] == list(range(8))
    assert new_rows[1]["llmkit_metadata"]["raw_output_echo_0"] == "bad", "what the model said is kept"
    assert task.statistics.rows == 8
    assert task.statistics.failures == 6


def test_good_rows_stay_in_batches_when_one_fails() -> None:
    llm = ScriptedLLM("ok", fail_on="boom")
    sizes: list[int] = []
    complete_batch = llm.complete_batch
    llm.complete_batch = lambda requests: sizes.append(len(requests)) or complete_batch(requests)  # type: ignore[method-assign]
    Echo(llm=llm).apply(rows(*"abcdefgh"))
    assert sizes == [8], "one call, so that the model batches"


def test_a_failing_row_among_generations_and_groups() -> None:
    task = Echo(llm=ScriptedLLM("x"), num_generations=2)
    assert [row["a"] for row in task.apply(rows(7, "a"))] == [None, None, "x", "x"]
    grouped = Echo(llm=ScriptedLLM("x"), num_generations=2, group_generations=True)
    assert [row["a"] for row in grouped.apply(rows(7, "a"))] == [[None, None], ["x", "x"]]


def test_a_fault_of_all_rows_is_raised() -> None:
    llm = ScriptedLLM("x")
    task = Echo(llm=llm)
    llm.close()
    with pytest.raises(ModelClosed):
        task.apply(rows("a"))


def test_any_model_with_only_run_will_do() -> None:
    task = Echo(llm=Shouting(), num_generations=2, add_statistics=True)
    new_rows = task.apply(rows("a", "stop"))
    assert [row["a"] for row in new_rows] == ["A", "A", None, None]
    assert failure(new_rows[2], "echo_0") == "RuntimeError: no more"
    assert new_rows[0]["model_name"] == "Shouting"


def test_a_style_reaches_a_model_that_has_only_run() -> None:
    class Bot(BaseLLM):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            return f"[{task}]<human>: more"

    [row] = Echo(llm=Bot(), prompt_style="human_bot").apply(rows("hi"))
    assert row["a"] == "[", "cut where the style ends a response, which is in the prompt that it repeats"


@pytest.mark.parametrize("add_raw_input", [False, True])
@pytest.mark.parametrize("add_raw_output", [False, True])
@pytest.mark.parametrize("add_statistics", [False, True])
def test_what_is_noted_is_what_was_asked_for(add_raw_input: bool, add_raw_output: bool, add_statistics: bool) -> None:
    task = Echo(
        name="t", llm=ScriptedLLM("one two"), add_raw_input=add_raw_input, add_raw_output=add_raw_output,
        add_statistics=add_statistics,
    )  # fmt: skip
    [row] = task.apply(rows("hi"))
    expected: dict[str, Any] = {}
    if add_raw_output:
        expected["raw_output_t"] = "one two"
    if add_raw_input:
        expected["raw_input_t"] = [{"role": "user", "content": "hi"}]
    if add_statistics:
        expected["statistics_t"] = {"input_tokens": 1, "output_tokens": 3}
    assert row.get("llmkit_metadata") == (expected or None)


def test_metadata_of_several_tasks_merges() -> None:
    first = Echo(name="one", llm=ScriptedLLM("x", model_name="m1"))
    second = Echo(name="two", llm=ScriptedLLM("y", model_name="m2"), output_mappings={"a": "b"})
    [row] = second.apply(first.apply(rows("hi")))
    assert (row["a"], row["b"]) == ("x", "y")
    assert row["llmkit_metadata"] == {"raw_output_one": "x", "raw_output_two": "y", "model_name_two": "m2"}
    assert row["model_name"] == "m1"


@pytest.mark.parametrize("first_grouped", [False, True])
@pytest.mark.parametrize("second_grouped", [False, True])
def test_metadata_merges_through_groups_without_loss(first_grouped: bool, second_grouped: bool) -> None:
    first = Echo(name="one", llm=ScriptedLLM("x"), num_generations=2, group_generations=first_grouped)
    second = Echo(
        name="two",
        llm=ScriptedLLM("y"),
        num_generations=3,
        group_generations=second_grouped,
        output_mappings={"a": "b"},
    )
    new_rows = second.apply(first.apply(rows("hi")))
    assert len(new_rows) == (1 if first_grouped else 2) * (1 if second_grouped else 3)
    for row in new_rows:
        text = json.dumps(row["llmkit_metadata"])
        assert '"raw_output_one": "x"' in text
        assert '"raw_output_two"' in text
        assert text.count('"y"') >= (3 if second_grouped else 1)
        assert isinstance(row["llmkit_metadata"], list) == (first_grouped or second_grouped)


def test_a_second_task_of_the_same_name_would_overwrite_and_is_refused() -> None:
    again = Echo(llm=ScriptedLLM("y"), output_mappings={"a": "b"})
    with pytest.raises(InvalidRequest, match="'raw_output_echo_0' already; give each task a name of its own"):
        again.apply(Echo(llm=ScriptedLLM("x")).apply(rows("hi")))


def test_an_output_does_not_overwrite_a_column() -> None:
    with pytest.raises(InvalidRequest, match=r"a column 'a' already.*output_mappings=\{'a': \.\.\.\}"):
        Echo(llm=ScriptedLLM()).apply([{"q": "x", "a": 1}])


def test_rows_are_refused_before_a_model_is_loaded() -> None:
    n_loaded: list[int] = []

    def model() -> ScriptedLLM:
        n_loaded.append(1)
        return ScriptedLLM()

    with pytest.raises(InvalidRequest, match="a column 'a' already"):
        next(Echo(llm=model).process([{"q": "x", "a": 1}]))
    assert not n_loaded
    next(Echo(llm=model).process([{"q": "x"}]))
    assert n_loaded


def test_mappings_are_right_for_every_row_with_several_generations() -> None:
    task = Echo(
        llm=ScriptedLLM(lambda prompt: f"re {prompt}"), num_generations=2, input_mappings={"q": "question"},
        output_mappings={"a": "answer"},
    )  # fmt: skip
    data = [{"question": f"x{n}", "q": f"keep{n}", "a": f"old{n}"} for n in range(2)]
    new_rows = task.apply(data)
    for at, row in enumerate(new_rows):
        n = at // 2
        assert (row["question"], row["q"], row["a"], row["answer"]) == (f"x{n}", f"keep{n}", f"old{n}", f"re x{n}")


def test_run_time_goes_before_the_constructor_and_the_constructor_before_the_model() -> None:
    llm = ScriptedLLM("a b c d e f", max_tokens=6)
    task = Echo(llm=llm, params={"max_tokens": 2, "temperature": 0})
    assert task.apply(rows("x"))[0]["a"] == "a b"
    at_run_time = task.with_runtime_parameters(params={"max_tokens": 4}, num_generations=2)
    assert [row["a"] for row in at_run_time.apply(rows("x"))] == ["a b c d"] * 2
    assert at_run_time.params == {"max_tokens": 4, "temperature": 0}
    assert task.apply(rows("x"))[0]["a"] == "a b", "it does not stick"
    assert Echo(llm=llm).apply(rows("x"))[0]["a"] == "a b c d e f"
    assert llm.max_tokens == 6
    with pytest.raises(UnknownParameter):
        task.with_runtime_parameters(llm=ScriptedLLM())


def test_the_models_own_number_of_choices_does_not_leak() -> None:
    assert len(Echo(llm=ScriptedLLM("x", num_return_sequences=3)).apply(rows("a"))) == 1


def test_a_rows_seed_decides_alone_what_is_drawn_for_it() -> None:
    task = Echo(llm=ScriptedLLM(["x", "y", "z"]), params={"temperature": 2.0})
    data = rows(*"abcdef")
    together = [row["a"] for row in next(task.process(data, seeds=[5, 6, 7, 8, 9, 10]))]
    backwards = [row["a"] for row in next(task.process(data[::-1], seeds=[10, 9, 8, 7, 6, 5]))]
    assert together == backwards[::-1]
    assert len(set(together)) > 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_generations": 0}, ParameterError, "num_generations must be at least 1, got 0"),
        ({"params": {"max_token": 1}}, UnknownParameter, "'max_token'.*'max_tokens'"),
        ({"params": {"top_p": 2}}, ParameterError, "top_p"),
        ({"params": {"n": 2}}, ParameterError, "num_generations does"),
        ({"num_generation": 2}, UnknownParameter, "'num_generation'.*'num_generations'"),
        ({"llm": 3}, ParameterError, "llm must be a model, a name to load or a function"),
        ({"params": {"top_k": 5}}, UnsupportedParameter, "top_k"),
        ({"prompt_style": "nosuch"}, ValueError, "unknown prompt style"),
    ],
)
def test_wrong_parameters_are_refused_before_any_row(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Echo(**{"llm": ScriptedLLM(), **arguments})


def test_a_model_is_mandatory() -> None:
    with pytest.raises(TypeError, match="llm"):
        Echo()  # type: ignore[call-arg]


def test_a_bare_models_run_must_take_the_parameters() -> None:
    class Plain(BaseLLM):
        def run(self, task: str | None = None) -> str:  # type: ignore[override]
            return task or ""

    assert Echo(llm=Plain()).apply(rows("hi"))[0]["a"] == "hi"
    with pytest.raises(UnsupportedParameter, match="'max_tokens'"):
        Echo(llm=Plain(), params={"max_tokens": 3})


def test_a_model_is_loaded_once_when_asked_for_and_closed_by_unload() -> None:
    made: list[ScriptedLLM] = []

    def make() -> ScriptedLLM:
        made.append(ScriptedLLM("x"))
        return made[-1]

    task = Echo(llm=make)
    assert made == []
    task.load()
    task.load()
    task.apply(rows("a"))
    assert len(made) == 1
    task.unload()
    task.unload()
    with pytest.raises(ModelClosed):
        made[0].run("x")
    assert task.apply(rows("a"))[0]["a"] == "x"
    assert len(made) == 2


def test_a_model_that_cannot_honour_the_parameters_is_closed_again() -> None:
    made: list[ScriptedLLM] = []
    task = Echo(llm=lambda: made.append(ScriptedLLM()) or made[-1], params={"top_k": 3})
    with pytest.raises(UnsupportedParameter, match="top_k"):
        task.load()
    with pytest.raises(ModelClosed):
        made[0].run("x")


def test_a_model_that_was_passed_is_its_owners_to_close() -> None:
    llm = ScriptedLLM("x")
    task = Echo(llm=llm)
    task.load()
    task.unload()
    assert llm.run("a") == "x"


def test_what_a_function_gives_must_be_a_model() -> None:
    with pytest.raises(ParameterError, match="gave 'gpt2'"):
        Echo(llm=lambda: "gpt2").load()  # type: ignore[arg-type,return-value]


def test_a_task_travels_to_another_process_and_loads_there() -> None:
    task = TextGeneration(llm="llmkit-tiny", params={"max_tokens": 12})
    arrived = pickle.loads(pickle.dumps(task))
    [row] = arrived.apply([{"instruction": "What is the capital of France?"}])
    assert "Paris" in row["generation"]
    arrived.unload()


def test_identity_tells_the_model_and_its_parameters() -> None:
    base = Echo(llm=ScriptedLLM("x")).identity()
    assert base == Echo(llm=ScriptedLLM("x")).identity()
    assert base != Echo(llm=ScriptedLLM("y")).identity(), "the fingerprint differs"
    assert base != Echo(llm=ScriptedLLM("x", max_tokens=3)).identity()
    assert base != Echo(llm=ScriptedLLM("x"), params={"max_tokens": 3}).identity()
    json.dumps(base)


def test_statistics_add_up() -> None:
    task = Echo(llm=ScriptedLLM("one two"))
    task.apply(rows("a b", "c", 7))
    assert task.statistics == Statistics(rows=3, failures=1, prompt_tokens=3, completion_tokens=6)


def test_outputs_must_be_what_was_announced() -> None:
    class Wrong(Echo):
        def format_output(self, output: str | None, input: Row) -> Row:
            return {"b": output}

    [row] = Wrong(llm=ScriptedLLM()).apply(rows("a"))
    assert row["a"] is None
    assert failure(row, "wrong_0") == "InvalidRequest: format_output must give ['a'], got ['b']"


def test_outputs_must_be_a_dictionary() -> None:
    class Bare(Echo):
        def format_output(self, output: str | None, input: Row) -> Row:
            return output  # pyright: ignore[reportReturnType]

    [row] = Bare(llm=ScriptedLLM("said")).apply(rows("a"))
    assert row["a"] is None
    assert failure(row, "bare_0") == "InvalidRequest: format_output must give a dictionary of ['a'], got 'said'"


def test_no_rows_give_no_rows() -> None:
    assert next(Echo(llm=ScriptedLLM()).process([])) == []
    assert Echo(llm=ScriptedLLM()).apply([]) == []


def test_rows_of_the_embedded_model_are_the_same_alone_and_together() -> None:
    with llmkit.load(max_tokens=16) as llm:
        task = TextGeneration(llm=llm, params={"temperature": 0.9})
        data = [{"instruction": f"What is the capital of {name}?"} for name in ("Italy", "Peru", "Japan")]
        together = next(task.process(data, seeds=[1, 2, 3]))
        alone = [next(task.process([row], seeds=[seed]))[0] for row, seed in zip(data, (1, 2, 3), strict=True)]
    assert together == alone
