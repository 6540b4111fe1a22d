from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.base import BaseLLM
from llmkit.errors import ParameterError, TaskArgsInvalid, UnknownParameter
from llmkit.params import GenerationParams, ParamValues, inert, per_task, resolve
from llmkit.specs import ALIASES, SPECS, canonical_name
from llmkit.wire import GPTTask


class Echo(BaseLLM):
    """Answers with its own parameters under the call's."""

    seen: GenerationParams

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        self.seen = GenerationParams(**kwargs).over(self.params)
        return task or ""


POSITIVE = st.integers(1, 10**6)
TOKEN_ID = st.integers(0, 10**6)
PENALTY = st.floats(-2, 2)
SHARE = st.floats(0, 1, exclude_min=True)
STRINGS = st.text(min_size=1, max_size=5)

VALID: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": POSITIVE,
    "max_length": POSITIVE,
    "temperature": st.floats(0, 100),
    "top_k": st.integers(-1, 10**6),
    "top_p": SHARE,
    "min_p": st.floats(0, 1),
    "typical_p": SHARE,
    "do_sample": st.booleans(),
    "seed": st.integers(0, 2**64 - 1),
    "num_return_sequences": POSITIVE,
    "num_beams": POSITIVE,
    "early_stopping": st.booleans() | st.just("never"),
    "length_penalty": st.floats(-10, 10),
    "repetition_penalty": st.floats(0, 100, exclude_min=True),
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "stop_token": STRINGS | st.lists(STRINGS, max_size=3).map(tuple),
    "logprobs": st.integers(0, 20),
    "pad_token_id": TOKEN_ID,
    "eos_token_id": TOKEN_ID | st.lists(TOKEN_ID, max_size=3).map(tuple),
    "bos_token_id": TOKEN_ID,
    "system_prompt": st.text(max_size=5),
    "role": st.sampled_from(["user", "assistant"]),
}

NAN, INFINITE = float("nan"), float("inf")
NO_INTEGER = (1.5, 1.0, "1", True, [1], NAN)
NO_NUMBER = ("1", True, [1.0], NAN, INFINITE, -INFINITE, 1j)
NO_FLAG = (1, 0, "true", [True])

INVALID: dict[str, tuple[Any, ...]] = {
    "max_tokens": (0, -1, *NO_INTEGER),
    "max_length": (0, -1, *NO_INTEGER),
    "temperature": (-0.1, *NO_NUMBER),
    "top_k": (-2, *NO_INTEGER),
    "top_p": (0, -0.1, 1.7, *NO_NUMBER),
    "min_p": (-0.1, 1.1, *NO_NUMBER),
    "typical_p": (0, 1.1, *NO_NUMBER),
    "do_sample": NO_FLAG,
    "seed": (-1, 2**64, *NO_INTEGER),
    "num_return_sequences": (0, *NO_INTEGER),
    "num_beams": (0, *NO_INTEGER),
    "early_stopping": (*NO_FLAG, "always"),
    "length_penalty": NO_NUMBER,
    "repetition_penalty": (0, -1, *NO_NUMBER),
    "frequency_penalty": (-2.1, 2.1, *NO_NUMBER),
    "presence_penalty": (-2.1, 2.1, *NO_NUMBER),
    "stop_token": ("", 5, ["a", ""], ["a", 1], {"a"}),
    "logprobs": (-1, 21, *NO_INTEGER),
    "pad_token_id": (-1, *NO_INTEGER),
    "eos_token_id": (-1, [1, -1], ["1"], 1.5, "1", True),
    "bos_token_id": (-1, *NO_INTEGER),
    "system_prompt": (1, ["a"], b"a"),
    "role": ("system", "User", "", 1),
}

NAMES = [*SPECS, *ALIASES]
SETTERS = sorted(name for name in dir(BaseLLM) if name.startswith("set_") and name[4:] in SPECS)
IN_TASKS = sorted(GPTTask.model_fields["generation_config"].annotation.model_fields)  # type: ignore[union-attr]
VALUES = [(name, value) for name in NAMES for value in INVALID[canonical_name(name)]]
SOME = {"temperature": 0.5, "max_tokens": 7, "stop_token": "x"}


