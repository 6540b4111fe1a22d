"""Generation parameters as a whole: one frozen value, the attribute that reads it, and how layers of it resolve.

The rule of each parameter is in `specs.py`, so a value is checked the same way from every side. This module does not
know how a backend applies a parameter, nor which ones it can apply (`capabilities.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack, cast, overload

from llmkit.errors import ParameterError
from llmkit.specs import ALIASES, BEAM_ONLY, LIST_VALUED, SAMPLING_FILTERS, SPECS, canonical_name

DEFAULT_MAX_TOKENS = 256
T = TypeVar("T")


class ParamValues(TypedDict, total=False):
    """The keywords that `GenerationParams` and every `**overrides` accept, aliases included."""

    max_tokens: int | None
    max_new_tokens: int | None
    max_completion_tokens: int | None
    max_length: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    do_sample: bool | None
    seed: int | None
    num_return_sequences: int | None
    n: int | None
    num_beams: int | None
    beam_width: int | None
    early_stopping: bool | Literal["never"] | None
    length_penalty: float | None
    repetition_penalty: float | None
    repition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    stop_token: str | Sequence[str] | None
    stop_strings: str | Sequence[str] | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    pad_token_id: int | None
    eos_token_id: int | Sequence[int] | None
    bos_token_id: int | None
    system_prompt: str | None
    role: str | None


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by canonical name, checked; two different values for one parameter are an error."""
    checked: dict[str, Any] = {}
    for key, given in values.items():
        name = canonical_name(key)
        if given is None:
            continue
        value = SPECS[name].validated(key, given)
        if checked.setdefault(name, value) != value:
            other = next(k for k, v in values.items() if v is not None and canonical_name(k) == name)
            raise ParameterError(f"{other} and {key} are one parameter, got {checked[name]!r} and {value!r}")
    return checked


