"""From the events of an answer to chunks: texts up to their stop strings, reasons, log-probabilities, calls, usage.

Both endpoints are read here, chat and completions. It knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from llmkit.errors import GenerationError
from llmkit.text import StopMatcher
from llmkit.tools import as_call
from llmkit.types import Chunk, FinishReason, Request, TokenLogprob, TopLogprob, Usage
from llmkit_openai.body import Post
from llmkit_openai.failures import error_message

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class _TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None

    def to_top(self) -> TopLogprob:
        return TopLogprob(self.token, self.logprob, self.bytes)


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob] = []

    def to_token(self) -> TokenLogprob:
        return TokenLogprob(self.token, self.logprob, self.bytes, tuple(top.to_top() for top in self.top_logprobs))


class _Logprobs(BaseModel):
    """Log-probabilities in the shape of a chat (`content`) or of the completions endpoint (parallel lists)."""

    content: list[_TokenLogprob] | None = None
    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float] | None] | None = None

    @model_validator(mode="after")
    def _are_parallel(self) -> Self:
        if {len(self.token_logprobs), len(self.top_logprobs or self.tokens)} - {len(self.tokens)}:
            raise ValueError("tokens and their log-probabilities must be as many")
        return self

    def entries(self, n_top: int) -> tuple[TokenLogprob, ...]:
        """One entry a token, with at most `n_top` others beside it."""
        if self.content is not None:
            return tuple(entry.to_token() for entry in self.content)
        tops = self.top_logprobs or [None] * len(self.tokens)
        return tuple(
            TokenLogprob(token, value, None, _ranked(top)[:n_top])
            for token, value, top in zip(self.tokens, self.token_logprobs, tops, strict=True)
        )


def _ranked(top: Mapping[str, float] | None) -> tuple[TopLogprob, ...]:
    ranked = sorted((top or {}).items(), key=lambda entry: -entry[1])
    return tuple(TopLogprob(token, value, None) for token, value in ranked)


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(BaseModel):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Delta(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(BaseModel):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    @property
    def new_text(self) -> str:
        """A refusal is what the model says, too."""
        said = self.text if self.delta is None else self.delta.content or self.delta.refusal
        return said or ""


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(BaseModel):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    message: Any = None


def _parsed(data: bytes) -> _Event:
    """An event's data.

    Raises:
        GenerationError: it is an error that the server reports, or malformed.
    """
    try:
        event = _Event.model_validate_json(data)
    except ValidationError as error:
        raise GenerationError(f"the server sent a malformed event: {_shown(data)}") from error
    if event.error or event.choices is None:
        what = "reported an error" if event.error or event.message else "sent a malformed event"
        raise GenerationError(f"the server {what}: {_shown(data)}")
    return event


def _shown(data: bytes) -> str:
    return error_message(data.decode(errors="replace"))


class _ChoiceReader:
    """One choice: its text passes a stop matcher, because not every server leaves the stop string out."""

    def __init__(self, at: int, index: int, request: Request) -> None:
        self._at, self._index, self._n_top = at, index, request.params.logprobs
        self._matcher = StopMatcher(request.params.stop_strings)
        self._calls: dict[int, dict[str, str]] = {}
        self._has_text = self._has_logprobs = False
        self.finished = False

    def chunk(self, choice: _Choice) -> Chunk | None:
        """What an event adds to this choice; nothing once it is finished."""
        if self.finished:
            return None
        self._has_text |= bool(choice.new_text)
        text = self._matcher.feed(choice.new_text)
        reason = "stop" if self._matcher.matched is not None else _reason(choice.finish_reason)
        logprobs = self._logprobs(choice)
        for piece in (choice.delta and choice.delta.tool_calls) or ():
            self._add_to_call(piece)
        if reason:
            return self._last(text + self._matcher.flush(), reason, logprobs)
        return Chunk(self._at, self._index, text, logprobs=logprobs) if text or logprobs else None

    def _last(self, text: str, reason: FinishReason, logprobs: tuple[TokenLogprob, ...] | None) -> Chunk:
        self.finished = True
        if self._has_text and self._n_top is not None and not self._has_logprobs:
            raise GenerationError("logprobs were asked for, and the server sent none")
        calls = tuple(as_call({"id": call["id"], "function": call}) for _, call in sorted(self._calls.items()))
        # Some servers end a call like a text.
        reason = "tool_calls" if calls and reason == "stop" else reason
        return Chunk(self._at, self._index, text, finish_reason=reason, logprobs=logprobs, tool_calls=calls)

    def _add_to_call(self, piece: _CallPiece) -> None:
        """A call comes in pieces: its name and id first, its arguments bit by bit."""
        call = self._calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
        call["id"] = piece.id or call["id"]
        call["name"] = piece.function.name or call["name"]
        call["arguments"] += piece.function.arguments or ""

    def _logprobs(self, choice: _Choice) -> tuple[TokenLogprob, ...] | None:
        if self._n_top is None or choice.logprobs is None:
            return None
        self._has_logprobs = True
        return choice.logprobs.entries(self._n_top)


def _reason(name: str | None) -> FinishReason | None:
    if not name:
        return None
    if name not in _REASONS:
        raise GenerationError(f"the server ended the text early, for the reason {name!r}")
    return _REASONS[name]


class AnswerReader:
    """Reads the answer to one post. Not thread-safe; one object per answer.

    Attributes:
        usage: what the server told so far, of this post alone.
    """

    def __init__(self, post: Post, request: Request) -> None:
        self.usage = Usage(None, None)
        self._choices = [_ChoiceReader(post.request, index, request) for index in post.choices]

    def chunks(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that one event makes.

        Raises:
            GenerationError: the event is an error, malformed, or about a choice that was not asked for.
        """
        event = _parsed(data)
        if event.usage is not None:
            self.usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        for choice in event.choices or ():
            if not 0 <= choice.index < len(self._choices):
                raise GenerationError(f"the server sent choice {choice.index}, asked for {len(self._choices)}")
            chunk = self._choices[choice.index].chunk(choice)
            if chunk is not None:
                yield chunk

    @property
    def is_whole(self) -> bool:
        """Whether every choice has come to its end."""
        return all(choice.finished for choice in self._choices)


@dataclass(slots=True)
class UsageTally:
    """The usage of a request whose choices were asked for singly: known when all of them have told theirs.

    Attributes:
        request: index of the request.
        n_posts: posts that it was split into.
    """

    request: int
    n_posts: int
    _told: list[Usage] = field(default_factory=list[Usage])

    def add(self, usage: Usage) -> Chunk | None:
        """A chunk with the request's counts, once the last post has ended; None before, and where nothing is known."""
        self._told.append(usage)
        if len(self._told) < self.n_posts:
            return None
        counts = [told.completion_tokens for told in self._told if told.completion_tokens is not None]
        total = sum(counts) if len(counts) == self.n_posts else None
        if total is None and usage.prompt_tokens is None:
            return None
        return Chunk(self.request, prompt_tokens=usage.prompt_tokens, completion_tokens=total)
