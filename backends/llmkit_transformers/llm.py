"""TransformersLLM: a Hugging Face model behind llmkit's contract.

It joins the parts: loading, encoding, and the route that generates. One thread of its own runs the model.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.backend import BackendLLM
from llmkit.capabilities import ALL_PARAMS, Capabilities
from llmkit.errors import ContextLengthExceeded, GenerationError, ModelClosed, ParameterError
from llmkit.fingerprint import fingerprint, library_versions
from llmkit.params import GenerationParams
from llmkit.registry import EMBEDDED_MODEL
from llmkit.resources import DeviceMemory
from llmkit.types import Chunk, Request
from llmkit.wire import GPTTask
from llmkit_transformers.devices import device_memory
from llmkit_transformers.encoding import PromptEncoder
from llmkit_transformers.generate_route import GenerateRoute, Numbered, batches
from llmkit_transformers.identity import folder_digest, weights_digest
from llmkit_transformers.loading import Dtype, LoadedModel, LoadOptions, load_model
from llmkit_transformers.settings import ModelSettings, vocabulary_size, window


class TransformersLLM(BackendLLM):
    """A model of Hugging Face transformers.

    Args:
        model_name: a folder, a hub id, or `id@revision`; nothing for the embedded model.
        dtype: `float16`, `bfloat16`, `float32`, or `auto` for what the model's config says.
        quantize_bits: 4 or 8, through bitsandbytes.
        local_files_only: never download.
        trust_remote_code: run code that the model's repository brings.
        batch_size: rows that are generated together.
        params: the parameters of `BaseLLM`, among them `device`: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for
            accelerate's device map; without one, the first GPU or the processor.

    Raises:
        ModelError: the model cannot be had.
        DeviceUnavailable: this machine does not have the device.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
    """

    backend_name: ClassVar[str] = "transformers"
    capabilities: ClassVar[Capabilities] = Capabilities(
        params=ALL_PARAMS, streaming=True, batching=True, tools=True, reproducible="alone"
    )

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        dtype: Dtype = "auto",
        quantize_bits: int | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        batch_size: int = 16,
        **params: Any,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"batch_size must be an integer >= 1, got {batch_size!r}")
        super().__init__(os.fspath(model_name or EMBEDDED_MODEL), **params)
        self.batch_size = batch_size
        self._options = LoadOptions(dtype, quantize_bits, self.device, local_files_only, trust_remote_code)
        self._running_groups: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._n_threads = torch.get_num_threads()
        # One thread generates, with the caller's number of threads, which a new thread would not take over.
        self._executor = ThreadPoolExecutor(1, "llmkit", torch.set_num_threads, (self._n_threads,))
        self._take(load_model(self.model_name, self._options))

    # --- the model --------------------------------------------------------------------------------------------------

    def _take(self, loaded: LoadedModel) -> None:
        """Make this the model."""
        self._settings = ModelSettings.taken_from(loaded)
        self._loaded: LoadedModel | None = loaded
        self._encoder = PromptEncoder(loaded.tokenizer)
        self._route = GenerateRoute(loaded, self._encoder.decoder(), self._settings.config)
        vars(self).pop("fingerprint", None)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self._require().model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._require().tokenizer

    def _require(self) -> LoadedModel:
        if self._loaded is None:
            raise ModelClosed(self.model_name)
        return self._loaded

    def _rebind(self, model_name: str | None, device: str | None) -> None:
        self._check_open()
        options = LoadOptions(
            self._options.dtype,
            self._options.quantize_bits,
            device,
            self._options.local_files_only,
            self._options.trust_remote_code,
        )
        if (model_name, device) == (self.model_name, self.device):
            return
        loaded = load_model(model_name, options)
        # In the owner thread, so that no generation is running while the model changes.
        self._executor.submit(self._take, loaded).result()
        self._options = options
        _collect_garbage()

    def _model_params(self) -> GenerationParams:
        return self._settings.params

    @property
    def context_length(self) -> int | None:
        """Positions that the model has; None where its config names no limit, or prompt and text have one each."""
        config = self.model.config.get_text_config()
        return None if config.is_encoder_decoder else window(config)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the bits depend on: weights, tokenizer, route, precision, device, libraries and processor."""
        loaded = self._require()
        return fingerprint(
            {
                "route": "generate",
                "weights": weights_digest(loaded.model),
                "config": loaded.model.config.to_json_string(),
                "tokenizer": folder_digest(loaded.files.folder, "token*", "*.jinja", "vocab*", "merges*", "spiece*"),
                "dtype": str(loaded.model.dtype),
                "quantize_bits": loaded.options.quantize_bits,
                "device": str(loaded.model.device),
                "threads": self._n_threads,
                "flags": [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()],
                "libraries": library_versions("torch", "transformers", "tokenizers", "bitsandbytes"),
            }
        )

    # --- generating -------------------------------------------------------------------------------------------------

    def _encode(self, request: Request) -> Sequence[int]:
        self._check_token_ids(request.params)
        ids = self._encoder.encode(request)
        positions = window(self.model.config) if self._route.is_encoder_decoder else None
        if positions is not None and len(ids) > positions:
            raise ContextLengthExceeded(len(ids), request.params.max_tokens, positions)
        return ids

    def _check_token_ids(self, params: GenerationParams) -> None:
        """Refuse what would be looked up beyond the embeddings, which on a GPU ends the process."""
        n_tokens = vocabulary_size(self._require())
        for name in ("bos_token_id", "pad_token_id"):
            token_id = getattr(params, name)
            if token_id is not None and token_id >= n_tokens:
                raise ParameterError(f"{name} must be below the vocabulary's size of {n_tokens}, got {token_id}")

    def _num_tokens(self, text: str) -> int:
        """Tokens of a text by the model's own tokenizer, special tokens not counted."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        for group in batches(requests, self.batch_size, self._route.shared):
            yield from self._in_own_thread(group)

    def _in_own_thread(self, group: Sequence[Numbered]) -> Iterator[Chunk]:
        """A group's chunks as the owner thread makes them; leaving early cancels the rest of the group."""
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        cancelled = threading.Event()
        future = self._submit(lambda: self._route.run(group, chunks.put, cancelled))
        future.add_done_callback(lambda _: chunks.put(None))
        self._running_groups.add(cancelled)
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            self._raise_failure(future)
        finally:
            cancelled.set()
            future.cancel()

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        try:
            return self._executor.submit(work)
        except RuntimeError as error:
            raise ModelClosed(self.model_name) from error

    def _raise_failure(self, future: Future[None]) -> None:
        if future.cancelled() or self._closed:
            raise ModelClosed(self.model_name)
        error = future.exception()
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise error
        if error is not None:
            raise GenerationError(f"{self.model_name!r} failed while generating: {error}") from error

    # --- GPT tasks, checkpoints, life -------------------------------------------------------------------------------

    def _task_mismatch(self, task: GPTTask) -> str | None:
        if task.quantize_bits != self._options.quantize_bits:
            return (
                f"quantize_bits: the task asks for {task.quantize_bits}, this model has {self._options.quantize_bits}"
            )
        if task.dtype not in ("auto", self._options.dtype, str(self.model.dtype).removeprefix("torch.")):
            return f"dtype: the task asks for {task.dtype}, this model has {self.model.dtype}"
        return super()._task_mismatch(task)

    def _device_memory(self) -> tuple[DeviceMemory, ...]:
        return device_memory()

    def _resource_details(self) -> Mapping[str, str | int | float]:
        return {} if self._loaded is None else {"model memory": self.model.get_memory_footprint()}

    def _save_weights(self, folder: Path) -> None:
        loaded = self._require()
        loaded.model.save_pretrained(folder)
        self._settings.config.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    def _load_weights(self, folder: Path) -> None:
        loaded = load_model(str(folder), self._options)
        self._executor.submit(self._take, loaded).result()
        _collect_garbage()

    def _release(self) -> None:
        for cancelled in list(self._running_groups):
            cancelled.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._loaded = None
        del self._route, self._encoder
        _collect_garbage()


def _collect_garbage() -> None:
    """Give a model's memory back now: modules hold cycles, and CUDA keeps what it once had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
