"""Settling a request before it runs: its parameters, its conversation and its room; all refusals happen here.

It knows what a backend declares, and not how the backend generates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmkit.capabilities import Capabilities
from llmkit.characters import check_characters
from llmkit.context import fit_conversation, room_for_new_tokens
from llmkit.errors import InvalidRequest, ParameterError, UnsupportedFeature
from llmkit.history import seen_from, with_system
from llmkit.noise import draw_seed
from llmkit.params import GenerationParams, inert, resolve
from llmkit.prompts import PromptStyle, as_style
from llmkit.structured import Constraint, Guide
from llmkit.tools import as_tools
from llmkit.types import Message, Request, as_messages

_AT_ONCE = 20_000
"""Characters that are settled in about 20 ms."""
_PER_REQUEST = 300
"""What settling a request takes besides its text, as characters."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What settling a request needs to know of a model object.

    Attributes:
        backend_name: for messages.
        model_name: suggests a prompt style.
        capabilities: what the backend honours.
        leaves_out: parameters that cannot be honoured are left out rather than refused.
        own: the object's parameters.
        model: what the model's own generation config sets.
        context_length: tokens that prompt and new text may have together, or None.
        encode: a request's prompt as token ids; None where the backend cannot tell.
        compile: a constraint compiled for the model's tokenizer; None where the backend does not mask tokens itself.
    """

    backend_name: str
    model_name: str | None
    capabilities: Capabilities
    leaves_out: bool
    own: GenerationParams
    model: GenerationParams
    context_length: int | None
    encode: Callable[[Request], Sequence[int] | None]
    compile: Callable[[Constraint], Guide | None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with everything settled, and what settling it left out.

    Attributes:
        request: what the backend gets.
        dropped: messages that made room.
        inert: parameters without effect in the chosen mode.
        left_out: parameters that the backend cannot honour.
        sets_pad_token: the caller set `pad_token_id`, which has an effect only where rows are padded.
    """

    request: Request
    dropped: tuple[Message, ...]
    inert: tuple[str, ...]
    left_out: tuple[str, ...]
    sets_pad_token: bool


def takes_long(requests: Sequence[Request], own: GenerationParams) -> bool:
    """Whether settling requests would hold up an event loop: a constraint is compiled, or much text is encoded.

    Args:
        requests: those of one call.
        own: the model object's parameters.
    """
    if any(request.constraint is not None for request in requests):
        return True
    return sum(_PER_REQUEST + _n_characters(request, own) for request in requests) > _AT_ONCE


def _n_characters(request: Request, own: GenerationParams) -> int:
    prompt, system_prompt = request.prompt, request.params.system_prompt or own.system_prompt or ""
    texts = (prompt,) if isinstance(prompt, str) else [message.content for message in prompt]
    return len(system_prompt) + sum([len(text) for text in texts])


def prepare(request: Request, facts: ModelFacts) -> Prepared:
    """Settle a request.

    Raises:
        InvalidRequest: a text holds half of a surrogate pair, or `raw` excludes what else was asked.
        UnsupportedParameter: the backend cannot honour a parameter.
        UnsupportedFeature: nor what else was asked.
        InvalidConstraint: a schema, regex, choice or grammar that cannot be compiled.
        PromptStyleError: no such prompt style, or none that the model's name suggests.
        ParameterError: values that exclude each other, or too few tokens for any text that fits the constraint.
        ContextLengthExceeded: the prompt leaves no room.
    """
    user = request.params if request.self_contained else request.params.over(facts.own)
    style = _style(request, facts)
    if style is not None and style.stop:
        user = user.replace(stop_token=(*user.stop_strings, *style.stop))
    check_characters(request, user)
    if not facts.leaves_out:
        facts.capabilities.check(user, facts.backend_name)
    if request.when_full == "raise" and not facts.capabilities.bounded_queue:
        raise UnsupportedFeature(f'the {facts.backend_name} backend has no bounded queue: when_full must be "wait"')
    left_out = facts.capabilities.unsupported(user)
    user = user.replace(**dict.fromkeys(left_out))
    _check_features(request, facts)
    settled = replace(
        request,
        guide=None if request.constraint is None else facts.compile(request.constraint),
        params=_seeded(resolve(user, facts.model)),
        reproducible=request.self_contained or user.seed is not None,
    )
    settled = replace(settled, prompt=_as_seen(settled))
    idle = inert(user, settled.params) + _inert_in_prompt(user, settled)
    n_reserved = _reserved(settled.params, facts, is_default=not (_limits_length(user) or _limits_length(facts.model)))
    if style is None:
        settled, dropped = _fitted(settled, facts, n_reserved)
    else:
        settled, dropped = _fitted(settled, _reading(style, facts), n_reserved)
        settled = _rendered(settled, style)
    _check_room_for_constraint(settled)
    return Prepared(settled, dropped, idle, left_out, user.pad_token_id is not None)