def valid(name: str) -> st.SearchStrategy[Any]:
    return VALID[canonical_name(name)]


def task_with(name: str, value: Any) -> dict[str, Any]:
    """A GPT task with this value where tasks have it."""
    task: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return {**task, "seed": value} if name == "seed" else {**task, "generation_config": {name: value}}


def test_every_parameter_has_values_to_test_with() -> None:
    assert set(VALID) == set(INVALID) == set(SPECS) == {field.name for field in fields(GenerationParams)}
    assert set(NAMES) == set(ParamValues.__annotations__)


@given(data=st.data())
def test_valid_values_come_back_from_every_way_in(data: st.DataObject) -> None:
    for name in NAMES:
        value = data.draw(valid(name), name)
        own = canonical_name(name)
        assert getattr(GenerationParams(**{name: value}), own) == value
        assert getattr(GenerationParams().replace(**{name: value}), own) == value
        assert getattr(Echo(**{name: value}).params, own) == value
        llm = Echo()
        llm.run("x", **{name: value})
        assert getattr(llm.seen, own) == value
        assert llm.params == GenerationParams()
        if hasattr(BaseLLM, name):
            setattr(llm, name, value)
            assert getattr(llm, name) == value == getattr(llm.params, own)


@pytest.mark.parametrize("setter", SETTERS)
@given(data=st.data())
def test_a_setter_sets_its_attribute(setter: str, data: st.DataObject) -> None:
    llm, name = Echo(), setter.removeprefix("set_")
    value = data.draw(valid(name))
    getattr(llm, setter)(value)
    assert getattr(llm, name) == value == getattr(llm.params, name)
    getattr(llm, setter)(None)
    assert getattr(llm, name) is None


@pytest.mark.parametrize("name", [*IN_TASKS, "seed"])
@given(data=st.data())
def test_a_gpt_task_takes_the_same_values(name: str, data: st.DataObject) -> None:
    value = data.draw(valid(name))
    task = task_with(name, value)
    if canonical_name(name) == "num_return_sequences":
        task["generation_config"]["num_beams"] = value
    assert getattr(GPTTask.parse(task).to_request().params, canonical_name(name)) == value


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_bad_values_are_refused_by_one_rule_and_change_nothing(name: str, value: Any) -> None:
    spec = SPECS[canonical_name(name)]
    llm = Echo(**SOME)
    before = llm.params
    ways = [
        lambda: GenerationParams(**{name: value}),
        lambda: before.replace(**{name: value}),
        lambda: Echo(**{name: value}),
        lambda: llm.run("x", **{name: value}),
    ]
    if hasattr(BaseLLM, name):
        ways.append(lambda: setattr(llm, name, value))
    if f"set_{name}" in SETTERS:
        ways.append(lambda: getattr(llm, f"set_{name}")(value))
    for way in ways:
        with pytest.raises(ParameterError) as caught:
            way()
        assert str(caught.value) == f"{name} must be {spec.rule}, got {value!r}"
    assert llm.params == before == GenerationParams(**SOME)


@pytest.mark.parametrize(("name", "value"), [pair for pair in VALUES if pair[0] in (*IN_TASKS, "seed")])
def test_a_gpt_task_refuses_the_same_values(name: str, value: Any) -> None:
    with pytest.raises(TaskArgsInvalid, match=name):
        GPTTask.parse(task_with(name, value))


@given(data=st.data())
def test_params_come_back_from_their_own_pairs(data: st.DataObject) -> None:
    params = GenerationParams(
        **{name: data.draw(valid(name)) for name in data.draw(st.sets(st.sampled_from([*SPECS])))}
    )
    assert GenerationParams(**dict(params)) == params
    assert hash(GenerationParams(**dict(params))) == hash(params)
    assert eval(repr(params)) == params


