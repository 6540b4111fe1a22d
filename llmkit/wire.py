"""The GPT task as it travels: the shapes of its request, its response and its stream, checked where bytes come in.

Ranges and kinds of generation parameters come from `params.SPECS`; here are only names and structure. This module does
not know how a task is run, nor by which model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from llmkit.errors import LLMKitError, ParameterError, TaskArgsInvalid, did_you_mean
from llmkit.params import SPECS, GenerationParams, canonical_name, resolve
from llmkit.types import Chunk, Completion, Message, Request, Role, Usage

_LONGEST_SHOWN = 80
_INTERVAL = re.compile(r"(?P<left>[(\[])(?P<low>-?\d+), (?P<high>-?\d+)(?:\*\*(?P<power>\d+))?(?P<right>[)\]])")
_ONE_SIDED = re.compile(r"(?P<sign>>=?) ")
_TEMPLATE_CALL = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"}
    | {"padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs"}
    | {"tools", "truncation"}
)
"""What llmkit itself decides when it applies a chat template; a task cannot."""


class _Param:
    """Marks a field that one parameter's rule checks; the rule's bounds go into the JSON schema."""

    def __init__(self, name: str) -> None:
        self._name, self._spec = name, SPECS[canonical_name(name)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": f"{self._spec.doc}; {self._spec.rule}", **_bounds(self._spec.rule)}

    def _checked(self, value: object) -> Any:
        if value is None:
            return None
        try:
            return self._spec.validated(self._name, value)
        except ParameterError as error:
            raise _problem(str(error).removeprefix(f"{self._name} ")) from None


def _bounds(rule: str) -> dict[str, int]:
    """A rule's bounds in the words of JSON schema: `in (0, 1]` is above 0 and at most 1."""
    if interval := _INTERVAL.search(rule):
        low = "exclusiveMinimum" if interval["left"] == "(" else "minimum"
        high = "exclusiveMaximum" if interval["right"] == ")" else "maximum"
        return {low: int(interval["low"]), high: int(interval["high"]) ** int(interval["power"] or 1)}
    if sign := _ONE_SIDED.search(rule):
        # `>= 1, or 0 or -1 for no limit`: the lowest number that is named is still allowed.
        lowest = min(int(number) for number in re.findall(r"-?\d+", rule))
        return {"minimum" if sign["sign"] == ">=" else "exclusiveMinimum": lowest}
    return {}


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError("llmkit", "{text}", {"text": text})


class _Shape(BaseModel):
    """A frozen record that refuses unknown keys; its fields' docstrings are the schema's descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- the request ----------------------------------------------------------------------------------------------------


class GenerationConfig(_Shape):
    """How the text is generated; whatever is left out is up to the model's own generation config."""

    max_new_tokens: Annotated[int | None, _Param("max_new_tokens")] = None
    stop_strings: Annotated[str | tuple[str, ...] | None, _Param("stop_strings")] = None
    do_sample: Annotated[bool | None, _Param("do_sample")] = None
    num_beams: Annotated[int | None, _Param("num_beams")] = None
    temperature: Annotated[float | None, _Param("temperature")] = None
    typical_p: Annotated[float | None, _Param("typical_p")] = None
    top_k: Annotated[int | None, _Param("top_k")] = None
    top_p: Annotated[float | None, _Param("top_p")] = None
    min_p: Annotated[float | None, _Param("min_p")] = None
    repetition_penalty: Annotated[float | None, _Param("repetition_penalty")] = None
    num_return_sequences: Annotated[int | None, _Param("num_return_sequences")] = None

    def to_params(self) -> GenerationParams:
        """The same values under the library's names."""
        return GenerationParams(**self.model_dump(exclude_none=True))


class TextBlock(_Shape):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_images(cls, data: Any) -> Any:
        kind = cast("Mapping[str, Any]", data).get("type") if isinstance(data, Mapping) else None
        if isinstance(kind, str) and "image" in kind:
            raise _problem("image blocks are not supported; llmkit reads text only")
        return cast("object", data)


