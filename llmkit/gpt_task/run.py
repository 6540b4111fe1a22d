"""Running a GPT task from start to end: check it, get its model, execute it, and name what went wrong.

It knows no backend; which one a model's name means is the registry's business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any, overload

from llmkit import registry
from llmkit.backend import BackendLLM
from llmkit.errors import ModelError, TaskArgsInvalid, TaskExecutionError
from llmkit.gpt_task.cache import ModelCache
from llmkit.wire import GPTTask, GPTTaskResponse, GPTTaskStreamChunk

default_cache = ModelCache()
"""The cache of `run_task` calls that bring none of their own."""


@overload
def run_task(
    task: GPTTask | Mapping[str, Any] | str | bytes, *, stream_callback: None = None, cache: ModelCache | None = None
) -> GPTTaskResponse: ...
@overload
def run_task(
    task: GPTTask | Mapping[str, Any] | str | bytes,
    *,
    stream_callback: Callable[[GPTTaskStreamChunk], object],
    cache: ModelCache | None = None,
) -> None: ...
def run_task(
    task: GPTTask | Mapping[str, Any] | str | bytes,
    *,
    stream_callback: Callable[[GPTTaskStreamChunk], object] | None = None,
    cache: ModelCache | None = None,
) -> GPTTaskResponse | None:
    """Load the model that a task names, and execute the task on it.

    Safe to call from many threads; calls for the same model share it.

    Args:
        task: a `GPTTask`, its dictionary, or its JSON.
        stream_callback: gets each chunk when it is there, and there is no response then. What it raises ends the
            generation and is passed on as it is.
        cache: where loaded models are kept; by default a cache of one model, shared by the process.

    Raises:
        TaskArgsInvalid: the task is malformed; nothing was loaded.
        ModelError: its model cannot be had.
        TaskExecutionError: anything else failed; the cause is attached.
        MemoryError: there was not enough memory. torch's own out-of-memory error is passed on, too.
    """
    task = GPTTask.parse(task)
    cache = default_cache if cache is None else cache
    if stream_callback is None:
        with _model_for(task, cache) as llm:
            return llm.execute(task)
    with closing(_chunks(task, cache)) as chunks:
        for chunk in chunks:
            stream_callback(chunk)
    return None


def _chunks(task: GPTTask, cache: ModelCache) -> Generator[GPTTaskStreamChunk]:
    with _model_for(task, cache) as llm:
        yield from llm.execute(task, stream=True)


@contextmanager
def _model_for(task: GPTTask, cache: ModelCache) -> Generator[BackendLLM]:
    """The task's model; what fails in loading or using it is raised as `run_task` promises."""
    try:
        with cache.load(_key(task), lambda: _loaded(task)) as llm:
            yield llm
    except (TaskArgsInvalid, ModelError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory := _out_of_memory(error):
            raise out_of_memory from out_of_memory.__cause__
        raise TaskExecutionError(f"the task on {task.model!r} failed: {type(error).__name__}: {error}") from error


def _key(task: GPTTask) -> tuple[str, str, str, int | None]:
    name, _, revision = task.model.partition("@")
    return name, revision, task.dtype, task.quantize_bits


def _loaded(task: GPTTask) -> BackendLLM:
    """The model; what a task leaves open is not passed on, since not every backend has a choice there."""
    wishes: dict[str, Any] = {}
    if task.dtype != "auto":
        wishes["dtype"] = task.dtype
    if task.quantize_bits is not None:
        wishes["quantize_bits"] = task.quantize_bits
    return registry.load(task.model, **wishes)


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or the cause behind it, that says memory ran out; torch is not imported to recognise its own."""
    while error is not None:
        if any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__):
            return error
        error = error.__cause__
    return None
