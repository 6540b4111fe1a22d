"""The named styles, and which style a model wants by its name: the table in `styles.json` and what a process adds.

It knows names alone: whether a model has a chat template of its own, which knows better, is for the caller to see.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

from llmkit.errors import PromptStyleError, did_you_mean
from llmkit.prompts.style import PromptStyle

AUTO = "auto"
"""The name that means: the style that the model's name suggests."""


@dataclass(slots=True)
class _Table:
    """Styles by name, other names of theirs, and patterns of models' names with the style of each, the first first."""

    styles: dict[str, PromptStyle]
    aliases: dict[str, str]
    models: list[tuple[re.Pattern[str], str]]


_lock = threading.Lock()


@cache
def _table() -> _Table:
    data: dict[str, Any] = json.loads(files("llmkit.prompts").joinpath("styles.json").read_text(encoding="utf-8"))
    styles = [PromptStyle.from_dict(values) for values in data["styles"]]
    models = [(re.compile(pattern), name) for pattern, name in data["models"]]
    return _Table({style.name: style for style in styles}, data["aliases"], models)


def get_style(name: str) -> PromptStyle:
    """The style registered under this name. Thread-safe.

    Raises:
        PromptStyleError: No style has this name; the message has the nearest and all names.
    """
    with _lock:
        table = _table()
        style = table.styles.get(table.aliases.get(name, name))
    if style is None:
        names = available_styles()
        raise PromptStyleError(
            f"unknown prompt style {name!r}{did_you_mean(name, names)}; available are {', '.join(names)}"
        )
    return style


def register_style(style: PromptStyle, *, replace: bool = False) -> None:
    """Make a style available to `get_style` in this process. Thread-safe.

    Raises:
        PromptStyleError: The name is taken by a different style and `replace` is false, or has a meaning of its own.
    """
    with _lock:
        table = _table()
        if style.name == AUTO or style.name in table.aliases:
            raise PromptStyleError(f"a prompt style must not be named {style.name!r}, which means something already")
        if not replace and table.styles.get(style.name, style) != style:
            raise PromptStyleError(f"prompt style {style.name!r} exists already; pass replace=True to replace it")
        table.styles[style.name] = style


def available_styles() -> tuple[str, ...]:
    """The registered names, sorted, without aliases. Thread-safe."""
    with _lock:
        return tuple(sorted(_table().styles))


def guess_style(model_name: str) -> PromptStyle | None:
    """The style that a model of this name was trained with, as far as its name tells; None where it does not.

    Case does not matter; of a path or a hub id the whole is searched. Thread-safe.
    """
    with _lock:
        name = next((name for pattern, name in _table().models if pattern.search(model_name.lower())), None)
    return None if name is None else get_style(name)


def register_model(pattern: str, style: str) -> None:
    """Say which style models have whose lower-case names match a regular expression; later ones go first. Thread-safe.

    Raises:
        PromptStyleError: The pattern is malformed, or no style has this name.
    """
    get_style(style)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise PromptStyleError(f"a model's pattern must be a regular expression, got {pattern!r}: {error}") from error
    with _lock:
        _table().models.insert(0, (compiled, style))


def as_style(style: object, model_name: str | None = None) -> PromptStyle:
    """A style from its name, from a dictionary, or itself; for `auto`, the one that the model's name suggests.

    Raises:
        PromptStyleError: There is none, or the dictionary is malformed.
    """
    if isinstance(style, PromptStyle):
        return style
    if not isinstance(style, str):
        return PromptStyle.from_dict(cast("Mapping[str, object]", style))
    if style != AUTO:
        return get_style(style)
    guessed = guess_style(model_name or "")
    if guessed is None:
        raise PromptStyleError(f"no prompt style is known for the model {model_name!r}; name one, or register_model it")
    return guessed