def test_params_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        GenerationParams().top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_two_names_of_one_parameter_must_agree(alias: str, name: str) -> None:
    one, other = {
        "max_tokens": (3, 4),
        "num_return_sequences": (3, 4),
        "num_beams": (3, 4),
        "repetition_penalty": (1.5, 2.0),
        "stop_token": ("a", "b"),
    }[name]
    assert getattr(GenerationParams(**{name: one, alias: one}), name) == one
    with pytest.raises(ParameterError, match=f"{name} and {alias} are one parameter, got {one!r} and {other!r}"):
        GenerationParams(**{name: one, alias: other})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("temprature", "temperature"), ("top-p", "top_p"), ("max_token", "max_tokens"), ("num_beam", "num_beams")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, right: str) -> None:
    for way in (GenerationParams, Echo, Echo().run):
        with pytest.raises(TypeError, match=f"unknown parameter '{wrong}'; did you mean '{right}'"):
            way(**{wrong: 1})
    assert issubclass(UnknownParameter, TypeError)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    params = GenerationParams(top_k=numpy.int64(5), temperature=numpy.float32(0.5))
    assert (type(params.top_k), params.top_k, type(params.temperature)) == (int, 5, float)


# --- layers ---------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_over_prefers_its_own_values(data: st.DataObject) -> None:
    def some() -> GenerationParams:
        return GenerationParams(**{n: data.draw(valid(n)) for n in data.draw(st.sets(st.sampled_from([*SPECS])))})

    upper, lower = some(), some()
    merged = upper.over(lower)
    for name in SPECS:
        own = getattr(upper, name)
        assert getattr(merged, name) == (getattr(lower, name) if own is None else own)


def test_the_library_limits_length_only_where_nobody_else_does() -> None:
    nobody = GenerationParams()
    assert resolve(nobody, nobody).max_tokens == 256
    assert resolve(GenerationParams(max_length=9), nobody).max_tokens is None
    assert resolve(nobody, GenerationParams(max_length=9)).max_tokens is None
    assert resolve(GenerationParams(max_tokens=5), GenerationParams(max_tokens=4)).max_tokens == 5


def test_a_users_limit_replaces_the_models_in_either_form() -> None:
    resolved = resolve(GenerationParams(max_tokens=50), GenerationParams(max_length=20, max_tokens=10))
    assert (resolved.max_tokens, resolved.max_length) == (50, None)


@pytest.mark.parametrize(
    ("user", "model", "samples"),
    [
        ({}, {}, False),
        ({"temperature": 0.7}, {}, True),
        ({"temperature": 1.0}, {}, True),
        ({"top_p": 0.9}, {}, True),
        ({"top_k": 5}, {}, True),
        ({"min_p": 0.1}, {}, True),
        ({"typical_p": 0.5}, {}, True),
        ({"temperature": 0.7, "do_sample": False}, {}, False),
        ({"temperature": 0}, {}, False),
        ({"temperature": 0, "do_sample": True}, {}, False),
        ({"temperature": 0}, {"do_sample": True, "temperature": 0.6}, False),
        ({}, {"do_sample": True, "temperature": 0.6}, True),
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.6}, False),
        ({}, {"temperature": 0.6}, False),
        ({"do_sample": True}, {}, True),
        ({"seed": 3}, {}, False),
    ],
)
def test_what_implies_sampling(user: dict[str, Any], model: dict[str, Any], samples: bool) -> None:
    assert resolve(GenerationParams(**user), GenerationParams(**model)).do_sample is samples


def test_more_choices_than_beams_are_refused() -> None:
    with pytest.raises(ParameterError, match="num_return_sequences must be <= num_beams, got 3 and 2"):
        resolve(GenerationParams(num_beams=2, n=3), GenerationParams())
    assert resolve(GenerationParams(n=3), GenerationParams()).n == 3


