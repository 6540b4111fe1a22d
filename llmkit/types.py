"""The values that travel between an application, llmkit and a backend: frozen records, no behaviour beyond checks.

They know neither tokenizers nor models. Text from outside becomes these through `as_messages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast, get_args

from llmkit.errors import (
    InvalidRequest,
    StructuredOutputIncomplete,
    StructuredOutputInvalid,
    UnsupportedFeature,
    did_you_mean,
)
from llmkit.params import GenerationParams
from llmkit.structured import Constraint, Guide

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
ROLES: tuple[str, ...] = get_args(Role)
_MESSAGE_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id"})


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who speaks.
        content: the text.
        tool_calls: the calls an assistant asks for, as OpenAI shapes them.
        tool_call_id: the call that a tool's message answers.

    Raises:
        InvalidRequest: an unknown role, or content that is no string.
    """

    role: Role
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(
                f"role must be one of {', '.join(ROLES)}, got {self.role!r}{did_you_mean(str(self.role), ROLES)}"
            )
        if not isinstance(self.content, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"content must be a string, got {type(self.content).__name__}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """A message from its dictionary form, text blocks joined.

        Raises:
            InvalidRequest: a key is missing or unknown.
            UnsupportedFeature: a block is not text.
        """
        if not data.keys() <= _MESSAGE_KEYS or "role" not in data:
            unknown = data.keys() - _MESSAGE_KEYS
            problem = f"has an unknown key {min(unknown, key=str)!r}" if unknown else "has no role"
            raise InvalidRequest(f"a message {problem}: {dict(data)!r}")
        tool_calls = tuple(data.get("tool_calls") or ())
        content = _joined(data.get("content") or ("" if tool_calls else data.get("content")))
        return cls(data["role"], content, tool_calls, data.get("tool_call_id"))

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form, without empty tool fields."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            data["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            data["tool_call_id"] = self.tool_call_id
        return data


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model asks to be called.

    Attributes:
        name: which.
        arguments: by the names of its parameters.
        id: names this call in the conversation; the tool's message refers to it.
        error: why the call cannot be carried out: no such tool, or arguments that do not fit; None where it can.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The call in a message, as OpenAI shapes it; the arguments stay an object, as chat templates want them."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


def _joined(content: object) -> str:
    """Plain text, or the text of a list of blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise InvalidRequest(f"content must be a string or a list of text blocks, got {content!r}")
    return "".join(_block_text(block) for block in cast("Sequence[object]", content))


def _block_text(block: object) -> str:
    kind = cast("Mapping[str, Any]", block).get("type") if isinstance(block, Mapping) else None
    if kind == "text":
        text = cast("Mapping[str, Any]", block).get("text")
        if isinstance(text, str) and text:
            return text
        raise InvalidRequest(f"a text block needs a non-empty text, got {block!r}")
    if isinstance(kind, str) and "image" in kind:
        raise UnsupportedFeature("image blocks are not supported; llmkit reads text only")
    raise InvalidRequest(f"a content block must have type 'text', got {block!r}")


Conversation: TypeAlias = "str | Message | Sequence[Message | Mapping[str, Any]]"


def as_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Messages from a string (one user message), a message, or a list of messages and dictionaries.

    Raises:
        InvalidRequest: nothing is there, or an entry is no message.
    """
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    if isinstance(conversation, Message):
        return (conversation,)
    # Built-in types come first here and below: whether something is of an abstract class takes much longer to find out.
    is_list = isinstance(conversation, (list, tuple))
    if not is_list and (isinstance(conversation, Mapping) or not isinstance(conversation, Sequence)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"messages must be a string or a list of messages, got {type(conversation).__name__}")
    return tuple([_as_message(item) for item in conversation])


def _as_message(item: object) -> Message:
    if isinstance(item, Message):
        return item
    if isinstance(item, (dict, Mapping)):
        return Message.from_dict(cast("Mapping[str, Any]", item))
    raise InvalidRequest(f"a message must be a Message or a dictionary with role and content, got {item!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to generate.

    Attributes:
        prompt: a string, or the messages of a conversation.
        params: what is set for this request alone; the model fills in the rest.
        raw: give a string prompt to the model as it is, without its chat template.
        tools: JSON schemas of functions for the chat template.
        template_args: further variables for the chat template.
        when_full: where as many requests wait as may, `wait` for a place, or `raise` `QueueFull`.
        constraint: what the text must be; `Constraint.of(schema=...)` makes one.
        prompt_style: render the conversation in this style rather than by the chat template: a `PromptStyle`, its
            dictionary or its name, or `auto` for the one that the model's name suggests.
        self_contained: the request says all (a GPT task): the model object's own parameters do not apply, numerics are
            reproducible, and a conversation that outgrows the window is refused rather than shortened.
        reproducible: run in reproducible numerics; the model object sets it, for a seed or a self-contained request.
        prompt_ids: the prompt's tokens, once the model object has encoded it.
        guide: the constraint compiled for the model's tokenizer, where the backend masks tokens itself.
        streamed: somebody reads the chunks as they come; the model object sets it to false where only the end counts,
            and a backend may then give several tokens in the time of one.

    Raises:
        InvalidRequest: an empty prompt or no messages, or both tools and a constraint.
    """

    prompt: str | tuple[Message, ...]
    params: GenerationParams = field(default_factory=GenerationParams)
    raw: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    template_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    constraint: Constraint | None = None
    prompt_style: object | None = None
    when_full: Literal["wait", "raise"] = "wait"
    self_contained: bool = False
    reproducible: bool = False
    prompt_ids: tuple[int, ...] | None = None
    guide: Guide | None = None
    streamed: bool = True

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if self.when_full not in ("wait", "raise"):
            raise InvalidRequest(f'when_full must be "wait" or "raise", got {self.when_full!r}')
        if self.tools and self.constraint is not None:
            raise InvalidRequest(f"tools and a {self.constraint.kind} exclude each other: a call would not fit it")


def _check_prompt(prompt: str | tuple[Message, ...]) -> None:
    if not prompt:
        what = "the task must be a non-empty string" if isinstance(prompt, str) else "messages must not be empty"
        raise InvalidRequest(f"{what}, got {prompt!r}")
    if not isinstance(prompt, (str, tuple)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"the task must be a string or messages, got {type(prompt).__name__}")
    if isinstance(prompt, str):
        return
    for message in prompt:
        if message.content or message.tool_calls:
            return
    raise InvalidRequest("at least one message must have content")


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have come at some place, as OpenAI shapes it.

    Attributes:
        token: its text; a replacement character stands for a part of a character.
        logprob: natural logarithm of its probability, after penalties, temperature and filters.
        bytes: its UTF-8 bytes, which those of its neighbours may complete; None where the backend does not tell.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class TokenLogprob(TopLogprob):
    """A generated token, and what could have come in its place.

    Attributes:
        top_logprobs: the likeliest tokens there, as many as were asked for, the likeliest first; those that a filter
            left no probability are not among them.
    """

    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream: new tokens and text of one choice of one request.

    Attributes:
        request: index of the request in the call.
        choice: index of the choice within the request.
        text: text that became final; it never holds a part of a stop string.
        token_ids: the generated tokens behind it, EOS included and padding excluded.
        finish_reason: set on the last chunk of a choice, and only there.
        prompt_tokens: tokens of the prompt; set on the first chunk of a request, where it is known.
        completion_tokens: tokens of all choices of the request, where the backend reports a total instead of ids.
        padded: the row had padding, so `pad_token_id` took effect.
        logprobs: one entry for each of the tokens, in their order; None where they were not asked for.
        tool_calls: calls that a server has read out of the text itself, whole ones only.
    """

    request: int
    choice: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    padded: bool = False
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; None where the backend does not tell.

    Attributes:
        prompt_tokens: tokens that the model read.
        completion_tokens: tokens generated over all choices, EOS included, padding excluded.
    """

    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def total_tokens(self) -> int | None:
        """Both together, or None where one is unknown."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the texts that answer a request.

    Attributes:
        index: position among the choices, from 0.
        text: the new text only, neither prompt nor stop string.
        finish_reason: why it ended.
        token_ids: the generated tokens, EOS included; empty where the backend does not tell.
        logprobs: one entry for each generated token, those of a stop string and the EOS included; None where they were
            not asked for.
        tool_calls: the calls in the text; none where the request has no tools.
        content: the text without the calls.
        constraint: what the text had to be, if anything.
    """

    index: int
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    content: str | None = None
    constraint: Constraint | None = None

    @property
    def parsed(self) -> Any:
        """The text as what was asked for: the schema's object, parsed JSON, or the text; None where nothing was.

        Raises:
            StructuredOutputIncomplete: its tokens ran out before it was whole.
            StructuredOutputInvalid: it does not fit.
        """
        if self.constraint is None:
            return None
        try:
            return self.constraint.parse(self.text)
        except StructuredOutputInvalid as error:
            if self.finish_reason != "length":
                raise
            raise StructuredOutputIncomplete(error.kind, error.reason, error.text) from error

    @property
    def message(self) -> Message:
        """The choice as a message of the conversation, calls included."""
        content = self.text if self.content is None else self.content
        return Message("assistant", content, tuple(call.to_dict() for call in self.tool_calls))


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall times of a request in seconds, measured from the call."""

    elapsed_s: float
    time_to_first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request.

    Attributes:
        choices: the texts, in order.
        usage: token counts.
        timings: wall times.
        params: every parameter as it was used, the drawn seed included.
        fingerprint: what the bits depend on; equal fingerprints promise equal bits.
        dropped_messages: messages left out so that the conversation fits the window.
        inert: parameters that were set but have no effect in the mode that was used.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    params: GenerationParams
    fingerprint: str | None = None
    dropped_messages: tuple[Message, ...] = ()
    inert: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def parsed(self) -> Any:
        """The first choice's text as what was asked for; see `Choice.parsed`."""
        return self.choices[0].parsed

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first choice's calls."""
        return self.choices[0].tool_calls

    @property
    def message(self) -> Message:
        """The first choice as a message of the conversation."""
        return self.choices[0].message


def checked_batch(tasks: Sequence[str]) -> Sequence[str]:
    """The tasks, if they are a list.

    Raises:
        InvalidRequest: a string or something else was passed.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"tasks must be a list, got {type(tasks).__name__}")
    return tasks


def checked_prompt(task: Any) -> Any:
    """The task in the form a request takes it: a non-empty string or messages.

    Raises:
        InvalidRequest: it is empty, or neither of the two.
    """
    prompt = task if isinstance(task, str) else as_messages(task)
    _check_prompt(prompt)
    return prompt


def joined(prompt: str | tuple[Message, ...]) -> str:
    """A prompt as one string: the contents of its messages, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join([message.content for message in prompt])
