"""What a GPT task gives: the response, and the pieces of its stream.

It does not know how text comes to be, nor what was asked.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from llmkit.types import Chunk, Completion, Usage
from llmkit.wire.rules import Shape

TaskFinishReason: TypeAlias = Literal["stop", "length"]


class TaskUsage(Shape):
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


class ResponseMessage(Shape):
    """What the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str


class ResponseChoice(Shape):
    """One of the texts."""

    index: int
    """Position among the choices, from 0."""
    message: ResponseMessage
    finish_reason: TaskFinishReason
    """`stop`: the text ended by itself or at a stop string; `length`: at the limit of tokens."""


class GPTTaskResponse(Shape):
    """The answer to a GPT task: as many choices as `num_return_sequences` asked for."""

    model: str
    choices: list[ResponseChoice]
    usage: TaskUsage

    @classmethod
    def of(cls, model: str, completion: Completion) -> GPTTaskResponse:
        """A completion in the task's shape.

        Args:
            model: the model's name as the task gave it.
            completion: what the model answered.
        """
        choices = [
            ResponseChoice(
                index=choice.index,
                message=ResponseMessage(content=choice.text),
                finish_reason="length" if choice.finish_reason == "length" else "stop",
            )
            for choice in completion.choices
        ]
        return cls(model=model, choices=choices, usage=TaskUsage.of(completion.usage))


class StreamChoice(Shape):
    """A piece of one of the texts."""

    index: int
    delta: ResponseMessage
    finish_reason: TaskFinishReason | None


class GPTTaskStreamChunk(Shape):
    """A piece of the answer to a GPT task.

    The contents of a choice's chunks, joined, are the content of that choice in the plain response. Each choice ends
    with a chunk that has no content and says why it ended; the usage counts from the beginning, so the last is the
    whole.
    """

    model: str
    choices: list[StreamChoice]
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
        return cls(model=model, choices=[choice], usage=TaskUsage.of(usage))
