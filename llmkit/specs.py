"""The rules of the generation parameters: what a value must be, in words and in code, with aliases and neutral values.

It knows single values only; how they make up a whole is in `params.py`.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llmkit.errors import ParameterError, UnknownParameter


def _integer(value: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError
    return operator.index(value)


def _number(value: object) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _bool_or_never(value: object) -> bool | str:
    return "never" if value == "never" else _flag(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _strings(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _non_empty(value)
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_non_empty(_text(item)) for item in cast("Sequence[object]", value))


def _non_empty(value: str) -> str:
    if not value:
        raise ValueError
    return value


def _token_ids(value: object) -> int | tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return tuple(_at_least(0)(_integer(item)) for item in items)
    return _at_least(0)(_integer(value))


def _at_least(low: float) -> Callable[[Any], Any]:
    def check(value: float) -> float:
        if value < low:
            raise ValueError
        return value

    return check


def _within(low: float, high: float, *, open_low: bool = False) -> Callable[[float], float]:
    def check(value: float) -> float:
        if value > high or value < low or (open_low and value == low):
            raise ValueError
        return value

    return check


def _one_of(*allowed: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError
        return value

    return check


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter: its rule in words and in code.

    Attributes:
        rule: what the value must be, as the error message says it.
        convert: returns the normalised value, or raises TypeError or ValueError.
        doc: one line for the reference table.
        neutral: values that change nothing; they are never reported as unsupported or inert.
        aliases: other names for the same parameter.
    """

    rule: str
    convert: Callable[[object], Any]
    doc: str
    neutral: tuple[object, ...] = ()
    aliases: tuple[str, ...] = ()

    def validated(self, name: str, value: object) -> Any:
        """The value in its normal form.

        Raises:
            ParameterError: with the rule and the value.
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError):
            raise ParameterError(f"{name} must be {self.rule}, got {value!r}") from None


def _spec(
    rule: str, kind: Callable[[object], Any], check: Callable[[Any], Any] | None, doc: str, **more: Any
) -> ParamSpec:
    def convert(value: object) -> Any:
        return kind(value) if check is None else check(kind(value))

    return ParamSpec(rule, convert, doc, **more)


_POSITIVE = ("an integer >= 1", _integer, _at_least(1))
_TOKEN_ID = ("a token id, an integer >= 0", _integer, _at_least(0))
_PENALTY = ("in [-2, 2]", _number, _within(-2, 2))

SPECS: Mapping[str, ParamSpec] = {
    "max_tokens": _spec(*_POSITIVE, "most new tokens", aliases=("max_new_tokens", "max_completion_tokens")),
    "max_length": _spec(*_POSITIVE, "most tokens of prompt and new text together"),
    "temperature": _spec(">= 0", _number, _at_least(0), "spread of the distribution; 0 is greedy", neutral=(1.0,)),
    "top_k": _spec(
        "an integer >= 1, or 0 or -1 for no limit",
        _integer,
        _at_least(-1),
        "keep the k likeliest tokens",
        neutral=(0, -1),
    ),
    "top_p": _spec(
        "in (0, 1]",
        _number,
        _within(0, 1, open_low=True),
        "keep the likeliest tokens that together reach this probability",
        neutral=(1.0,),
    ),
    "min_p": _spec(
        "in [0, 1]",
        _number,
        _within(0, 1),
        "keep tokens at least this share as likely as the likeliest",
        neutral=(0.0,),
    ),
    "typical_p": _spec(
        "in (0, 1]",
        _number,
        _within(0, 1, open_low=True),
        "keep the most typical tokens (Meister et al. 2022) that reach this probability",
        neutral=(1.0,),
    ),
    "do_sample": _spec("true or false", _flag, None, "sample, or take the likeliest token", neutral=(False,)),
    "seed": _spec("an integer in [0, 2**64)", _integer, _within(0, 2**64 - 1), "the key of the random stream"),
    "num_return_sequences": _spec(*_POSITIVE, "choices per request", neutral=(1,), aliases=("n",)),
    "num_beams": _spec(*_POSITIVE, "beams of beam search; 1 is none", neutral=(1,), aliases=("beam_width",)),
    "early_stopping": _spec('true, false or "never"', _bool_or_never, None, "when beam search ends", neutral=(False,)),
    "length_penalty": _spec(
        "a finite number", _number, None, "exponent of the length that divides a beam's score", neutral=(1.0,)
    ),
    "repetition_penalty": _spec(
        "> 0",
        _number,
        _within(0, math.inf, open_low=True),
        "divides the scores of tokens already in prompt or text (Keskar et al. 2019)",
        neutral=(1.0,),
        aliases=("repition_penalty",),
    ),
    "frequency_penalty": _spec(
        *_PENALTY, "subtracted from a token's score once per time it was generated (OpenAI)", neutral=(0.0,)
    ),
    "presence_penalty": _spec(
        *_PENALTY, "subtracted from a token's score if it was generated at all (OpenAI)", neutral=(0.0,)
    ),
    "stop_token": _spec(
        "a non-empty string or a list of them",
        _strings,
        None,
        "text that ends the generation and is left out of it",
        neutral=((),),
        aliases=("stop_strings", "stop"),
    ),
    "logprobs": _spec(
        "an integer in [0, 20]",
        _integer,
        _within(0, 20),
        "report each token's log-probability, and so many of the likeliest beside it",
    ),
    "pad_token_id": _spec(*_TOKEN_ID, "the token that fills shorter rows of a batch"),
    "eos_token_id": _spec(
        "a token id (an integer >= 0) or a list of them", _token_ids, None, "the tokens that end a text"
    ),
    "bos_token_id": _spec(*_TOKEN_ID, "the token that every prompt begins with"),
    "system_prompt": _spec("a string", _text, None, "what the conversation begins with", neutral=("",)),
    "role": _spec(
        '"assistant" or "user"',
        _text,
        _one_of("assistant", "user"),
        "the side of the conversation that the model speaks for",
        neutral=("assistant",),
    ),
}

ALIASES: Mapping[str, str] = {alias: name for name, spec in SPECS.items() for alias in spec.aliases}
SAMPLING_FILTERS = ("top_k", "top_p", "min_p", "typical_p")
BEAM_ONLY = ("length_penalty", "early_stopping")
LIST_VALUED = ("stop_token", "eos_token_id")


def meant_by(name: str) -> str | None:
    """The parameter that a name is but for a slip: a letter wrong, left out or too many, or underscores misplaced.

    Strict enough for `stops`, `seeds` and `roles`, which are names of other things.
    """
    names = [*SPECS, *ALIASES]
    same = (known for known in names if _letters(known) == _letters(name))
    return next(same, None) or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.9)), None)


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def canonical_name(name: str) -> str:
    """The parameter that a name or an alias means.

    Raises:
        UnknownParameter: with the nearest name.
    """
    name_or_alias = ALIASES.get(name, name)
    if name_or_alias not in SPECS:
        raise UnknownParameter(name, [*SPECS, *ALIASES])
    return name_or_alias