@dataclass(frozen=True, init=False)
class GenerationParams:
    """What shapes a generation; `None` means "not set here".

    Immutable, hashable and safe to share between threads. Aliases are accepted by the constructor and by `replace`.
    The meaning and range of each field stand in `SPECS`, and in the reference page made from it.

    Raises:
        ParameterError: a value breaks its rule, or two aliases got different values.
        UnknownParameter: a keyword is no parameter.
    """

    max_tokens: int | None = None
    max_length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    num_return_sequences: int | None = None
    num_beams: int | None = None
    early_stopping: bool | Literal["never"] | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop_token: str | tuple[str, ...] | None = None
    logprobs: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    bos_token_id: int | None = None
    system_prompt: str | None = None
    role: str | None = None

    def __init__(self, **values: Unpack[ParamValues]) -> None:
        # The class has None for all; only what is set lies in the object, so that layers merge as dictionaries do.
        self.__dict__.update(_canonical(values))

    @classmethod
    def _of(cls, checked: Mapping[str, Any]) -> Self:
        """From values that were checked before, by canonical name, and are not None."""
        made = object.__new__(cls)
        made.__dict__.update(checked)
        return made

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """The parameters that are set, as (name, value)."""
        return iter(sorted(self.__dict__.items(), key=_place))

    def __repr__(self) -> str:
        return f"GenerationParams({', '.join(f'{name}={value!r}' for name, value in self)})"

    def replace(self, **values: Unpack[ParamValues]) -> GenerationParams:
        """A copy with these values changed; `None` unsets one."""
        merged = dict(self.__dict__)
        for key, value in values.items():
            if value is None:
                merged.pop(canonical_name(key), None)
        return GenerationParams._of(merged | _canonical(values))

    def over(self, base: GenerationParams) -> GenerationParams:
        """This layer's values where they are set, the base's elsewhere."""
        return GenerationParams._of({**base.__dict__, **self.__dict__})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop_token` as a tuple, empty where none is set."""
        return (self.stop_token,) if isinstance(self.stop_token, str) else self.stop_token or ()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, empty where none is set."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id or ()

    @property
    def n(self) -> int:
        """Choices per request."""
        return self.num_return_sequences or 1

    @property
    def has_penalties(self) -> bool:
        """Whether a repetition, frequency or presence penalty changes the logits."""
        names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
        return any(name in names for name in self.effective())

    @property
    def uses_beams(self) -> bool:
        """Whether beam search is asked for."""
        return (self.num_beams or 1) > 1

    def effective(self) -> Iterator[str]:
        """Names of the parameters that are set to something other than their neutral value."""
        for name, value in self:
            if value not in SPECS[name].neutral:
                yield name


_PLACES = {field.name: at for at, field in enumerate(fields(GenerationParams))}


def _place(item: tuple[str, Any]) -> int:
    return _PLACES[item[0]]


def resolve(user: GenerationParams, model: GenerationParams) -> GenerationParams:
    """What a generation runs with: the user's values over the model's own over the library's defaults.

    An explicit `temperature` above 0 or a sampling filter from the user implies sampling unless the user's `do_sample`
    says no; `temperature=0` is greedy in any case. A length limit from the user replaces the model's, whichever of the
    two forms it has.

    Args:
        user: the call's overrides over the instance's values.
        model: what the model's own generation config sets.

    Raises:
        ParameterError: the combination is impossible.
    """
    if user.max_tokens is not None or user.max_length is not None:
        model = model.replace(max_tokens=None, max_length=None)
    merged = user.over(model)
    if merged.max_tokens is None and merged.max_length is None:
        merged = merged.replace(max_tokens=DEFAULT_MAX_TOKENS)
    merged = merged.replace(do_sample=_samples(user, merged))
    if merged.uses_beams and merged.n > (merged.num_beams or 1):
        raise ParameterError(f"num_return_sequences must be <= num_beams, got {merged.n} and {merged.num_beams}")
    if merged.uses_beams and merged.logprobs is not None:
        raise ParameterError(f"logprobs are not given for beam search: num_beams must be 1, got {merged.num_beams}")
    return merged


def _samples(user: GenerationParams, merged: GenerationParams) -> bool:
    if merged.temperature == 0:
        return False
    if user.do_sample is not None:
        return user.do_sample
    if any(name in ("temperature", *SAMPLING_FILTERS) for name, _ in user):
        return True
    return bool(merged.do_sample)


def inert(user: GenerationParams, resolved: GenerationParams) -> tuple[str, ...]:
    """Parameters that the user set to something that has no effect in the mode that was chosen.

    Args:
        user: what the user set, on the call or the instance.
        resolved: what `resolve` made of it.
    """
    idle: list[str] = []
    if not resolved.do_sample:
        idle += ["temperature", *SAMPLING_FILTERS] if resolved.temperature != 0 else SAMPLING_FILTERS
    if not resolved.uses_beams:
        idle += BEAM_ONLY
    return tuple(name for name in user.effective() if name in idle)


class Param(Generic[T]):
    """An attribute of a model that reads and writes one field of its `GenerationParams`.

    Setting a bad value raises and leaves the object as it was.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name or ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = canonical_name(self._name or name)
        self._public = name
        self.__doc__ = SPECS[self._name].doc

    @overload
    def __get__(self, instance: None, owner: type) -> Param[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Param[T] | T:
        return self if instance is None else getattr(instance.params, self._name)

    def __set__(self, instance: Any, value: T) -> None:
        instance.params = instance.params.replace(**{self._public: value})


def per_task(overrides: Mapping[str, Any], n_tasks: int) -> list[dict[str, Any]]:
    """Overrides for each task of a batch: a list gives one value a task, anything else goes to all.

    For a parameter whose own value may be a list (`stop_token`, `eos_token_id`), only a list that holds lists or
    `None` is one value a task. Keywords that are no parameters go to every task as they are.

    Raises:
        ParameterError: a list has another length than the batch.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(n_tasks)]
    for key, value in overrides.items():
        values = cast("list[Any]", value) if _is_one_per_task(key, value) else [value] * n_tasks
        if len(values) != n_tasks:
            raise ParameterError(f"{key} must have one value a task, got {len(values)} values for {n_tasks} tasks")
        for row, item in zip(rows, values, strict=True):
            row[key] = item
    return rows


def _is_one_per_task(key: str, value: object) -> bool:
    name = ALIASES.get(key, key)
    if name not in SPECS or not isinstance(value, list):
        return False
    items = cast("list[object]", value)
    return name not in LIST_VALUED or any(item is None or isinstance(item, (list, tuple)) for item in items)
