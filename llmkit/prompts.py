"""Prompt styles as data: the strings around an instruction, an input and a response, and the named styles.

Owns `PromptStyle`, its validation, and the table of names. It knows no model, tokenizer or chat template, and neither
strips nor truncates what it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from llmkit.errors import PromptStyleError, did_you_mean


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The text around the three parts of a prompt; `render` concatenates them in this order, adding nothing else.

    An empty instruction contributes nothing, its prefix and suffix included. The input's prefix and suffix are always
    written, also around an empty input, unless `omit_empty_input` says otherwise. The response's prefix is always
    written: it is where the model goes on.

    Attributes:
        name: What `get_style` finds the style by; not empty.
        instruction_prefix: Written before a non-empty instruction.
        instruction_suffix: Written after a non-empty instruction.
        input_prefix: Written before the input.
        input_suffix: Written after the input.
        response_prefix: Written before the response, and the end of an inference prompt.
        response_suffix: Written after a non-empty output, so in training texts only.
        omit_empty_input: An empty input contributes nothing, as an empty instruction does.
        stop: Strings that end a response in this style; a caller passes them on as stop strings.

    Raises:
        PromptStyleError: A field has the wrong type, or the name or a stop string is empty.
    """

    name: str
    instruction_prefix: str = ""
    instruction_suffix: str = ""
    input_prefix: str = ""
    input_suffix: str = ""
    response_prefix: str = ""
    response_suffix: str = ""
    omit_empty_input: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name))

    def render(self, instruction: str = "", input: str = "", output: str = "") -> str:
        """The prompt of these parts. Without `output` it is the inference prompt, which ends with `response_prefix`."""
        text = ""
        if instruction:
            text += self.instruction_prefix + instruction + self.instruction_suffix
        if input or not self.omit_empty_input:
            text += self.input_prefix + input + self.input_suffix
        text += self.response_prefix
        if output:
            text += output + self.response_suffix
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> PromptStyle:
        """The style that a JSON object describes; its keys are the attributes, of which only `name` is required.

        Raises:
            PromptStyleError: An unknown key, a missing name, or a value of the wrong type.
        """
        if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # it comes from a user's file
            raise PromptStyleError(f"a prompt style must be an object of named strings, got {values!r}")
        valid = [field.name for field in fields(cls)]
        for key in values:
            if key not in valid:
                raise PromptStyleError(f"unknown prompt style key {key!r}{did_you_mean(str(key), valid)}")
        if "name" not in values:
            raise PromptStyleError(f"a prompt style must have a name, got the keys {sorted(values)}")
        arguments: dict[str, Any] = dict(values)
        if isinstance(arguments.get("stop"), list):  # JSON has no tuples
            arguments["stop"] = tuple(arguments["stop"])
        return cls(**arguments)


def get_style(name: str) -> PromptStyle:
    """The style registered under this name. Thread-safe.

    Raises:
        PromptStyleError: No style has this name; the message has the nearest and all names.
    """
    with _styles_lock:
        style = _styles.get(name)
    if style is None:
        names = available_styles()
        raise PromptStyleError(
            f"unknown prompt style {name!r}{did_you_mean(name, names)}; available are {', '.join(names)}"
        )
    return style


def register_style(style: PromptStyle, *, replace: bool = False) -> None:
    """Make a style available to `get_style` in this process. Thread-safe.

    Raises:
        PromptStyleError: The name is taken by a different style and `replace` is false.
    """
    with _styles_lock:
        if not replace and _styles.get(style.name, style) != style:
            raise PromptStyleError(f"prompt style {style.name!r} exists already; pass replace=True to replace it")
        _styles[style.name] = style


def available_styles() -> tuple[str, ...]:
    """The registered names, sorted. Thread-safe."""
    with _styles_lock:
        return tuple(sorted(_styles))


def _check_field(name: str, value: object) -> None:
    if name == "stop":
        if not isinstance(value, tuple) or not all(isinstance(s, str) and s for s in cast("tuple[object, ...]", value)):
            raise PromptStyleError(f"stop must be a list of non-empty strings, got {value!r}")
    elif name == "omit_empty_input":
        if not isinstance(value, bool):
            raise PromptStyleError(f"omit_empty_input must be true or false, got {value!r}")
    elif not isinstance(value, str):
        raise PromptStyleError(f"{name} must be a string, got {value!r}")
    elif name == "name" and not value:
        raise PromptStyleError(f"name must be a non-empty string, got {value!r}")


# Where a style's own titles begin the next record, the model has left its response: hence the stop strings.
_BUILT_IN = (
    PromptStyle("plain"),
    PromptStyle("human_bot", input_prefix="<human>: ", response_prefix="<bot>: ", stop=("<human>:", "<bot>:")),
    PromptStyle(
        "summarize", input_prefix="## Main Text\n\n", response_prefix="\n\n## Summary\n\n", stop=("## Main Text",)
    ),
    PromptStyle(
        "instruct",
        instruction_prefix="### Instruction:\n",
        instruction_suffix="\n\n",
        input_prefix="### Input:\n",
        input_suffix="\n\n",
        response_prefix="### Response:\n",
        # Instruction-tuned models saw records without any input section, never ones with an empty section.
        omit_empty_input=True,
        stop=("### Instruction:",),
    ),
)
_styles: dict[str, PromptStyle] = {style.name: style for style in _BUILT_IN}
_styles_lock = threading.Lock()