@pytest.mark.parametrize(
    ("user", "idle"),
    [
        ({"length_penalty": 2.0}, {"length_penalty"}),
        ({"early_stopping": True}, {"early_stopping"}),
        ({"length_penalty": 2.0, "early_stopping": True, "num_beams": 2}, set()),
        ({"length_penalty": 1.0}, set()),
        ({"top_p": 0.5, "do_sample": False}, {"top_p"}),
        ({"top_p": 1.0, "do_sample": False}, set()),
        ({"temperature": 0.5, "do_sample": False}, {"temperature"}),
        ({"temperature": 0, "top_k": 5}, {"top_k"}),
        ({"temperature": 0.5, "top_k": 5}, set()),
    ],
)
def test_parameters_without_effect_are_named(user: dict[str, Any], idle: set[str]) -> None:
    params = GenerationParams(**user)
    assert set(inert(params, resolve(params, GenerationParams()))) == idle


# --- one value a task -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=5), st.integers())
def test_a_list_gives_one_value_a_task_and_anything_else_goes_to_all(seeds: list[int], value: int) -> None:
    rows = per_task({"seed": seeds, "top_k": value, "tools": [1, 2, 3]}, len(seeds))
    assert rows == [{"seed": seed, "top_k": value, "tools": [1, 2, 3]} for seed in seeds]


@pytest.mark.parametrize("name", ["stop_token", "stop", "stop_strings"])
def test_a_list_of_stop_strings_goes_to_all_tasks_and_a_list_of_lists_to_one_each(name: str) -> None:
    assert per_task({name: ["a", "b"]}, 2) == [{name: ["a", "b"]}] * 2
    assert per_task({name: [["a"], None]}, 2) == [{name: ["a"]}, {name: None}]
    assert per_task({"eos_token_id": [[1, 2], [3]]}, 2) == [{"eos_token_id": [1, 2]}, {"eos_token_id": [3]}]


def test_a_list_of_another_length_than_the_batch_is_refused() -> None:
    with pytest.raises(ParameterError, match="seed must have one value a task, got 2 values for 3 tasks"):
        per_task({"seed": [1, 2]}, 3)


def test_the_constructor_names_all_parameters_of_the_contract() -> None:
    named = list(inspect.signature(BaseLLM.__init__).parameters)[1:-1]
    assert len(named) == 23
    assert all(name in NAMES or name in ("model_name", "device") for name in named)


# --- misspelt attributes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("tempereture", "temperature"),
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("topk", "top_k"),
        ("Top_P", "top_p"),
        ("num_beam", "num_beams"),
        ("repetion_penalty", "repetition_penalty"),
        ("stop_tokens", "stop_token"),
        ("system_promt", "system_prompt"),
    ],
)
def test_a_misspelt_attribute_is_refused_with_the_name_that_was_meant(name: str, meant: str) -> None:
    llm = Echo(**SOME)
    before = dict(vars(llm))
    with pytest.raises(AttributeError, match=f"Echo has no attribute '{name}'; did you mean '{meant}'"):
        setattr(llm, name, 1)
    assert vars(llm) == before


@pytest.mark.parametrize(
    "name", ["model", "stops", "seeds", "roles", "prompt", "temp", "tokens", "beams", "_top_kk", "x"]
)
def test_other_attributes_are_free(name: str) -> None:
    class Own(Echo):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, 1)
            setattr(self, name, 2)

    assert getattr(Own(), name) == 2


def test_a_subclass_may_declare_a_name_that_is_close_to_a_parameters() -> None:
    class Annotated(Echo):
        stop_tokens: list[str]

    class Assigned(Echo):
        stop_tokens = ("a",)

    class Property(Echo):
        @property
        def stop_tokens(self) -> int:
            return 1

        @stop_tokens.setter
        def stop_tokens(self, value: int) -> None:
            self.seen_value = value

    class Inherited(Annotated):
        pass

    for owner in (Annotated, Assigned, Property, Inherited):
        llm = owner()
        llm.stop_tokens = ["b"]  # type: ignore[assignment]