def _kind_of_content(content: object) -> str:
    return "<blocks>" if isinstance(content, (list, tuple)) else "<string>"


# The tags say which of the two was meant, so that a mistake is reported once and not for both.
_Content: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[tuple[TextBlock, ...], Tag("<blocks>")], Discriminator(_kind_of_content)
]


class TaskMessage(_Shape):
    """One message of the conversation."""

    role: Role
    """Who speaks."""
    content: _Content | None = None
    """The text, or blocks of text that are joined; only a message with tool calls may be without."""
    tool_calls: tuple[dict[str, Any], ...] | None = None
    """The calls that an assistant asked for, as OpenAI shapes them."""
    tool_call_id: str | None = None
    """The call that a tool's message answers."""

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise _problem("content is required")
        return self

    def to_message(self) -> Message:
        """The message as llmkit passes it on, its blocks joined."""
        content = self.content if isinstance(self.content, str) else "".join(b.text for b in self.content or ())
        return Message(self.role, content, self.tool_calls or (), self.tool_call_id)


class GPTTask(_Shape):
    """A text generation, described completely: which model, what it reads, and how it writes.

    Immutable. Build one with `parse`, which reports every problem as `TaskArgsInvalid`; the constructor raises
    pydantic's own error.
    """

    model: Annotated[str, Field(min_length=1, pattern=r"\S")]
    """The model: a Hugging Face id, or any name that `llmkit.load` takes."""
    messages: Annotated[tuple[TaskMessage, ...], Field(json_schema_extra={"minItems": 1})]
    """The conversation so far."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of functions that the model may call; they are given to its chat template."""
    template_args: dict[str, Any] | None = None
    """Further variables for the model's chat template."""
    generation_config: GenerationConfig = Field(default_factory=GenerationConfig)
    """How the text is generated."""
    seed: Annotated[int, _Param("seed")] = 0
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Precision of the weights; `auto` is what the model's own config says."""
    quantize_bits: Literal[4, 8] | None = None
    """Bits per weight where the weights are to be quantized."""

    @classmethod
    def parse(cls, task: GPTTask | Mapping[str, Any] | str | bytes) -> GPTTask:
        """A checked task from a task, its dictionary, or its JSON.

        Raises:
            TaskArgsInvalid: it is not one; the message lists every problem and where it is.
        """
        if isinstance(task, GPTTask):
            return task
        data = _from_json(task) if isinstance(task, (str, bytes)) else task
        try:
            parsed = cls.model_validate(data)
            # Some values are right one by one and wrong together; the request's own checks say so.
            resolve(parsed.to_request().params, GenerationParams())
        except ValidationError as error:
            raise TaskArgsInvalid(_described(error)) from error
        except LLMKitError as error:
            raise TaskArgsInvalid(str(error)) from error
        return parsed

    @model_validator(mode="after")
    def _keeps_template_call(self) -> Self:
        taken = sorted(_TEMPLATE_CALL.intersection(self.template_args or ()))
        if taken:
            raise _problem(f"template_args: {', '.join(map(repr, taken))} cannot be set, llmkit decides it")
        return self

    def to_request(self) -> Request:
        """What a model is asked: this task alone, nothing from the model object's own parameters.

        Raises:
            InvalidRequest: no message has any content.
        """
        return Request(
            prompt=tuple(message.to_message() for message in self.messages),
            params=self.generation_config.to_params().replace(seed=self.seed),
            tools=self.tools or (),
            template_args=self.template_args or {},
            self_contained=True,
        )


# --- the response ---------------------------------------------------------------------------------------------------

TaskFinishReason: TypeAlias = Literal["stop", "length"]


class TaskUsage(_Shape):
    """Token counts of a task; null where the backend does not tell."""

    prompt_tokens: int | None
    """Tokens that the model read."""
    completion_tokens: int | None
    """Tokens that it generated, over all choices."""
    total_tokens: int | None
    """Both together."""

    @classmethod
    def of(cls, usage: Usage) -> TaskUsage:
        """The counts in the task's shape."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class ResponseMessage(_Shape):
    """What the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str


