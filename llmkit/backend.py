"""BackendLLM: every way of calling a model, from one primitive that yields chunks.

A backend defines `_generate` and declares `capabilities`; parameters, context, folding, async and GPT tasks are done
here, once for all backends. This module does not know how tokens come to be.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import warnings
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, overload

from llmkit.base import BaseLLM
from llmkit.bridge import drained_in_thread
from llmkit.call import Call, as_request, as_requests, checked_requests
from llmkit.capabilities import Capabilities
from llmkit.errors import (
    ContextWarning,
    GenerationError,
    InertParameterWarning,
    InvalidRequest,
    ParameterError,
    TaskArgsInvalid,
    UnsupportedParameterWarning,
)
from llmkit.params import GenerationParams
from llmkit.preparation import ModelFacts, Prepared, prepare, takes_long
from llmkit.progress import BatchProgress
from llmkit.structured import Constraint, Guide
from llmkit.tools import MAX_TOOL_ROUNDS, Answer, ToolRounds, as_tools, read_answer
from llmkit.types import Choice, Chunk, Completion, Conversation, Message, Request
from llmkit.wire import GPTTask, GPTTaskResponse, GPTTaskStreamChunk

_SUMMARY_TOKENS = 256


class BackendLLM(BaseLLM):
    """A model behind one primitive.

    Subclasses define `_generate`, set `backend_name` and `capabilities`, and may define the hooks below it. All public
    methods may be called from many threads and tasks at once if `_generate` may.

    Args:
        model_name: what to load; its form is the backend's.
        on_unsupported: `error` refuses a parameter that the backend cannot honour, `warn` leaves it out with a warning.
        params: the parameters of `BaseLLM`.
    """

    backend_name: ClassVar[str] = "custom"
    capabilities: Capabilities = Capabilities()

    def __init__(
        self, model_name: str | None = None, *, on_unsupported: Literal["error", "warn"] = "error", **params: Any
    ) -> None:
        if on_unsupported not in ("error", "warn"):
            raise ParameterError(f'on_unsupported must be "error" or "warn", got {on_unsupported!r}')
        super().__init__(model_name, **params)
        self.on_unsupported = on_unsupported
        self._warned: set[str] = set()
        self._fingerprinting = threading.Lock()
        if on_unsupported == "error":
            self.capabilities.check(self.params, self.backend_name)

    # --- what a backend provides ------------------------------------------------------------------------------------

    @abstractmethod
    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        """Chunks of all requests, in any order between them, in order within a choice.

        Requests come with resolved parameters, encoded where `_encode` can. Closing the iterator ends the generation.
        """

    async def _agenerate(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        """`_generate` for an event loop; a backend that is async by nature overrides it."""
        async for chunk in drained_in_thread(self._generate(requests)):
            yield chunk

    def _model_params(self) -> GenerationParams:
        """What the model's own generation config sets."""
        return GenerationParams()

    def _encode(self, request: Request) -> Sequence[int] | None:
        """The prompt as the model will read it; None where the backend cannot tell."""
        return None

    def _compile(self, constraint: Constraint) -> Guide | None:
        """The constraint for this model's tokenizer; None where the backend does not mask tokens itself."""
        return None

    def _read_answer(self, request: Request, choice: Choice) -> Answer:
        """A choice's text, taken apart into what is said and the tools that are called."""
        return read_answer(choice.text)

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and new text may have together; None where it is unknown or unlimited."""
        return None

    def _generating(self) -> object:
        """What generates; another object once the model was replaced."""
        return None

    def _adapted_by(self) -> object:
        """What changes the model's texts in its place; another object once it was changed."""
        return None

    @property
    def fingerprint(self) -> str | None:
        """What the bits depend on; None where nothing is promised."""
        return None

    def _release(self) -> None:
        """Free the model; called once."""

    # --- calls ------------------------------------------------------------------------------------------------------

    def run(self, task: str | None = None, *args: Any, **overrides: Any) -> str:
        """The new text only.

        Overrides hold for this call: any parameter; `raw`, `prompt_style` and `template_args`; `tools`, functions or
        schemas; and one of `schema`, `regex`, `choice` and `grammar`, which the text is kept to.
        """
        _refuse_positional(args)
        return self.complete(cast("str", task), **overrides).text

    def complete(self, task: Conversation, **overrides: Any) -> Completion:
        """The answer to a string or to messages, with usage, timings and the parameters as they were used."""
        return self.complete_batch([as_request(task, overrides)])[0]

    def stream(self, task: Conversation, **overrides: Any) -> Iterator[str]:
        """Pieces of text as they become final; joined they equal `run`'s text. Closing it ends the generation."""
        call = self._begin([as_request(task, overrides)]).of_one_text()
        return (chunk.text for chunk in self._folding(call) if chunk.text)

    def batch_run(self, tasks: Sequence[str], *args: Any, progress: bool = False, **overrides: Any) -> list[str]:
        """Texts for all tasks, in their order; a list as an override gives one value a task.

        `progress` shows on a terminal, on stderr, how far the batch has come.
        """
        _refuse_positional(args)
        completions = self.complete_batch(as_requests(tasks, overrides), progress=progress)
        return [completion.text for completion in completions]

    def chunks(self, requests: Iterable[Request]) -> Iterator[Chunk]:
        """The chunks of all requests as they come, each with the index of its request; all else folds these.

        Closing the iterator ends the generation.

        Raises:
            InvalidRequest: one of them is no `Request`.
        """
        return self._folding(self._begin(checked_requests(requests)))

    def complete_batch(self, requests: Iterable[Request], *, progress: bool = False) -> list[Completion]:
        """Completions for all requests, in their order; each has its own parameters."""
        call = self._begin([replace(request, streamed=False) for request in checked_requests(requests)])
        with BatchProgress(len(call.prepared), wanted=progress) as line:
            for chunk in self._folding(call):
                call.show(chunk, line)
        return self._completions(call)

    async def arun(self, task: str | None = None, *args: Any, **overrides: Any) -> str:
        """`run` without blocking the event loop; cancelling it ends the generation."""
        _refuse_positional(args)
        return (await self.acomplete(cast("str", task), **overrides)).text

    async def acomplete(self, task: Conversation, **overrides: Any) -> Completion:
        """`complete` without blocking the event loop."""
        return (await self.acomplete_batch([as_request(task, overrides)]))[0]

    async def astream(self, task: Conversation, **overrides: Any) -> AsyncIterator[str]:
        """`stream` without blocking the event loop."""
        call = (await self._abegin([as_request(task, overrides)])).of_one_text()
        async for chunk in self._afolding(call):
            if chunk.text:
                yield chunk.text

    async def abatch_run(self, tasks: Sequence[str], *args: Any, progress: bool = False, **overrides: Any) -> list[str]:
        """`batch_run` without blocking the event loop."""
        _refuse_positional(args)
        completions = await self.acomplete_batch(as_requests(tasks, overrides), progress=progress)
        return [completion.text for completion in completions]

    async def acomplete_batch(self, requests: Iterable[Request], *, progress: bool = False) -> list[Completion]:
        """`complete_batch` without blocking the event loop."""
        call = await self._abegin([replace(request, streamed=False) for request in checked_requests(requests)])
        with BatchProgress(len(call.prepared), wanted=progress) as line:
            async for chunk in self._afolding(call):
                call.show(chunk, line)
        return await self._acompletions(call)

    def _answer(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> tuple[Message, ...]:
        if not overrides.get("tools"):
            return super()._answer(messages, overrides)
        rounds, options = self._tool_rounds(messages, overrides)
        rounds.refuse_async()
        while calls := rounds.take(self.complete(rounds.conversation, **options)):
            for call in calls:
                rounds.add_result(call, rounds.run(call))
        return rounds.added

    async def _aanswer(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> tuple[Message, ...]:
        if not overrides.get("tools"):
            return await super()._aanswer(messages, overrides)
        rounds, options = self._tool_rounds(messages, overrides)
        while calls := rounds.take(await self.acomplete(rounds.conversation, **options)):
            for call in calls:
                rounds.add_result(call, await rounds.arun(call))
        return rounds.added

    def _tool_rounds(
        self, messages: tuple[Message, ...], overrides: Mapping[str, Any]
    ) -> tuple[ToolRounds, dict[str, Any]]:
        """The rounds of a turn, and the overrides of each call in it."""
        if self._role(overrides) == "user":
            raise InvalidRequest('tools are the assistant\'s: role must be "assistant", got "user"')
        tools = as_tools(overrides["tools"])
        options: dict[str, Any] = {**overrides, "tools": tools}
        return ToolRounds(messages, tools, options.pop("max_tool_rounds", MAX_TOOL_ROUNDS)), options

    def _reply(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> str:
        return self.complete(messages, **overrides).text

    async def _areply(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> str:
        return (await self.acomplete(messages, **overrides)).text

    def _run_prompts(self, prompts: list[str]) -> list[str]:
        return self.batch_run(prompts, raw=True)

    def _passage_tokens(self) -> int:
        if self.context_length is None:
            return super()._passage_tokens()
        n_new = min(self.max_tokens or _SUMMARY_TOKENS, self.context_length // 2)
        return max(1, (self.context_length - n_new) * 3 // 4)

    # --- GPT tasks --------------------------------------------------------------------------------------------------

    @overload
    def execute(self, task: GPTTask | Mapping[str, Any] | str | bytes) -> GPTTaskResponse: ...
    @overload
    def execute(
        self, task: GPTTask | Mapping[str, Any] | str | bytes, *, stream: Literal[True]
    ) -> Iterator[GPTTaskStreamChunk]: ...
    def execute(
        self, task: GPTTask | Mapping[str, Any] | str | bytes, *, stream: bool = False
    ) -> GPTTaskResponse | Iterator[GPTTaskStreamChunk]:
        """Run a GPT task on this model: a `GPTTask`, its dictionary, or its JSON.

        The task is self-contained: this object's own parameters do not apply.

        Raises:
            TaskArgsInvalid: it is malformed, or asks for another model than this one.
        """
        task = self._own_task(task)
        call = self._begin([replace(task.to_request(), streamed=stream)])
        if stream:
            return self._task_stream(task, call)
        for _ in self._folding(call):
            pass
        return GPTTaskResponse.of(task.model, self._completions(call)[0])

    async def aexecute(self, task: GPTTask | Mapping[str, Any] | str | bytes) -> GPTTaskResponse:
        """`execute` without blocking the event loop."""
        task = self._own_task(task)
        completions = await self.acomplete_batch([task.to_request()])
        return GPTTaskResponse.of(task.model, completions[0])

    def _task_stream(self, task: GPTTask, call: Call) -> Iterator[GPTTaskStreamChunk]:
        """Texts as they come; the reasons wait for the end, because only then the usage beside them is the whole."""
        builder = call.builders[0]
        for chunk in self._folding(call):
            if chunk.text:
                yield GPTTaskStreamChunk.of(task.model, replace(chunk, finish_reason=None), builder.usage)
        for choice in builder.choices():
            last = Chunk(0, choice.index, finish_reason=choice.finish_reason)
            yield GPTTaskStreamChunk.of(task.model, last, builder.usage)

    def _own_task(self, task: GPTTask | Mapping[str, Any] | str | bytes) -> GPTTask:
        parsed = GPTTask.parse(task)
        problem = self._task_mismatch(parsed)
        if problem:
            raise TaskArgsInvalid(f"{problem}; llmkit.run_task loads what a task names")
        return parsed

    def _task_mismatch(self, task: GPTTask) -> str | None:
        """What the task asks of its model that this object is not; None where it fits."""
        if task.model not in (self.model_name, f"{self.backend_name}:{self.model_name}"):
            return f"model: the task asks for {task.model!r}, this is {self.model_name!r}"
        return None

    # --- preparing and folding --------------------------------------------------------------------------------------

    def _begin(self, requests: Sequence[Request]) -> Call:
        self._check_open()
        begun_for, begun_with = self._generating(), self._adapted_by()
        call = Call([self._prepare(request) for request in requests], begun_for, begun_with)
        self._warn_of_dropped(call)
        return call

    def _warn_of_dropped(self, call: Call) -> None:
        """Once a call, and at every call: a text alone does not tell what the model did not read."""
        n_dropped = sum(len(prepared.dropped) for prepared in call.prepared)
        if n_dropped:
            problem = f"{n_dropped} old messages were left out, so that the conversation fits the window"
            warnings.warn(problem, ContextWarning, stacklevel=_callers_level())

    async def _abegin(self, requests: Sequence[Request]) -> Call:
        """`_begin`, in a thread where it may take long; few and short requests take less time than a thread."""
        is_slow = takes_long(requests, self.params)
        return await asyncio.to_thread(self._begin, requests) if is_slow else self._begin(requests)

    def _folding(self, call: Call) -> Iterator[Chunk]:
        """The chunks of a call, each folded into its completion as it passes."""
        self._check_open()
        with _closed_after(self._generate(call.requests) if call.requests else iter(())) as chunks:
            self._check_not_replaced(call)
            for chunk in chunks:
                call.add(chunk)
                yield chunk
        self._record_call(call)

    async def _afolding(self, call: Call) -> AsyncIterator[Chunk]:
        self._check_open()
        if call.requests:
            chunks = self._agenerate(call.requests)
            self._check_not_replaced(call)
            async for chunk in chunks:
                call.add(chunk)
                yield chunk
        self._record_call(call)

    def _check_not_replaced(self, call: Call) -> None:
        """Refuse to give one model the tokens of another; checked once it is settled which one generates."""
        if call.begun_for is not self._generating():
            raise GenerationError(f"the model was replaced by {self.model_name!r} after this call began; call again")

    def _record_call(self, call: Call) -> None:
        if call.requests:
            self._record(call.timing())

    def _completions(self, call: Call) -> list[Completion]:
        return call.completions(self._fingerprint_of(call), self._read_answer)

    async def _acompletions(self, call: Call) -> list[Completion]:
        """`_completions`, where a fingerprint is needed from a thread."""
        found = await asyncio.to_thread(self._fingerprint_of, call) if call.is_reproducible else None
        return call.completions(found, self._read_answer)

    def _fingerprint_of(self, call: Call) -> str | None:
        """None where nothing is promised, or another model or adapter came meanwhile, which would be named instead."""
        if not call.is_reproducible:
            return None
        with self._fingerprinting:  # The first one may read all weights, and others would read them beside it.
            found = self.fingerprint
        return found if (call.begun_for, call.begun_with) == (self._generating(), self._adapted_by()) else None

    def _prepare(self, request: Request) -> Prepared:
        prepared = prepare(request, self._facts())
        self._warn_once(
            UnsupportedParameterWarning, prepared.left_out, f"is left out by the {self.backend_name} backend"
        )
        self._warn_once(InertParameterWarning, prepared.inert, "has no effect in this mode")
        return prepared

    def _facts(self) -> ModelFacts:
        return ModelFacts(
            backend_name=self.backend_name,
            model_name=self.model_name,
            capabilities=self.capabilities,
            leaves_out=self.on_unsupported == "warn",
            own=self.params,
            model=self._model_params(),
            context_length=self.context_length,
            encode=self._encode,
            compile=self._compile,
        )

    def _warn_once(self, category: type[Warning], names: Sequence[str], what: str) -> None:
        for name in names:
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(f"{name} {what}", category, stacklevel=_callers_level())

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free model, caches and device memory; safe to call twice. Later calls raise `ModelClosed`."""
        if not self._closed:
            super().close()
            self._release()

    detach = close


@contextmanager
def _closed_after(chunks: Iterator[Chunk]) -> Generator[Iterator[Chunk]]:
    """A stream that is closed with its reader, at once and not when garbage is collected."""
    try:
        yield chunks
    finally:
        close: Callable[[], None] = getattr(chunks, "close", lambda: None)
        close()


def _callers_level() -> int:
    """The stack level of the first frame outside llmkit, so that a warning points at the caller's line."""
    frames = inspect.stack(context=0)[1:]
    inside = (frame.frame.f_globals.get("__name__", "").startswith("llmkit.") for frame in frames)
    return 1 + sum(1 for _ in itertools.takewhile(bool, inside))


def _refuse_positional(args: tuple[Any, ...]) -> None:
    if args:
        raise TypeError(f"only the task is positional, got {args!r} besides; name the parameters")
