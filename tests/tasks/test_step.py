from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llmkit.errors import InvalidRequest, ParameterError, UnknownParameter
from llmkit.tasks import Row, Step


class Repeat(Step):
    """Gives each row several times, in lists of one."""

    times: int = 2
    suffix: str = "!"

    @property
    def inputs(self) -> Sequence[str]:
        return ["text"]

    @property
    def outputs(self) -> Sequence[str]:
        return ["said"]

    def check(self) -> None:
        if self.times < 0:
            raise ParameterError(f"times must be at least 0, got {self.times}")

    def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
        for row in reversed(rows):
            for n in range(self.times):
                yield [{**row, "said": f"{row['text']}{self.suffix}{n}"}]


def test_every_yield_is_consumed_and_batches_are_kept_small() -> None:
    assert [row["said"] for row in Repeat().apply([{"text": "a"}, {"text": "b"}])] == ["b!0", "b!1", "a!0", "a!1"]
    small = Repeat(input_batch_size=1).apply([{"text": "a"}, {"text": "b"}])
    assert [row["said"] for row in small] == ["a!0", "a!1", "b!0", "b!1"]


def test_the_rows_that_are_passed_stay_as_they_are() -> None:
    rows = [{"text": "a", "said": "old"}]
    Repeat(output_mappings={"said": "new"}).apply(rows)
    assert rows == [{"text": "a", "said": "old"}]


def test_a_mapped_column_is_right_for_every_row_however_rows_multiply() -> None:
    step = Repeat(input_mappings={"text": "body"}, output_mappings={"said": "new"})
    rows = [{"body": f"b{n}", "text": f"t{n}", "said": f"s{n}", "id": n} for n in range(3)]
    new_rows = step.apply(rows)
    assert len(new_rows) == 6
    for row in new_rows:
        n = row["id"]
        assert row == {"body": f"b{n}", "text": f"t{n}", "said": f"s{n}", "id": n, "new": row["new"]}
        assert row["new"].startswith(f"b{n}!")


def test_mappings_show_in_the_columns() -> None:
    step = Repeat(input_mappings={"text": "body"}, output_mappings={"said": "new"})
    assert step.required_columns == ("body",)
    assert step.output_columns == ("new",)


def test_an_output_that_replaces_an_input_may_do_so() -> None:
    class Upper(Repeat):
        @property
        def outputs(self) -> Sequence[str]:
            return ["text"]

        def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
            yield [{**row, "text": row["text"].upper()} for row in rows]

    assert Upper().apply([{"text": "a"}]) == [{"text": "A"}]
    both = Upper(input_mappings={"text": "body"}, output_mappings={"text": "body"})
    assert both.apply([{"body": "a", "text": 1}]) == [{"body": "A", "text": 1}]
    apart = Upper(input_mappings={"text": "body"}, output_mappings={"text": "loud"})
    assert apart.apply([{"body": "a"}]) == [{"body": "a", "loud": "A"}]
    unmapped = Upper(input_mappings={"text": "body"})
    assert unmapped.apply([{"body": "a"}]) == [{"body": "a", "text": "A"}]


def test_an_output_is_not_mapped_to_a_column_that_is_there() -> None:
    with pytest.raises(InvalidRequest, match="a new column, got 'id'"):
        Repeat(output_mappings={"said": "id"}).apply([{"text": "a", "id": 1}])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "my step"}, ParameterError, "name must be letters, digits, _ and -, got 'my step'"),
        ({"name": 3}, ParameterError, "name must be letters, digits, _ and -, got 3"),
        ({"input_batch_size": 0}, ParameterError, "input_batch_size must be at least 1, got 0"),
        ({"times": -1}, ParameterError, "times must be at least 0, got -1"),
        ({"tims": 1}, UnknownParameter, "'tims'.*did you mean 'times'"),
        ({"input_mappings": {"txet": "a"}}, ParameterError, "input_mappings must map text, got 'txet'.*'text'"),
        ({"output_mappings": {"text": "a"}}, ParameterError, "output_mappings must map said, got 'text'"),
    ],
)
def test_wrong_parameters_are_refused_with_rule_and_value(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Repeat(**arguments)


def test_a_name_is_made_from_the_class() -> None:
    class HTMLToText(Repeat):
        pass

    assert Repeat().name == "repeat_0"
    assert Repeat(name="My-step_1").name == "My-step_1"
    assert HTMLToText().name == "htmlto_text_0"


def test_process_is_not_overridden_since_it_applies_the_mappings() -> None:
    with pytest.raises(TypeError, match="must define transform"):

        class Wrong(Repeat):
            def process(self, rows: Any, *, seeds: Any = None) -> Iterator[list[Row]]:
                yield rows


def test_runtime_parameters_go_before_the_constructors_and_do_not_stick() -> None:
    step = Repeat(times=1, suffix="?")
    changed = step.with_runtime_parameters(times=2)
    assert (changed.times, changed.suffix, step.times) == (2, "?", 1)
    assert step.runtime_parameters == {"input_batch_size": 50, "times": 1, "suffix": "?"}
    with pytest.raises(ParameterError, match="got -1"):
        step.with_runtime_parameters(times=-1)
    for name in ("name", "tims"):
        with pytest.raises(UnknownParameter):
            step.with_runtime_parameters(**{name: "x"})


def test_seeds_are_one_a_row() -> None:
    with pytest.raises(ParameterError, match="1 seeds for 2 rows"):
        next(Repeat().process([{"text": "a"}, {"text": "b"}], seeds=[1]))


def test_identity_tells_parameters_and_code_and_not_the_batch_size() -> None:
    assert Repeat().identity() == Repeat(input_batch_size=3).identity()
    assert Repeat().identity() != Repeat(times=3).identity()

    class Other(Repeat):
        def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
            yield rows

    Other.__qualname__ = "Repeat"
    assert Other().identity()["parameters"] == {**Repeat().identity()["parameters"], "name": "other_0"}
    assert Other().identity()["code"] != Repeat().identity()["code"]


def test_identity_tells_typed_in_code_functions_and_what_they_keep() -> None:
    def made(body: str) -> Any:
        namespace: dict[str, Any] = {"Step": Step, "__name__": __name__}
        source = (
            "class Typed(Step):\n  f: object = None\n  inputs = ['a']\n  outputs = []\n"
            f"  def transform(self, rows):\n    {body}\n"
        )
        exec(source, namespace)
        return namespace["Typed"]

    first, same, other = made("yield rows"), made("yield rows"), made("yield rows[:1]")
    assert first().identity() == same().identity()
    assert first().identity() != other().identity()

    def adder(n: int) -> Any:
        return lambda x: x + n

    assert first(f=adder(1)).identity() == first(f=adder(1)).identity()
    assert first(f=adder(1)).identity() != first(f=adder(2)).identity()
    assert first(f=functools.partial(max, 1)).identity() != first(f=functools.partial(max, 2)).identity()
    with pytest.raises(ParameterError, match="got a object"):
        first(f=object()).identity()