def _style(request: Request, facts: ModelFacts) -> PromptStyle | None:
    if request.prompt_style is None:
        return None
    if request.raw:
        raise InvalidRequest("raw and prompt_style exclude each other: a raw prompt is not rendered")
    return as_style(request.prompt_style, facts.model_name)


def _reading(style: PromptStyle, facts: ModelFacts) -> ModelFacts:
    """The facts of a model that reads conversations in this style."""

    def encode(request: Request) -> Sequence[int] | None:
        return facts.encode(_rendered(request, style))

    return replace(facts, encode=encode)


def _rendered(request: Request, style: PromptStyle) -> Request:
    """The request as a raw text; the tokenizer writes the begin token."""
    text = style.render_chat(as_messages(request.prompt), begin=False)
    return replace(request, prompt=text, raw=True, prompt_style=None)


def _check_features(request: Request, facts: ModelFacts) -> None:
    constraint = request.constraint
    facts.capabilities.check_features(tools=bool(request.tools), constraint=constraint, backend=facts.backend_name)
    if not request.self_contained:
        as_tools(request.tools)


def _check_room_for_constraint(request: Request) -> None:
    """Refuse what could only end in the middle."""
    guide, max_tokens = request.guide, request.params.max_tokens
    if guide is not None and max_tokens is not None and max_tokens < guide.fewest_tokens:
        raise ParameterError(
            f"max_tokens, or what the prompt leaves of the window, must be at least {guide.fewest_tokens} for a text "
            f"that fits the {guide.constraint.kind}, got {max_tokens}"
        )


def _seeded(params: GenerationParams) -> GenerationParams:
    """Parameters with a seed wherever they sample, so that any run can be replayed."""
    return params.replace(seed=draw_seed()) if params.do_sample and params.seed is None else params


def _as_seen(request: Request) -> str | tuple[Message, ...]:
    """The prompt as the model is to see it: under the system prompt, and from the side that it speaks for."""
    prompt, params = request.prompt, request.params
    if isinstance(prompt, tuple):
        return with_system(params.system_prompt, seen_from(params.role, prompt))
    if request.raw or not params.system_prompt:
        return prompt
    return with_system(params.system_prompt, (Message("user", prompt),))


def _inert_in_prompt(user: GenerationParams, request: Request) -> tuple[str, ...]:
    """A lone string has no sides to swap, and a raw one takes no system prompt."""
    idle = ("system_prompt", "role") if request.raw else ("role",)
    is_conversation = isinstance(request.prompt, tuple) and len(request.prompt) > bool(user.system_prompt)
    return () if is_conversation else tuple(name for name in user.effective() if name in idle)


def _limits_length(params: GenerationParams) -> bool:
    return params.max_tokens is not None or params.max_length is not None


def _reserved(params: GenerationParams, facts: ModelFacts, *, is_default: bool) -> int:
    """New tokens that old turns make room for: `max_tokens`, if anybody asked for it.

    The library's default is no wish: for its sake turns go only until a quarter of the window is free.
    """
    n_wanted = params.max_tokens or 1
    if facts.context_length is None or not is_default:
        return n_wanted
    return max(1, min(n_wanted, facts.context_length // 4))


def _fitted(request: Request, facts: ModelFacts, n_reserved: int) -> tuple[Request, tuple[Message, ...]]:
    """The request with its tokens and its room for new ones; the oldest turns go where they must."""
    ids = facts.encode(request)
    if ids is None:
        return request, ()
    params, dropped = request.params, ()
    limit = min((n for n in (params.max_length, facts.context_length) if n is not None), default=None)
    for_prompt = None if limit is None else limit - n_reserved
    if for_prompt is not None and len(ids) > for_prompt and not request.self_contained:
        request, dropped = _shortened(request, facts, for_prompt)
        ids = facts.encode(request) or ()
    room = room_for_new_tokens(
        len(ids), max_tokens=params.max_tokens, max_length=params.max_length, context_length=facts.context_length
    )
    params = params.replace(max_tokens=room, max_length=None)
    return replace(request, prompt_ids=tuple(ids), params=params), dropped


def _shortened(request: Request, facts: ModelFacts, n_tokens: int) -> tuple[Request, tuple[Message, ...]]:
    if not isinstance(request.prompt, tuple):
        return request, ()

    def count(messages: tuple[Message, ...]) -> int:
        return len(facts.encode(replace(request, prompt=messages)) or ())

    fitted = fit_conversation(request.prompt, count, n_tokens)
    return replace(request, prompt=fitted.messages), fitted.dropped
