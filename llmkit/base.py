"""BaseLLM: the contract that every model fulfils, whatever produces the text.

A subclass that defines only `run` gets everything else here. This class knows no tokenizer and no tensors; backends
derive from `BackendLLM`, which knows requests and chunks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from llmkit import checkpoint
from llmkit.errors import CheckpointError, ModelClosed, UnsupportedFeature
from llmkit.events import EventLog
from llmkit.figures import MeasuredCalls
from llmkit.history import PastTurns, parse_history, with_turn
from llmkit.metrics import Metrics
from llmkit.params import GenerationParams, Param, per_task
from llmkit.progress import BatchProgress
from llmkit.prompts import get_style
from llmkit.setters import ParameterSetters
from llmkit.summarize import summarize
from llmkit.turns import Turns
from llmkit.types import (
    Choice,
    Completion,
    Conversation,
    Message,
    Timings,
    Usage,
    checked_batch,
    checked_prompt,
    joined,
)

CREATIVE: Mapping[str, Any] = {"do_sample": True, "temperature": 1.2, "top_p": 0.95, "presence_penalty": 0.5}
"""What `toggle_creative_mode(True)` sets."""

_PASSAGE_TOKENS = 1000


class BaseLLM(ParameterSetters, MeasuredCalls):
    """One class for any language model; only `run` is abstract.

    Every parameter is a keyword argument and an attribute of the same name; `None` means "not set here". Setting one
    to a bad value raises `ParameterError` and changes nothing. Further names (`min_p`, `max_new_tokens`, ...) are
    accepted too; an unknown one raises `TypeError` with the nearest name.

    One object may be used from many threads if the subclass's `run` may; `chat` calls take turns.

    Attributes:
        history: the conversation so far, as messages.
        params: all generation parameters as one frozen value.
    """

    system_prompt = Param[str | None]()
    beam_width = Param[int | None]()
    num_return_sequences = Param[int | None]()
    repition_penalty = Param[float | None]()
    repetition_penalty = Param[float | None]()
    pad_token_id = Param[int | None]()
    eos_token_id = Param[int | Sequence[int] | None]()
    bos_token_id = Param[int | None]()
    max_new_tokens = Param[int | None]()
    max_completion_tokens = Param[int | None]()
    n = Param[int | None]()
    stop = Param[str | Sequence[str] | None]()
    stop_strings = Param[str | Sequence[str] | None]()
    logprobs = Param[int | None]()
    min_p = Param[float | None]()
    typical_p = Param[float | None]()

    def __init__(
        self,
        model_name: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        system_prompt: str | None = None,
        beam_width: int | None = None,
        num_return_sequences: int | None = None,
        seed: int | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        stop_token: str | Sequence[str] | None = None,
        length_penalty: float | None = None,
        role: str | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        early_stopping: bool | None = None,
        num_beams: int | None = None,
        repition_penalty: float | None = None,
        pad_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        bos_token_id: int | None = None,
        device: str | None = None,
        **more: Any,
    ) -> None:
        named = {name: value for name, value in locals().items() if name not in _NOT_PARAMETERS}
        super().__init__()
        self.params = GenerationParams(**named, **more)
        self._model_name = model_name
        self._device = device
        self.history: list[Message] = []
        self._turns, self._rebinding = Turns(), threading.RLock()
        self._events = EventLog()
        self._before_creative: dict[str, Any] | None = None
        self._closed = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse the abstract class with a message that says what to do.

        Raises:
            TypeError: the class does not define `run`.
        """
        if getattr(cls.run, "__isabstractmethod__", False):
            raise TypeError(
                f"{cls.__name__} is abstract: define run(), or get a ready model with llmkit.load(model_name, ...)"
            )
        return super().__new__(cls)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self.params)
        return f"{type(self).__name__}({self.model_name!r}{shown})"

    # --- generating -------------------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        """Generate the text that answers a task: the new text only."""

    def __call__(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        """The same as `run`."""
        return self.run(task, *args, **kwargs)

    async def arun(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        """`run` in a thread of its own; the event loop stays free."""
        return await asyncio.to_thread(self.run, task, *args, **kwargs)

    def batch_run(self, tasks: Sequence[str], *args: Any, progress: bool = False, **kwargs: Any) -> list[str]:
        """Texts for all tasks, in their order.

        A parameter may be a list with one value a task: `seed=[1, 2, 3]`. `progress` shows on a terminal, on stderr,
        how far the batch has come.
        """
        rows = per_task(kwargs, len(checked_batch(tasks)))
        with BatchProgress(len(tasks), wanted=progress) as line:
            return [self._shown(self.run(task, *args, **row), line) for task, row in zip(tasks, rows, strict=True)]

    async def abatch_run(self, tasks: Sequence[str], *args: Any, progress: bool = False, **kwargs: Any) -> list[str]:
        """`batch_run` with concurrent `arun` calls."""
        rows = per_task(kwargs, len(checked_batch(tasks)))
        with BatchProgress(len(tasks), wanted=progress) as line:

            async def one(task: str, row: Mapping[str, Any]) -> str:
                return self._shown(await self.arun(task, *args, **row), line)

            return list(await asyncio.gather(*(one(task, row) for task, row in zip(tasks, rows, strict=True))))

    def _shown(self, text: str, line: BatchProgress) -> str:
        if line.is_shown:
            line.add(n_tokens=self._num_tokens(text), n_finished=1)
        return text

    def complete(self, task: Conversation, **overrides: Any) -> Completion:
        """The answer with all that is known about it; token counts are None where the model does not tell."""
        started = time.perf_counter()
        text = self.run(joined(checked_prompt(task)), **overrides)
        timings = Timings(time.perf_counter() - started, None)
        return Completion((Choice(0, text, "stop"),), Usage(None, None), timings, self.params)

    def stream(self, task: Conversation, **overrides: Any) -> Iterator[str]:
        """Pieces of text as they become final; joined they are what `run` returns."""
        yield self.complete(task, **overrides).text

    async def astream(self, task: Conversation, **overrides: Any) -> AsyncIterator[str]:
        """`stream` without blocking the event loop."""
        yield await self.arun(joined(checked_prompt(task)), **overrides)

    def chat(self, task: str, history: PastTurns = "", **overrides: Any) -> str:
        """Answer one turn of a conversation.

        Without a history the object's own is used, and grows by both sides once the answer is there. A history that is
        passed, as messages (also none of them) or as a transcript, is used instead and nothing is kept. Concurrent
        calls take turns.

        With `tools` (functions) a backend's model may call them before it answers, at most `max_tool_rounds` times; the
        calls and their results are part of the history.

        Raises:
            InvalidRequest: a tool called it within the turn that it serves.
        """
        turn = self._turn(task, overrides)
        if history is not None and history != "":  # pyright: ignore[reportUnnecessaryComparison]
            return self._answer(with_turn(parse_history(history), turn), overrides)[-1].content
        with self._turns.taken():
            answers = self._answer((*self.history, turn), overrides)
            self.history = [*self.history, turn, *answers]
        return answers[-1].content

    async def achat(self, task: str, history: PastTurns = "", **overrides: Any) -> str:
        """`chat` without blocking the event loop; tools may be async functions."""
        turn = self._turn(task, overrides)
        if history is not None and history != "":  # pyright: ignore[reportUnnecessaryComparison]
            return (await self._aanswer(with_turn(parse_history(history), turn), overrides))[-1].content
        async with self._turns.ataken():
            answers = await self._aanswer((*self.history, turn), overrides)
            self.history = [*self.history, turn, *answers]
        return answers[-1].content

    def _role(self, overrides: Mapping[str, Any]) -> str | None:
        return GenerationParams(role=overrides.get("role")).role or self.role

    def _turn(self, task: str, overrides: Mapping[str, Any]) -> Message:
        return Message("assistant" if self._role(overrides) == "user" else "user", checked_prompt(task))

    def _answer(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> tuple[Message, ...]:
        """What is said next in a conversation, the answer last."""
        return (self._said(self._reply(messages, overrides), overrides),)

    async def _aanswer(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> tuple[Message, ...]:
        return (self._said(await self._areply(messages, overrides), overrides),)

    def _said(self, text: str, overrides: Mapping[str, Any]) -> Message:
        return Message("user" if self._role(overrides) == "user" else "assistant", text)

    def _reply(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> str:
        """The answer to a conversation; without a template, the contents joined by newlines are the task."""
        return self.run(joined(messages), **overrides)

    async def _areply(self, messages: tuple[Message, ...], overrides: Mapping[str, Any]) -> str:
        return await self.arun(joined(messages), **overrides)

    def clear_history(self) -> None:
        """Forget the conversation."""
        self.history = []

    def generate_summary(self, text: str) -> str:
        """A summary of a text of any length: passages are summarised, then their summaries, until one is left."""
        return summarize(
            text,
            run=self._run_prompts,
            count_tokens=self._num_tokens,
            max_passage_tokens=self._passage_tokens(),
            render=lambda passage: get_style("summarize").render(input=passage),
        )

    def _run_prompts(self, prompts: list[str]) -> list[str]:
        """Continuations of ready prompts."""
        return self.batch_run(prompts)

    def _passage_tokens(self) -> int:
        return _PASSAGE_TOKENS

    # --- log, checkpoints, modes ------------------------------------------------------------------------------------

    def enable_logging(self, log_file: str = "model.log") -> None:
        """Write this object's events to a file of its own, with rotation."""
        self._events.enable(log_file)

    def log_event(self, message: str) -> None:
        """Add a line to this object's log."""
        self._events.log(message)

    def save_checkpoint(self, checkpoint_dir: str | Path = "checkpoints", *, include_weights: bool = False) -> Path:
        """Save parameters, history and metrics, and the weights on request; returns the file.

        The write is atomic: whatever interrupts it, the previous checkpoint stays whole.

        Raises:
            CheckpointError: it cannot be written.
            UnsupportedFeature: weights are asked for and there are none.
        """
        self._check_open()
        write_weights = self._save_weights if include_weights else None
        return checkpoint.save(checkpoint_dir, self._state(), write_weights=write_weights)

    def load_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Restore what `save_checkpoint` saved, from its file or folder.

        Raises:
            CheckpointError: it is missing, damaged or of another program; nothing was changed.
        """
        self._check_open()
        loaded = checkpoint.load(checkpoint_path)
        state = cast("Mapping[str, Any]", loaded.state)
        params, history, metrics = _parsed_state(state)
        if loaded.weights is not None:
            self._load_weights(loaded.weights)
            self._model_name = state.get("model_name")
        elif state.get("model_name") != self.model_name:
            self.model_name = state.get("model_name")
        self.params, self.history, self._metrics = params, history, metrics
        self._before_creative = state.get("before_creative")

    def _state(self) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "params": dict(self.params),
            "history": [message.to_dict() for message in self.history],
            "metrics": self._metrics.to_state(),
            "before_creative": self._before_creative,
        }

    def _save_weights(self, folder: Path) -> None:
        raise UnsupportedFeature(f"{type(self).__name__} has no weights to save")

    def _load_weights(self, folder: Path) -> None:
        raise UnsupportedFeature(f"{type(self).__name__} cannot load weights")

    def toggle_creative_mode(self, enable: bool) -> None:
        """Swap the `CREATIVE` preset in, or restore what stood before."""
        if enable and self._before_creative is None:
            self._before_creative = {name: getattr(self.params, name) for name in CREATIVE}
            self.params = self.params.replace(**CREATIVE)
        elif not enable and self._before_creative is not None:
            self.params = self.params.replace(**self._before_creative)
            self._before_creative = None

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free everything the model holds; safe to call twice. Later calls raise `ModelClosed`."""
        self._closed = True
        self._events.disable()

    detach = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> object:
        """Refuse to be pickled or copied: threads, memory and files behind a model cannot be.

        Raises:
            TypeError: always; a subclass that holds nothing of the kind may define it anew.
        """
        raise TypeError(
            f"a {type(self).__name__} belongs to the process that loaded it and can be neither pickled nor copied: "
            f"load it where it is to run, for instance from its name, {self.model_name!r}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosed(self.model_name)


_NOT_PARAMETERS = {"self", "model_name", "device", "more", "__class__"}


def _parsed_state(state: Mapping[str, Any]) -> tuple[GenerationParams, list[Message], Metrics]:
    """Everything in a checkpoint's state, checked before any of it is used."""
    metrics = Metrics()
    try:
        metrics.restore(state["metrics"])
        history = [Message.from_dict(message) for message in state["history"]]
        return GenerationParams(**state["params"]), history, metrics
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's state is not one of a model: {error}") from error
