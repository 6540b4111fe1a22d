from typing import Any

import pytest
import typer

from llmkit.cli.options import ModelOptions
from llmkit.errors import ParameterError
from llmkit.specs import ALIASES, SPECS

from .conftest import Run


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("top_k=5", 5),
        ("top-k=5", 5),
        ("temperature=0.5", 0.5),
        ("do_sample=true", True),
        ("early_stopping=never", "never"),
        ('stop=["a", "b"]', ["a", "b"]),
        ("stop=a=b", "a=b"),
        ("stop=5", "5"),
        ('stop="\\n"', "\n"),
        ("system_prompt=true", "true"),
        ("seed=null", None),
        ("dtype=float16", "float16"),
        ("quantize_bits=4", 4),
    ],
)
def test_the_text_of_a_parameter_becomes_its_value(text: str, value: object) -> None:
    [found] = ModelOptions(param=[text]).values().values()
    assert found == value
    assert type(found) is type(value)


def test_every_parameter_and_alias_can_be_named() -> None:
    # null is "not set here" for all of them.
    names = [*SPECS, *ALIASES]
    assert list(ModelOptions(param=[f"{name}=null" for name in names]).values()) == names


def test_options_that_were_not_given_are_left_to_the_model() -> None:
    assert ModelOptions(model="m").values() == {}


def test_zero_is_a_value() -> None:
    assert ModelOptions(temperature=0.0, seed=0).values() == {"temperature": 0.0, "seed": 0}


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 5, "param": ["top_k=6"]},
        {"max_tokens": 5, "param": ["max_new_tokens=6"]},
        {"system": "a", "param": ["system_prompt=b"]},
        {"param": ["dtype=float16", "dtype=float32"]},
    ],
)
def test_two_values_for_one_parameter_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        ModelOptions(**given).values()


@pytest.mark.parametrize("text", ["top_k", "=5", "model=gpt2", "model_name=gpt2"])
def test_a_pair_without_name_or_value_or_with_the_models_name_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        ModelOptions(param=[text]).values()


def test_a_bad_value_is_wrong_usage_and_found_before_the_model_is_looked_for(llmkit: Run) -> None:
    process = llmkit("run", "hi", "-m", "/no/such/model", "--top-p", "1.7")
    assert process.returncode == 2
    assert process.stderr == "error: top_p must be in (0, 1], got 1.7\n"


@pytest.mark.parametrize(("wrong", "right"), [("top_pp=1", "top_p"), ("pause=1", "pause_s"), ("device_=cpu", "device")])
def test_a_misspelt_name_gets_the_nearest_of_library_and_backend(llmkit: Run, wrong: str, right: str) -> None:
    process = llmkit("run", "hi", "-m", "scripted:x", "-p", wrong)
    assert process.returncode == 2
    assert f"did you mean {right!r}?" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_an_unknown_backend_is_wrong_usage(llmkit: Run) -> None:
    process = llmkit("run", "hi", "-m", "scriptde:x")
    assert process.returncode == 2
    assert "did you mean 'scripted'?" in process.stderr


def test_a_parameter_that_the_backend_cannot_honour_is_refused_unless_told_otherwise(llmkit: Run) -> None:
    arguments = ["run", "hi", "-m", "scripted:x", "--top-k", "3"]
    refused, relaxed = llmkit(*arguments), llmkit(*arguments, "-p", "on_unsupported=warn")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "'top_k'" in refused.stderr
    assert relaxed.returncode == 0
    assert relaxed.stderr.startswith("warning: top_k is left out")


def test_a_model_that_is_not_there_is_a_failure_in_one_line(llmkit: Run) -> None:
    process = llmkit("run", "hi", "-m", "transformers:/no/such/model")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: ")
    assert len(process.stderr.splitlines()) == 1
