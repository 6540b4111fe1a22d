"""From the text of `-p NAME=VALUE` to a value, checked before anything is loaded.

It knows the parameters' rules, and nothing of a backend's own options, whose values it passes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import typer

from llmkit.errors import ParameterError
from llmkit.params import GenerationParams
from llmkit.specs import ALIASES, SPECS, ParamSpec

_HINT = "'--param' / '-p'"


def parsed(pair: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`: JSON where the parameter takes it as such, else the text as it stands.

    Raises:
        typer.BadParameter: a name or a value is missing, or the name is the model's.
    """
    name, equals, text = pair.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise typer.BadParameter(f"must be NAME=VALUE, got {pair!r}", param_hint=_HINT)
    if name in ("model", "model_name"):
        raise typer.BadParameter("the model is chosen by --model", param_hint=_HINT)
    try:
        value = json.loads(text)
    except ValueError:
        return name, text
    return name, text if _only_text_fits(name, value, text) else value


def _only_text_fits(name: str, value: object, text: str) -> bool:
    """Whether a parameter refuses the value and takes the text: `stop_token=5` means the string."""
    spec = SPECS.get(ALIASES.get(name, name))
    return spec is not None and value is not None and not _fits(spec, name, value) and _fits(spec, name, text)


def _fits(spec: ParamSpec, name: str, value: object) -> bool:
    try:
        spec.validated(name, value)
    except ParameterError:
        return False
    return True


def once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Names and values as keywords, with all that can be checked before a model is loaded.

    Raises:
        ParameterError: a value breaks its rule, or two values contradict each other.
    """
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values and values[name] != value:
            raise ParameterError(f"{name} must be given once, got {values[name]!r} and {value!r}")
        values[name] = value
    # Checked now, since loading the model to find out takes long.
    GenerationParams(**{name: value for name, value in values.items() if name in SPECS or name in ALIASES})
    return values