class ResponseChoice(_Shape):
    """One of the texts."""

    index: int
    """Position among the choices, from 0."""
    message: ResponseMessage
    finish_reason: TaskFinishReason
    """`stop`: the text ended by itself or at a stop string; `length`: at the limit of tokens."""


class GPTTaskResponse(_Shape):
    """The answer to a GPT task: as many choices as `num_return_sequences` asked for."""

    model: str
    choices: tuple[ResponseChoice, ...]
    usage: TaskUsage

    @classmethod
    def of(cls, model: str, completion: Completion) -> GPTTaskResponse:
        """A completion in the task's shape.

        Args:
            model: the model's name as the task gave it.
            completion: what the model answered.
        """
        choices = tuple(
            ResponseChoice(
                index=choice.index,
                message=ResponseMessage(content=choice.text),
                finish_reason="length" if choice.finish_reason == "length" else "stop",
            )
            for choice in completion.choices
        )
        return cls(model=model, choices=choices, usage=TaskUsage.of(completion.usage))


class StreamChoice(_Shape):
    """A piece of one of the texts."""

    index: int
    delta: ResponseMessage
    finish_reason: TaskFinishReason | None


class GPTTaskStreamChunk(_Shape):
    """A piece of the answer to a GPT task.

    The contents of a choice's chunks, joined, are the content of that choice in the plain response. Each choice ends
    with a chunk that has no content and says why it ended; the usage counts from the beginning, so the last is the
    whole.
    """

    model: str
    choices: tuple[StreamChoice, ...]
    usage: TaskUsage

    @classmethod
    def of(cls, model: str, chunk: Chunk, usage: Usage) -> GPTTaskStreamChunk:
        """A chunk in the task's shape.

        Args:
            model: the model's name as the task gave it.
            chunk: text, or a finish reason without any; a backend's chunk with both is two of these.
            usage: the counts so far.
        """
        reason = chunk.finish_reason and ("length" if chunk.finish_reason == "length" else "stop")
        choice = StreamChoice(index=chunk.choice, delta=ResponseMessage(content=chunk.text), finish_reason=reason)
        return cls(model=model, choices=(choice,), usage=TaskUsage.of(usage))


# --- saying what is wrong -------------------------------------------------------------------------------------------

_RECORDS: Mapping[str, type[_Shape]] = {
    "": GPTTask,
    "generation_config": GenerationConfig,
    "messages": TaskMessage,
    "content": TextBlock,
}
"""The record that a part of a task is, for naming the nearest key."""
_RULES: Mapping[str, str] = {
    "dict_type": "an object",
    "int_type": "an integer",
    "model_type": "an object",
    "string_pattern_mismatch": "a non-empty string",
    "string_too_short": "a non-empty string",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""What a value must be, where pydantic says it in Python's terms."""


def _from_json(text: str | bytes) -> object:
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


def _described(error: ValidationError) -> str:
    problems = [_line(details) for details in error.errors(include_url=False)]
    return problems[0] if len(problems) == 1 else "\n".join([f"{len(problems)} problems:", *problems])


def _line(details: ErrorDetails) -> str:
    loc = [part for part in details["loc"] if not str(part).startswith("<")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    words = _words(details, loc)
    return f"{path}: {words}" if path else words if details["type"] == "llmkit" else f"a GPT task {words}"


def _words(details: ErrorDetails, loc: Sequence[int | str]) -> str:
    kind = details["type"]
    if kind == "missing":
        return "is required"
    if kind == "llmkit":
        return details["msg"]
    if kind == "extra_forbidden":
        owner = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        return f"is not a known key{did_you_mean(str(loc[-1]), _RECORDS[owner].model_fields)}"
    rule = _RULES.get(kind) or details.get("ctx", {}).get("expected") or details["msg"].removeprefix("Input should be ")
    return f"must be {rule}, got {_shown(details['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
