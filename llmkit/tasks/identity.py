"""What a step's results depend on, as values that JSON holds: its code and its parameters.

Equal descriptions mean equal steps. What cannot be described reliably is refused: a guess would serve stale results.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, cast

from llmkit.errors import ParameterError


def code_digest(what: type | Callable[..., Any]) -> str:
    """A short hash of the source of a function, or of a class and its bases; of the bytecode where no source is found.

    What it calls in other places is not part of it.
    """
    owners = inspect.getmro(what) if isinstance(what, type) else (what,)
    text = "\n".join(_source(owner) for owner in owners if owner is not object)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(value: object) -> Any:
    """A value as JSON holds it; mappings in the order of their keys.

    Raises:
        ParameterError: it is of a type that has no reliable description.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): described(item) for key, item in sorted(items, key=lambda pair: str(pair[0]))}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, cast("set[object]", value)))
    if isinstance(value, Sequence):
        return [described(item) for item in cast("Sequence[object]", value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__qualname__, **own}
    if isinstance(value, functools.partial):
        call = cast("functools.partial[Any]", value)
        return {"call": described(call.func), "args": described(call.args), "keywords": described(call.keywords)}
    if isinstance(value, type) or inspect.isroutine(value):
        return _described_code(value)
    raise ParameterError(
        f"a parameter must be made of text, numbers, lists, mappings, dataclasses, functions or classes to have an "
        f"identity, got a {type(value).__qualname__}"
    )


def _described_code(what: type | Callable[..., Any]) -> dict[str, Any]:
    """A function or a class: its name, its code, and what a function keeps of the place where it was made."""
    cells = cast("Sequence[Any]", getattr(what, "__closure__", None) or ())
    kept = {"closure": described([cell.cell_contents for cell in cells])} if cells else {}
    return {"name": getattr(what, "__qualname__", repr(what)), "code": code_digest(what), **kept}


# Finding source takes milliseconds, and a class or function keeps that with which it was made.
@functools.lru_cache(maxsize=256)
def _source(what: type | Callable[..., Any]) -> str:
    """Its source; bytecode where it was typed in; the name of what is built into Python."""
    try:
        return inspect.getsource(what)
    except (OSError, TypeError):
        members = vars(what).values() if isinstance(what, type) else (what,)
        return f"{what.__module__}.{what.__qualname__}" + "".join(map(_bytecode, members))


def _bytecode(member: object) -> str:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    code = getattr(function, "__code__", None)
    return _flat(code) if isinstance(code, CodeType) else ""


def _flat(code: CodeType) -> str:
    """Instructions and constants, those of nested functions included; no addresses and no line numbers."""
    constants = [_flat(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
