"""TextGenerationPipeline: prompts in, their greedy continuations out.

It knows prompts and lengths; how a model generates, and what it batches, is the model's.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from llmkit.backend import BackendLLM
from llmkit.errors import InvalidRequest, ModelClosed, ParameterError
from llmkit.params import GenerationParams
from llmkit.registry import backend_class, load, resolve_name
from llmkit.text_pipelines.config import PipelineConfig
from llmkit.types import Chunk, Request


class TextGenerationPipeline:
    """Continues prompts greedily, as they stand: no chat template, no stripping.

    A call may come from any thread, and leaves the pipeline as it was.

    Args:
        config: the settings; the arguments below take precedence, and the caller's object is not changed.
        model: what to load, a name or a folder, or a model that is loaded already; the config's model by default.
        sequence_length: tokens that a prompt and its continuation may have together.
        micro_batch_size: prompts that are worked on at once. A model loaded here starts the next prompt as soon as one
            is done, where its backend has a `batch_size`; any other gets so many prompts, and then the next ones.
        output_length: tokens to generate at most; a text may end before.
        print_live: show the texts while they are generated.
        load_options: whatever else `llmkit.load` takes: `device`, `dtype`, ...

    Raises:
        ParameterError: a setting breaks its rule, or `load_options` are given with a loaded model.
        ModelError: the model cannot be had.

    Attributes:
        config: the settings that apply.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        model: str | os.PathLike[str] | BackendLLM | None = None,
        *,
        sequence_length: int | None = None,
        micro_batch_size: int | None = None,
        output_length: int | None = None,
        print_live: bool = False,
        **load_options: Any,
    ) -> None:
        self.config = (config or PipelineConfig()).model_copy(deep=True)
        self._print_live = print_live
        _override(self.config.model, sequence_length=sequence_length)
        _override(self.config.execution, micro_batch_size=micro_batch_size)
        _override(self.config.inference, output_length=output_length)
        self._llm: BackendLLM | None = None
        self._refills, self._owns_model = False, not isinstance(model, BackendLLM)
        if isinstance(model, BackendLLM):
            self._borrow(model, load_options)
        else:
            self._load(self.config.model.name if model is None else _checked_name(model), load_options)

    def _borrow(self, model: BackendLLM, load_options: dict[str, Any]) -> None:
        if load_options:
            raise ParameterError(
                f"{', '.join(load_options)}: settled when a model is loaded, and this one is loaded already"
            )
        self._llm = model
        self.config.model.name = model.model_name or self.config.model.name

    def _load(self, name: str, load_options: dict[str, Any]) -> None:
        self.config.model.name = name
        self._refills = "batch_size" in inspect.signature(backend_class(resolve_name(name)[0])).parameters
        if self._refills:
            load_options.setdefault("batch_size", self.config.execution.micro_batch_size)
        self._llm = load(name, **load_options)

    @classmethod
    def from_pipeline(cls, pipeline: TextGenerationPipeline) -> Self:
        """A pipeline of this class on the model of another one; nothing is loaded.

        Both have the one model: detaching either ends both, unless the model was passed in loaded.

        Raises:
            ModelClosed: it was detached.
        """
        pipeline._check_attached()
        made = cls.__new__(cls)
        made.config = pipeline.config.model_copy(deep=True)
        made._llm, made._owns_model, made._refills = pipeline._llm, pipeline._owns_model, pipeline._refills
        made._print_live = pipeline._print_live
        return made

    from_gptj_pipeline = from_pipeline

    @property
    def llm(self) -> BackendLLM | None:
        """The model as llmkit sees it; None once detached."""
        return self._llm

    @property
    def pretrained(self) -> Any:
        """The library's own model object; the llmkit model where it has none."""
        self._check_attached()
        return getattr(self._llm, "model", self._llm)

    @property
    def tokenizer(self) -> Any:
        """The library's own tokenizer, or None."""
        self._check_attached()
        return getattr(self._llm, "tokenizer", None)

    def __call__(
        self, prompts: str | Iterable[str], *, output_length: int | None = None, print_live: bool | None = None
    ) -> list[str]:
        """The new text of each prompt, in their order; a list also for a single string.

        Args:
            prompts: one prompt or several; none is empty.
            output_length: tokens to generate at most, in this call.
            print_live: show the texts while they are generated, in this call.

        Raises:
            InvalidRequest: a prompt is empty or no string.
            ContextLengthExceeded: a prompt leaves no room within `sequence_length`.
            ModelClosed: the pipeline was detached.
        """
        llm = self._check_attached()
        requests = self._requests([prompts] if isinstance(prompts, str) else list(prompts), output_length)
        shows = self._print_live if print_live is None else print_live
        chunks = self._chunks(llm, requests)
        texts = [""] * len(requests)
        for chunk in _shown(chunks, len(requests)) if shows else chunks:
            texts[chunk.request] += chunk.text
        return texts

    def _chunks(self, llm: BackendLLM, requests: list[Request]) -> Iterator[Chunk]:
        """The chunks of all requests; the micro-batches are the model's own where it refills them."""
        size = max(1, len(requests)) if self._refills else self.config.execution.micro_batch_size
        # All are prepared before the first one runs: a prompt that is too long costs no generation.
        batches = [(start, llm.chunks(requests[start : start + size])) for start in range(0, len(requests), size)]
        for start, chunks in batches:
            for chunk in chunks:
                yield replace(chunk, request=start + chunk.request)

    def _requests(self, prompts: list[str], output_length: int | None) -> list[Request]:
        params = GenerationParams(
            do_sample=False,
            max_tokens=self.config.inference.output_length if output_length is None else output_length,
            max_length=self.config.model.sequence_length,
        )
        for at, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidRequest(f"prompts must be non-empty strings, got {prompt!r} at {at}")
        return [Request(prompt, params, raw=True) for prompt in prompts]

    def detach(self) -> None:
        """Free the model, unless it was passed in loaded; safe to call twice. Later calls raise `ModelClosed`."""
        llm, self._llm = self._llm, None
        if llm is not None and self._owns_model:
            llm.close()

    def _check_attached(self) -> BackendLLM:
        if self._llm is None:
            raise ModelClosed(self.config.model.name)
        return self._llm


GPTJPipeline = TextGenerationPipeline


def _checked_name(model: str | os.PathLike[str]) -> str:
    """What to load.

    Raises:
        ParameterError: it is neither a name nor a folder.
    """
    if not isinstance(model, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(
            f"model must be a name, a folder or a loaded llmkit model, got {type(model).__name__}; "
            "a model of transformers is saved with its tokenizer by save_pretrained, and its folder passed"
        )
    return os.fspath(model)


def _override(section: Any, **values: int | None) -> None:
    """Put what is given into a section of the config.

    Raises:
        ParameterError: a value breaks its rule.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"{name} must be an integer of at least 1, got {value!r}")
        setattr(section, name, value)


def _shown(chunks: Iterator[Chunk], n_prompts: int) -> Iterator[Chunk]:
    """The chunks, shown as they pass: a lone text piece by piece, several each under its number once it is whole."""
    texts = [""] * n_prompts
    for chunk in chunks:
        texts[chunk.request] += chunk.text
        if n_prompts == 1:
            _show(chunk.text)
        if chunk.finish_reason is not None:
            _show("\n" if n_prompts == 1 else f"[{chunk.request + 1}/{n_prompts}] {texts[chunk.request].strip()}\n")
        yield chunk


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
