"""Requests as the engine sees them, the sequences that they become, and what comes out.

A request is token ids and opaque helpers; what a token means, how it is chosen and how it becomes text is unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from llmkit.engine.prefix_cache import Prefix
from llmkit.engine.runner import Slice, TokenSampler
from llmkit.errors import InvalidRequest, LLMKitError
from llmkit.types import FinishReason


class Output(Protocol):
    """Turns the tokens of one choice into text and knows when it ends; `llmkit.text.OutputText` is one."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens fed so far."""
        ...

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """Set once the text has ended."""
        ...

    def feed(self, token_id: int) -> str:
        """Take one token, return the text that became final."""
        ...

    def end(self, reason: Literal["stop", "length"]) -> str:
        """End the text here, return what was held back."""
        ...


@dataclass(eq=False, slots=True)
class EngineRequest:
    """One prompt and the choices that continue it. Compared by identity; given to an engine once.

    Attributes:
        prompt_ids: tokens of the prompt, at least one.
        samplers: one per choice.
        outputs: one per choice.
        reproducible: use reproducible numerics, and only keys and values that were computed so.
        max_tokens: new tokens of each choice at most; memory for them is promised when the request starts.
        may_wait: whether who hands it in waits for a place in a full queue, or is refused.
        streamed: somebody reads along; otherwise what comes out may be handed over several tokens at a time.
        first_choice: what readers count the first choice as, where those before it are in another request.

    Raises:
        InvalidRequest: an empty prompt, no choices, unequal numbers of samplers and outputs, or no room for a token.
    """

    prompt_ids: Sequence[int]
    samplers: Sequence[TokenSampler]
    outputs: Sequence[Output]
    reproducible: bool
    max_tokens: int
    may_wait: bool = True
    streamed: bool = True
    first_choice: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InvalidRequest("a prompt must have at least one token, got none")
        if not self.samplers or len(self.samplers) != len(self.outputs):
            raise InvalidRequest(
                "a request must have one sampler and one output per choice, "
                f"got {len(self.samplers)} samplers and {len(self.outputs)} outputs"
            )
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {self.max_tokens}")

    @property
    def n_choices(self) -> int:
        """How many texts are asked for."""
        return len(self.samplers)

    def feed(self, choice: int, token_id: int) -> Delta:
        """Give a new token to its choice; the choice ends at `max_tokens`, whatever its output says."""
        output = self.outputs[choice]
        text = output.feed(token_id)
        if output.finish_reason is None and len(output.token_ids) >= self.max_tokens:
            text += output.end("length")
        return Delta(self, choice, text, token_id, output.finish_reason)


@dataclass(frozen=True, slots=True)
class Delta:
    """One new token of one choice.

    Attributes:
        request: the request.
        choice: index of the choice.
        text: text that became final with it.
        token_id: the token.
        finish_reason: set on the last one of a choice.
    """

    request: EngineRequest
    choice: int
    text: str
    token_id: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a request, all its choices included, by an error."""

    request: EngineRequest
    error: LLMKitError


Event: TypeAlias = Delta | Failure


@dataclass(eq=False, slots=True)
class TokenSequence:
    """A running sequence: what it has read, and what it is to read next. Compared by identity.

    Attributes:
        request: whose it is.
        arrival: number of the request in the order of arrival.
        choices: whose text this is: all choices share one sequence until the prompt is read, then each has its own.
        prefix: the tokens read so far.
        unread: the tokens still to read: of the prompt, or the one generated last.
        last_turn: when it last had a turn to decode; the lower, the longer ago.
    """

    request: EngineRequest
    arrival: int
    choices: tuple[int, ...]
    prefix: Prefix
    unread: list[int]
    last_turn: int = 0

    @property
    def is_decoding(self) -> bool:
        """Its prompt is read; it goes on by one token a step."""
        return len(self.prefix) >= len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Share:
    """A sequence's part of one step: the next `n_tokens` of those it has not read."""

    sequence: TokenSequence
    n_tokens: int

    def to_slice(self) -> Slice:
        """What the runner gets; tokens are asked for only where nothing is left unread."""
        sequence = self.sequence
        wants = sequence.choices if self.n_tokens == len(sequence.unread) else ()
        return Slice(
            sequence.prefix.keys_values,
            sequence.unread[: self.n_tokens],
            len(sequence.prefix),
            sequence.request.reproducible,
            [sequence.request.samplers[choice] for choice in wants],
        )
