"""One call of a public method: what a caller passes becomes requests, and their chunks become completions.

It knows neither models nor how chunks come to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

from llmkit.chunks import CompletionBuilder
from llmkit.errors import InvalidRequest, ParameterError
from llmkit.metrics import GenerationTiming
from llmkit.params import GenerationParams, per_task
from llmkit.preparation import Prepared
from llmkit.progress import BatchProgress
from llmkit.structured import KINDS, Constraint
from llmkit.tools import Answer, as_tools, checked_call
from llmkit.types import Choice, Chunk, Completion, Conversation, Request, checked_batch, checked_prompt

REQUEST_FIELDS = ("raw", "tools", "template_args", "prompt_style", "when_full", *KINDS)
"""Keywords of a call that make up its request rather than its parameters."""

ReadAnswer: TypeAlias = Callable[[Request, Choice], Answer]
"""Takes a choice's text apart into what is said and the tools that are called."""


@dataclass(slots=True)
class Call:
    """The settled requests of one call, and the completions that grow from their chunks; its clock runs from here.

    Attributes:
        begun_for: what was to generate when they were settled.
        begun_with: the adapter that it had then.
    """

    prepared: Sequence[Prepared]
    begun_for: object = None
    begun_with: object = None
    builders: list[CompletionBuilder] = field(init=False)

    def __post_init__(self) -> None:
        self.builders = [CompletionBuilder(p.request.params.n, p.request.prompt_ids is not None) for p in self.prepared]

    @property
    def requests(self) -> list[Request]:
        """What the backend gets."""
        return [prepared.request for prepared in self.prepared]

    @property
    def is_reproducible(self) -> bool:
        """Whether any of its completions is promised to come again."""
        return any(prepared.request.reproducible for prepared in self.prepared)

    def of_one_text(self) -> Self:
        """The call, if its stream is one text.

        Raises:
            ParameterError: it has several choices.
        """
        n_choices = self.builders[0].n_choices
        if n_choices != 1:
            raise ParameterError(f"a stream is one text: num_return_sequences must be 1, got {n_choices}")
        return self

    def add(self, chunk: Chunk) -> None:
        """Fold one chunk into the completion that it belongs to."""
        self.builders[chunk.request].add(chunk)

    def show(self, chunk: Chunk, progress: BatchProgress) -> None:
        """Count a chunk that was added in what is shown of the batch."""
        n_tokens = len(chunk.token_ids) if chunk.completion_tokens is None else chunk.completion_tokens
        ended = chunk.finish_reason is not None and self.builders[chunk.request].is_finished
        progress.add(n_tokens=n_tokens, n_finished=int(ended))

    def timing(self) -> GenerationTiming:
        """What the whole call took, once its stream is over.

        Raises:
            GenerationError: it ended before every text had finished.
        """
        for builder in self.builders:
            builder.choices()
        timings, usages = [b.timings for b in self.builders], [b.usage for b in self.builders]
        first_s = [t.time_to_first_token_s for t in timings if t.time_to_first_token_s is not None]
        return GenerationTiming(
            elapsed_s=max(t.elapsed_s for t in timings),
            time_to_first_token_s=min(first_s, default=None),
            prompt_tokens=sum(u.prompt_tokens or 0 for u in usages),
            completion_tokens=sum(u.completion_tokens or 0 for u in usages),
        )

    def completions(self, fingerprint: str | None, read: ReadAnswer) -> list[Completion]:
        """The finished completions.

        Args:
            fingerprint: the model's, for the reproducible ones among them.
            read: finds the calls in a text.
        """
        pairs = zip(self.prepared, self.builders, strict=True)
        return [_completion(prepared, builder, fingerprint, read) for prepared, builder in pairs]


def _completion(
    prepared: Prepared, builder: CompletionBuilder, fingerprint: str | None, read: ReadAnswer
) -> Completion:
    request, idle = prepared.request, prepared.inert
    if prepared.sets_pad_token and not builder.padded:
        idle = (*idle, "pad_token_id")
    return Completion(
        choices=tuple(_understood(choice, request, read) for choice in builder.choices()),
        usage=builder.usage,
        timings=builder.timings,
        params=request.params,
        fingerprint=fingerprint if request.reproducible else None,
        dropped_messages=prepared.dropped,
        inert=idle,
    )


def _understood(choice: Choice, request: Request, read: ReadAnswer) -> Choice:
    """The choice with what it was to be, and with its calls; a GPT task's text is for its caller to read."""
    choice = replace(choice, constraint=request.constraint)
    if not request.tools or request.self_contained:
        return choice
    answer = Answer(choice.text, choice.tool_calls) if choice.tool_calls else read(request, choice)
    source = f"{request.prompt_ids or request.prompt} {choice.index} {choice.text}"
    calls = tuple(checked_call(call, request.tools, f"{n} {source}") for n, call in enumerate(answer.calls))
    reason = "tool_calls" if calls and choice.finish_reason == "stop" else choice.finish_reason
    return replace(choice, content=answer.content, tool_calls=calls, finish_reason=reason)


def as_request(task: Conversation | None, overrides: Mapping[str, Any]) -> Request:
    """A request from what a caller passes.

    Raises:
        InvalidRequest: an empty task, or something that is no tool.
        InvalidConstraint: a malformed schema, regex, choice or grammar.
        UnknownParameter: an override that is neither a parameter nor a field of a request.
    """
    given = {name: overrides[name] for name in REQUEST_FIELDS if overrides.get(name) is not None}
    constraint = Constraint.of(**{kind: given.pop(kind) for kind in KINDS if kind in given})
    if "tools" in given:
        given["tools"] = tuple(tool.schema for tool in as_tools(given["tools"]))
    values = {name: value for name, value in overrides.items() if name not in REQUEST_FIELDS}
    prompt = checked_prompt("" if task is None else task)
    return Request(prompt, GenerationParams(**values), constraint=constraint, **given)


def as_requests(tasks: Sequence[str], overrides: Mapping[str, Any]) -> list[Request]:
    """One request a task; an override that is a list gives one value a task."""
    rows = per_task(overrides, len(checked_batch(tasks)))
    return [as_request(task, row) for task, row in zip(tasks, rows, strict=True)]


def checked_requests(requests: Iterable[Request]) -> list[Request]:
    """The requests as a list.

    Raises:
        InvalidRequest: one of them is none, or there is nothing to go through.
    """
    if not isinstance(requests, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"requests must be an iterable of Request, got {type(requests).__name__}")
    listed = list(requests)
    for at, request in enumerate(listed):
        if not isinstance(request, Request):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"requests[{at}] must be a Request, got {type(request).__name__}")
    return listed
