"""From the events of an answer to chunks: texts up to their stop strings, reasons, log-probabilities, calls, usage.

Both endpoints are read here, chat and completions. It knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator
from typing_extensions import TypedDict

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


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


# What every event has is checked as plain dictionaries: making objects of it takes three times as long.


class _Delta(TypedDict, total=False):
    content: str | None
    refusal: str | None
    tool_calls: list[_CallPiece] | None


class _Choice(TypedDict, total=False):
    index: int
    delta: _Delta | None
    text: str | None
    finish_reason: str | None
    logprobs: _Logprobs | None


class _Event(TypedDict, total=False):
    choices: list[_Choice] | None
    usage: _Usage | None
    error: Any
    message: Any


_EVENT = TypeAdapter(_Event).validator


def _parsed(data: bytes) -> _Event:
    """An event's data.

    Raises:
        GenerationError: it is an error that the server reports, or malformed.
    """
    try:
        event = _EVENT.validate_json(data)
    except ValidationError as error:
        raise GenerationError(f"the server sent a malformed event: {_shown(data)}") from error
    if event.get("error") or event.get("choices") is None:
        what = "reported an error" if event.get("error") or event.get("message") else "sent a malformed event"
        raise GenerationError(f"the server {what}: {_shown(data)}")
    return event


def _new_text(choice: _Choice) -> str:
    """A refusal is what the model says, too."""
    delta = choice.get("delta")
    said = choice.get("text") if delta is None else delta.get("content") or delta.get("refusal")
    return said or ""


def _shown(data: bytes) -> str:
    return error_message(data.decode(errors="replace"))


class _ChoiceReader:
    """One choice: its text passes a stop matcher, because not every server leaves the stop string out."""

    def __init__(self, at: int, index: int, request: Request) -> None:
        self._at, self._index, self._n_top = at, index, request.params.logprobs
        self._matcher = StopMatcher(request.params.stop_strings)
        self._calls: dict[int, dict[str, str]] = {}
        self._text, self._logprobs = "", list[TokenLogprob]()
        self._reason: FinishReason | None = None
        self._has_text = self._has_logprobs = False
        self.finished = False

    def add(self, choice: _Choice) -> None:
        """Take in what an event says of this choice; what comes after its end is passed over."""
        if self._reason:
            return
        new_text = _new_text(choice)
        if new_text:
            self._has_text = True
            self._text += self._matcher.feed(new_text)
        self._reason = "stop" if self._matcher.matched is not None else _reason(choice.get("finish_reason"))
        logprobs = choice.get("logprobs")
        if logprobs is not None and self._n_top is not None:
            self._has_logprobs = True
            self._logprobs += logprobs.entries(self._n_top)
        for piece in (choice.get("delta") or {}).get("tool_calls") or ():
            self._add_to_call(piece)

    def take(self) -> Chunk | None:
        """What was added since the last time, as one chunk; None if that is nothing."""
        if self.finished or not (self._text or self._logprobs or self._reason):
            return None
        text, self._text = self._text, ""
        logprobs, self._logprobs = tuple(self._logprobs) or None, []
        if self._reason:
            return self._last(text + self._matcher.flush(), self._reason, logprobs)
        return Chunk(self._at, self._index, text, logprobs=logprobs)

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

    def add(self, data: bytes) -> None:
        """Take in the data of an event.

        Raises:
            GenerationError: the event is an error, malformed, or about a choice that was not asked for.
        """
        event = _parsed(data)
        usage = event.get("usage")
        if usage is not None:
            self.usage = Usage(usage.prompt_tokens, usage.completion_tokens)
        for choice in event.get("choices") or ():
            index = choice.get("index", 0)
            if not 0 <= index < len(self._choices):
                raise GenerationError(f"the server sent choice {index}, asked for {len(self._choices)}")
            self._choices[index].add(choice)

    def take(self) -> Iterator[Chunk]:
        """What was added since the last time: at most one chunk a choice.

        Raises:
            GenerationError: a text has ended without the log-probabilities that were asked for.
        """
        for reader in self._choices:
            chunk = reader.take()
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
