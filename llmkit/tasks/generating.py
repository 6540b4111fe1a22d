"""Requests in, completions out, from any model; a request that fails takes no other with it.

Owns the difference between a fault of one request and a fault of all. It knows no rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from llmkit.backend import BackendLLM
from llmkit.base import BaseLLM
from llmkit.errors import (
    BackendUnavailable,
    DeviceUnavailable,
    ExtraUnavailable,
    ModelClosed,
    ModelError,
    ParameterError,
    QueueFull,
    UnknownParameter,
    UnsupportedParameter,
)
from llmkit.params import GenerationParams
from llmkit.prompts import as_style
from llmkit.types import Completion, Request, Usage, as_messages

Outcome: TypeAlias = "Completion | Exception"

FAULTS_OF_ALL = (
    BackendUnavailable,
    DeviceUnavailable,
    ExtraUnavailable,
    MemoryError,
    ModelClosed,
    ModelError,
    ParameterError,
    QueueFull,
    UnknownParameter,
    UnsupportedParameter,
)
"""Errors that another request would meet too, so they end the work."""


def outcomes(llm: BaseLLM, requests: Sequence[Request]) -> list[Outcome]:
    """A completion for each request, or the error that it met; in order, batched as far as the model can.

    Raises:
        LLMKitError: one of `FAULTS_OF_ALL`.
    """
    if not isinstance(llm, BackendLLM):
        return [_alone(llm, request) for request in requests]
    if "num_return_sequences" in llm.capabilities.params:
        return _batch(llm, requests)
    singles = [single for request in requests for single in _singles(request)]
    done = iter(_batch(llm, singles))
    return [_joined([next(done) for _ in range(request.params.n)]) for request in requests]


def completed(outcomes: Sequence[Outcome] | None) -> list[Completion]:
    """The completions, if all of them are.

    Raises:
        Exception: the first error among them.
    """
    completions: list[Completion] = []
    for outcome in outcomes or ():
        if isinstance(outcome, Exception):
            raise outcome
        completions.append(outcome)
    return completions


def check_params(llm: BaseLLM, params: GenerationParams) -> None:
    """Refuse parameters that the model cannot honour, before any request.

    Raises:
        UnsupportedParameter: for the first such parameter.
    """
    params = params.replace(num_return_sequences=None)
    if isinstance(llm, BackendLLM):
        if llm.on_unsupported == "error":
            llm.capabilities.check(params, llm.backend_name)
        return
    accepted = inspect.signature(type(llm).run).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    for name, _ in params:
        if not takes_any and name not in accepted:
            raise UnsupportedParameter(name, type(llm).__name__)


def _batch(llm: BackendLLM, requests: Sequence[Request]) -> list[Outcome]:
    """All at once; where one of them fails, the halves, so that good ones stay together."""
    try:
        return list(llm.complete_batch(requests))
    except FAULTS_OF_ALL:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one request meets is noted in its row
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return [*_batch(llm, requests[:half]), *_batch(llm, requests[half:])]


def _alone(llm: BaseLLM, request: Request) -> Outcome:
    """One request of a model that has no batches; a choice is a run."""
    try:
        runs = [_run(llm, single) for single in _singles(request)]
    except FAULTS_OF_ALL:
        raise
    except Exception as error:  # noqa: BLE001 - as in `_batch`
        return error
    return _joined(runs)


def _run(llm: BaseLLM, request: Request) -> Completion:
    """One text of a model that knows prompts alone: it is rendered, and cut at the style's stop strings, for it."""
    if request.prompt_style is None:
        return llm.complete(request.prompt, **_overrides(request))
    style = as_style(request.prompt_style, llm.model_name)
    rendered = style.render_chat(as_messages(request.prompt), begin=False)
    completion = llm.complete(rendered, **_overrides(request))
    ends = [at for at in map(completion.text.find, style.stop) if at >= 0]
    choice = replace(completion.choices[0], text=completion.text[: min(ends, default=None)])
    return replace(completion, choices=(choice,))


def _overrides(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.params if name != "num_return_sequences"}


def _singles(request: Request) -> list[Request]:
    """The request once for each choice that it asks for; with a seed, each has a seed of its own."""
    n, params = request.params.n, request.params
    if n == 1:
        return [request]
    params = params.replace(num_return_sequences=1)
    if params.seed is None:
        return [replace(request, params=params)] * n
    seeds = [(params.seed + choice) % 2**64 for choice in range(n)]
    return [replace(request, params=params.replace(seed=seed)) for seed in seeds]


def _joined(runs: Sequence[Outcome]) -> Outcome:
    """One completion of several, or the first error among them."""
    if len(runs) == 1:
        return runs[0]
    completions: list[Completion] = []
    for run in runs:
        if isinstance(run, Exception):
            return run
        completions.append(run)
    choices = tuple(replace(c.choices[0], index=at) for at, c in enumerate(completions))
    usage = Usage(completions[0].usage.prompt_tokens, _total([c.usage.completion_tokens for c in completions]))
    return replace(completions[0], choices=choices, usage=usage)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
