"""What a GPT task asks: its shape, and its way into a `Request`.

Ranges and kinds of generation parameters come from `specs.SPECS` (`rules.py`); here are only names and structure. This
module does not know how a task is run, nor by which model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from llmkit.characters import check_characters
from llmkit.errors import InvalidRequest, ParameterError, TaskArgsInvalid
from llmkit.params import GenerationParams, resolve
from llmkit.types import Message, Request, Role
from llmkit.wire.problems import described, from_json
from llmkit.wire.rules import Param, Shape, Text, problem

_TEMPLATE_CALL = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"}
    | {"padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs"}
    | {"tools", "truncation"}
)
"""What llmkit itself decides when it applies a chat template; a task cannot."""


class GenerationConfig(Shape):
    """How the text is generated; whatever is left out is up to the model's own generation config."""

    max_new_tokens: Annotated[int | None, Param("max_new_tokens")] = None
    stop_strings: Annotated[str | tuple[str, ...] | None, Param("stop_strings")] = None
    do_sample: Annotated[bool | None, Param("do_sample")] = None
    num_beams: Annotated[int | None, Param("num_beams")] = None
    temperature: Annotated[float | None, Param("temperature")] = None
    typical_p: Annotated[float | None, Param("typical_p")] = None
    top_k: Annotated[int | None, Param("top_k")] = None
    top_p: Annotated[float | None, Param("top_p")] = None
    min_p: Annotated[float | None, Param("min_p")] = None
    repetition_penalty: Annotated[float | None, Param("repetition_penalty")] = None
    num_return_sequences: Annotated[int | None, Param("num_return_sequences")] = None

    def to_params(self) -> GenerationParams:
        """The same values under the library's names."""
        return GenerationParams(**self.model_dump(exclude_none=True))


class TextBlock(Shape):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_images(cls, data: Any) -> Any:
        kind = cast("Mapping[str, Any]", data).get("type") if isinstance(data, Mapping) else None
        if isinstance(kind, str) and "image" in kind:
            raise problem("image blocks are not supported; llmkit reads text only")
        return cast("object", data)


def _kind_of_content(content: object) -> str:
    return "<blocks>" if isinstance(content, (list, tuple)) else "<string>"


# The tags say which of the two was meant, so that a mistake is reported once and not for both.
_String: TypeAlias = Annotated[Text, Tag("<string>")]
_Blocks: TypeAlias = Annotated[tuple[TextBlock, ...], Tag("<blocks>")]
_Content: TypeAlias = Annotated[_String | _Blocks, Discriminator(_kind_of_content)]


def _keeps_template_call(template_args: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(_TEMPLATE_CALL.intersection(template_args))
    if taken:
        raise problem(f"{', '.join(map(repr, taken))} cannot be set; llmkit decides it when it applies the template")
    return template_args


class TaskMessage(Shape):
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
            raise problem("content is required")
        return self

    def to_message(self) -> Message:
        """The message as llmkit passes it on, its blocks joined."""
        content = self.content if isinstance(self.content, str) else "".join(b.text for b in self.content or ())
        return Message(self.role, content, self.tool_calls or (), self.tool_call_id)


class GPTTask(Shape):
    """A text generation, described completely: which model, what it reads, and how it writes.

    Immutable. Build one with `parse`, which reports every problem as `TaskArgsInvalid`; the constructor raises
    pydantic's own error.
    """

    model: Annotated[str, Field(pattern=r"\S")]
    """The model: a Hugging Face id, or any name that `llmkit.load` takes."""
    messages: Annotated[tuple[TaskMessage, ...], Field(json_schema_extra={"minItems": 1})]
    """The conversation so far."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of functions that the model may call; they are given to its chat template."""
    template_args: Annotated[dict[str, Any], AfterValidator(_keeps_template_call)] | None = None
    """Further variables for the model's chat template."""
    generation_config: GenerationConfig = Field(default_factory=GenerationConfig)
    """How the text is generated."""
    seed: Annotated[int, Param("seed")] = 0
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
        parsed = task if isinstance(task, GPTTask) else cls._validated(task)
        try:
            # Some values are right one by one and wrong together; the request's own checks say so.
            request = parsed.to_request()
            resolve(request.params, GenerationParams())
            check_characters(request, request.params)
        except ParameterError as error:
            raise TaskArgsInvalid(f"generation_config: {error}") from error
        except InvalidRequest as error:
            raise TaskArgsInvalid(str(error)) from error
        return parsed

    @classmethod
    def _validated(cls, task: Mapping[str, Any] | str | bytes) -> GPTTask:
        data = from_json(task) if isinstance(task, (str, bytes)) else task
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise TaskArgsInvalid(described(error, _RECORDS)) from error

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


_RECORDS: Mapping[str, type[Shape]] = {
    "": GPTTask,
    "generation_config": GenerationConfig,
    "messages": TaskMessage,
    "content": TextBlock,
}
"""The record that a part of a task is."""
