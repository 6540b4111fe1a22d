"""From a stream of chunks to completions: the one place where text is joined and tokens are counted.

It does not know where chunks come from, nor what a request means.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from llmkit.errors import GenerationError
from llmkit.types import Choice, Chunk, FinishReason, Timings, TokenLogprob, ToolCall, Usage


@dataclass(slots=True)
class _ChoiceSoFar:
    pieces: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finish_reason: FinishReason | None = None

    def add(self, chunk: Chunk) -> None:
        self.pieces.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        if chunk.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(chunk.logprobs)
        self.tool_calls.extend(chunk.tool_calls)
        self.finish_reason = chunk.finish_reason or self.finish_reason


@dataclass(slots=True)
class CompletionBuilder:
    """Gathers the chunks of one request; create it when the call begins, for its clock runs from then.

    Attributes:
        n_choices: how many texts the request asks for.
        counts_tokens: the backend reports token ids; without them counts are unknown rather than invented.
        padded: some row of the request had padding.
    """

    n_choices: int
    counts_tokens: bool = True
    padded: bool = False
    _started: float = field(default_factory=time.perf_counter)
    _first_token_s: float | None = None
    _finished_s: float | None = None
    _prompt_tokens: int | None = None
    _completion_tokens: int | None = None
    _choices: dict[int, _ChoiceSoFar] = field(default_factory=dict[int, _ChoiceSoFar])

    def add(self, chunk: Chunk) -> None:
        """Take in one chunk of this request."""
        now_s = time.perf_counter() - self._started
        if self._first_token_s is None and (chunk.token_ids or chunk.text):
            self._first_token_s = now_s
        if chunk.finish_reason:
            self._finished_s = now_s
        if chunk.prompt_tokens is not None:
            self._prompt_tokens = chunk.prompt_tokens
        if chunk.completion_tokens is not None:
            self._completion_tokens = chunk.completion_tokens
        self.padded |= chunk.padded
        self._choices.setdefault(chunk.choice, _ChoiceSoFar()).add(chunk)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return len(self._choices) == self.n_choices and all(c.finish_reason for c in self._choices.values())

    @property
    def usage(self) -> Usage:
        """Token counts so far: the backend's own total where it reports one, else the tokens that were seen."""
        seen = sum(len(choice.token_ids) for choice in self._choices.values()) if self.counts_tokens else None
        return Usage(self._prompt_tokens, seen if self._completion_tokens is None else self._completion_tokens)

    @property
    def timings(self) -> Timings:
        """Seconds from the call to the first token and to the end of the last choice."""
        elapsed_s = time.perf_counter() - self._started if self._finished_s is None else self._finished_s
        return Timings(elapsed_s, self._first_token_s)

    def choices(self) -> tuple[Choice, ...]:
        """The finished texts.

        Raises:
            GenerationError: the stream ended before every choice had finished.
        """
        return tuple(self._finished(index) for index in range(self.n_choices))

    def _finished(self, index: int) -> Choice:
        choice = self._choices.get(index)
        if choice is None or choice.finish_reason is None:
            raise GenerationError(f"the backend's stream ended before choice {index} was finished")
        logprobs = None if choice.logprobs is None else tuple(choice.logprobs)
        text, calls = "".join(choice.pieces), tuple(choice.tool_calls)
        return Choice(index, text, choice.finish_reason, tuple(choice.token_ids), logprobs, calls)
