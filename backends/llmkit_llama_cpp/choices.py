"""What a request's choices begin with: a sampler and a text each, the same on both routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmkit.text import OutputText
from llmkit.types import Request
from llmkit_llama_cpp.sampling import ChoiceSampler

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class NewChoice:
    """One choice before its first token."""

    sampler: ChoiceSampler
    text: OutputText


def new_choice(request: Request, choice: int, decode: Decode) -> NewChoice:
    """A choice of a settled request.

    Args:
        request: with its prompt encoded.
        choice: its index.
        decode: token ids to text; a guided text is spelt as its guide sees it.
    """
    params, guide = request.params, request.guide
    matcher = None if guide is None else guide.start(params.eos_token_ids)
    text = OutputText(
        decode if guide is None else guide.decode,
        stops=params.stop_strings,
        eos_ids=params.eos_token_ids,
        max_tokens=params.max_tokens or 1,
        is_whole=None if matcher is None else lambda: matcher.is_finished,
    )
    return NewChoice(ChoiceSampler(params, choice, request.prompt_ids or (), matcher), text)
