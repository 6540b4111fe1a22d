"""Saying what is wrong with a GPT task, and where, in words for whoever wrote it.

It turns JSON's and pydantic's errors into lines; it does not decide what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmkit.errors import TaskArgsInvalid, did_you_mean

_LONGEST_SHOWN = 80
_RULES: Mapping[str, str] = {
    "dict_type": "an object",
    "int_type": "an integer",
    "model_type": "an object",
    "string_pattern_mismatch": "a non-empty string",
    "string_too_short": "a non-empty string",
    "string_type": "a string",
    "string_unicode": "Unicode text",
    "tuple_type": "a list",
}
"""What a value must be, where pydantic says it in Python's terms."""


def from_json(text: str | bytes) -> object:
    """What JSON text says.

    Raises:
        TaskArgsInvalid: it is not JSON, or says one thing twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise TaskArgsInvalid(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise TaskArgsInvalid(f"not JSON that can be read: {error}") from error


def _without_duplicates(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def described(error: ValidationError, records: Mapping[str, type[BaseModel]]) -> str:
    """All problems, a line each: `generation_config.top_p: must be in (0, 1], got 2`.

    Args:
        error: what pydantic found.
        records: the record behind each key that holds one, for naming the nearest key; "" is the whole.
    """
    problems = [_line(details, records) for details in error.errors(include_url=False)]
    return problems[0] if len(problems) == 1 else "\n".join([f"{len(problems)} problems:", *problems])


def _line(details: ErrorDetails, records: Mapping[str, type[BaseModel]]) -> str:
    # Parts in angle brackets are tags of a union, which whoever wrote the task never sees.
    loc = [part for part in details["loc"] if part not in ("<string>", "<blocks>")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    return f"{path}: {_words(details, loc, records)}" if path else f"a GPT task {_words(details, loc, records)}"


def _words(details: ErrorDetails, loc: Sequence[int | str], records: Mapping[str, type[BaseModel]]) -> str:
    kind = details["type"]
    if kind == "missing":
        return "is required"
    if kind == "llmkit":
        return details["msg"]
    if kind == "extra_forbidden":
        owner = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        return f"is not a known key{did_you_mean(str(loc[-1]), records[owner].model_fields)}"
    rule = _RULES.get(kind) or details.get("ctx", {}).get("expected") or details["msg"].removeprefix("Input should be ")
    return f"must be {rule}, got {_shown(details['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
