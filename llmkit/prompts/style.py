"""PromptStyle: the strings around an instruction, an input and a response, and around the turns of a conversation.

Owns how the parts become one text, and the validation of a style. It knows no style by name (`named.py`), no model and
no tokenizer, and neither strips nor truncates what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, cast

from llmkit.errors import InvalidRequest, PromptStyleError, did_you_mean
from llmkit.types import Message

_FLAGS = ("omit_empty_input", "system_inside")
_BESIDES_TEXT = ("stop", "turn_part", *_FLAGS)
_PARTS = ("instruction", "input")


class Piece(NamedTuple):
    """A piece of a rendered prompt: one of its parts, or the style's own text."""

    text: str
    part: Literal["instruction", "input", "output"] | None = None


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The text around the parts of a prompt; rendering concatenates them in a fixed order and adds nothing else.

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
        response_suffix: Written after a non-empty response that is known: in training texts and past turns.
        omit_empty_input: An empty input contributes nothing, as an empty instruction does.
        stop: Strings that end a response in this style.
        begin: Written once, at the very beginning: the text of the begin token, which tokenizers add by themselves.
        system_prefix: Written before a system prompt.
        system_suffix: Written after it.
        system_inside: The system prompt stands within the first user turn, after `user_prefix`, rather than before it.
        default_system: The system prompt where none is given.
        user_prefix: Written before a user's turn: instruction and input together.
        user_suffix: Written after it.
        part_separator: Written between a non-empty instruction and a non-empty input.
        response_lead: Written before a response that is known, and left to the model before one that is not.
        turn_separator: Written between a response and the next user turn.
        turn_part: What a user's message in a conversation is, `instruction` or `input`.

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
    begin: str = ""
    system_prefix: str = ""
    system_suffix: str = "\n\n"
    system_inside: bool = True
    default_system: str = ""
    user_prefix: str = ""
    user_suffix: str = ""
    part_separator: str = ""
    response_lead: str = ""
    turn_separator: str = ""
    turn_part: Literal["instruction", "input"] = "input"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name))

    def render(
        self, instruction: str = "", input: str = "", output: str = "", *, system: str = "", begin: bool = True
    ) -> str:
        """The prompt of these parts. Without `output` it is the inference prompt, which ends with `response_prefix`.

        Args:
            instruction: What to do.
            input: What to do it with.
            output: The response, where it is known.
            system: The system prompt; `default_system` where it is empty.
            begin: Write `begin`; false where a tokenizer does.
        """
        pieces = self.pieces(instruction, input, output, system=system, begin=begin)
        return "".join(piece.text for piece in pieces)

    def pieces(
        self, instruction: str = "", input: str = "", output: str = "", *, system: str = "", begin: bool = True
    ) -> list[Piece]:
        """What `render` concatenates: the parts, and the style's own text between them, in order."""
        response = [Piece(self.response_lead), Piece(output, "output"), Piece(self.response_suffix)] if output else []
        return [
            Piece(self._opening(system, begin)),
            *self._user_turn(instruction, input, self._inside(system)),
            Piece(self.response_prefix),
            *response,
        ]

    def render_chat(self, messages: Sequence[Message], *, begin: bool = True) -> str:
        """The prompt of a conversation, up to where the model answers its last message.

        System messages are joined to one system prompt, and messages of one side that follow each other to one turn.

        Raises:
            InvalidRequest: The last message is not a user's, or one belongs to a tool: no style has a place for it.
        """
        system, turns = _sides(messages)
        if not turns or turns[-1][0] != "user":
            raise InvalidRequest("the last message must be a user's for a prompt style to ask for an answer")
        text, inside = self._opening(system, begin), self._inside(system)
        for at, (role, content) in enumerate(turns):
            if role == "user":
                parts = (content, "") if self.turn_part == "instruction" else ("", content)
                text += self.turn_separator if at else ""
                text += "".join(piece.text for piece in self._user_turn(*parts, inside))
                inside = ""
            else:
                text += self.response_prefix + self.response_lead + content + self.response_suffix
        return text + self.response_prefix

    def _opening(self, system: str, begin: bool) -> str:
        system = "" if self.system_inside else self._system_part(system)
        return (self.begin if begin else "") + system

    def _inside(self, system: str) -> str:
        return self._system_part(system) if self.system_inside else ""

    def _system_part(self, system: str) -> str:
        system = system or self.default_system
        return self.system_prefix + system + self.system_suffix if system else ""

    def _user_turn(self, instruction: str, input: str, opening: str) -> list[Piece]:
        pieces = [Piece(self.user_prefix + opening)]
        if instruction:
            own = [Piece(self.instruction_prefix), Piece(instruction, "instruction"), Piece(self.instruction_suffix)]
            pieces += [*own, Piece(self.part_separator if input else "")]
        if input or not self.omit_empty_input:
            pieces += [Piece(self.input_prefix), Piece(input, "input"), Piece(self.input_suffix)]
        return [*pieces, Piece(self.user_suffix)]

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


def _sides(messages: Iterable[Message]) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt, and the turns as (role, content), user and assistant alternating."""
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for message in messages:
        if message.role == "tool" or message.tool_calls:
            raise InvalidRequest("a prompt style has no place for tools; use a model with a chat template")
        if message.role == "system":
            system.append(message.content)
        elif turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, f"{turns[-1][1]}\n{message.content}")
        else:
            turns.append((message.role, message.content))
    return "\n".join(system), turns


def _check_field(name: str, value: object) -> None:
    if name not in _BESIDES_TEXT:
        if not isinstance(value, str):
            raise PromptStyleError(f"{name} must be a string, got {value!r}")
        if name == "name" and not value:
            raise PromptStyleError(f"name must be a non-empty string, got {value!r}")
    elif name == "stop":
        if not isinstance(value, tuple) or not all(isinstance(s, str) and s for s in cast("tuple[object, ...]", value)):
            raise PromptStyleError(f"stop must be a list of non-empty strings, got {value!r}")
    elif name == "turn_part":
        if value not in _PARTS:
            raise PromptStyleError(f"turn_part must be instruction or input, got {value!r}")
    elif not isinstance(value, bool):
        raise PromptStyleError(f"{name} must be true or false, got {value!r}")
