"""TransformersLLM: a Hugging Face model behind llmkit's contract.

It joins the parts: loading, encoding, and the routes that generate.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.backend import BackendLLM
from llmkit.capabilities import ALL_PARAMS, Capabilities
from llmkit.engine.engine import EngineFigures
from llmkit.errors import ContextLengthExceeded, ModelClosed, ParameterError, UnsupportedFeature
from llmkit.fingerprint import fingerprint, library_versions
from llmkit.params import GenerationParams
from llmkit.places import MAX_WAITING
from llmkit.registry import EMBEDDED_MODEL
from llmkit.resources import DeviceMemory, format_bytes
from llmkit.structured import KINDS, Constraint, Guide, Guides
from llmkit.tools import Answer
from llmkit.types import Choice, Chunk, Request
from llmkit.wire import GPTTask
from llmkit_transformers.adapters import AdapterFiles, Adapters, adapter_path, read_adapter
from llmkit_transformers.answers import answer_of
from llmkit_transformers.devices import device_memory
from llmkit_transformers.encoding import PromptEncoder
from llmkit_transformers.identity import folder_digest, kernel_choices, weights_digest
from llmkit_transformers.loading import Dtype, LoadedModel, LoadOptions, load_model
from llmkit_transformers.masks import guide_tokenizer
from llmkit_transformers.packed import packed_bytes
from llmkit_transformers.routes import EngineInfo, RouteOptions, Routes
from llmkit_transformers.settings import ModelSettings, vocabulary_size, window
from llmkit_transformers.tokenizer import load_tokenizer


class TransformersLLM(BackendLLM):
    """A model of Hugging Face transformers.

    Args:
        model_name: a folder, a hub id, or `id@revision`; nothing for the embedded model.
        dtype: `float16`, `bfloat16`, `float32`, or `auto` for what the model's config says.
        quantize_bits: 4 or 8, through bitsandbytes.
        local_files_only: never download.
        trust_remote_code: run code that the model's repository brings.
        adapter: a folder with a LoRA adapter, as peft saves it.
        engine: use the engine, where a dry run shows that the model can; otherwise `model.generate`.
        kv_cache_bytes: memory that the engine's keys and values may take; 30 % of what is free by default.
        batch_size: sequences that run at once; by default 64 on the engine, 16 through `model.generate`.
        max_waiting: requests that may wait to start; more wait for a place, or are refused, as their `when_full` says.
        params: the parameters of `BaseLLM`, among them `device`: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for
            accelerate's device map; without one, the first GPU or the processor.

    Raises:
        ModelError: the model or the adapter cannot be had.
        ExtraUnavailable: an adapter is asked for, and peft is not installed.
        DeviceUnavailable: this machine does not have the device.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
    """

    backend_name: ClassVar[str] = "transformers"
    capabilities: Capabilities = Capabilities(
        params=ALL_PARAMS,
        streaming=True,
        batching=True,
        tools=True,
        structured=frozenset(KINDS),
        bounded_queue=True,
        reproducible="batched",
    )

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        dtype: Dtype = "auto",
        quantize_bits: int | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        adapter: str | os.PathLike[str] | None = None,
        engine: bool = True,
        kv_cache_bytes: int | None = None,
        batch_size: int | None = None,
        max_waiting: int = MAX_WAITING,
        **params: Any,
    ) -> None:
        _check_positive(batch_size=batch_size, kv_cache_bytes=kv_cache_bytes, max_waiting=max_waiting)
        _check_flags(engine=engine, local_files_only=local_files_only, trust_remote_code=trust_remote_code)
        if kv_cache_bytes is not None and not engine:
            raise ParameterError(f"kv_cache_bytes is the engine's budget, got {kv_cache_bytes} with engine=False")
        super().__init__(os.fspath(model_name or EMBEDDED_MODEL), **params)
        self._options = LoadOptions(dtype, quantize_bits, self.device, local_files_only, trust_remote_code)
        self._route_options = RouteOptions(engine, kv_cache_bytes, batch_size, torch.get_num_threads(), max_waiting)
        self._ends: list[weakref.finalize[..., TransformersLLM]] = []
        path = adapter_path(adapter)
        files = None if path is None else read_adapter(path)
        self._take(load_model(self.model_name, self._options), files)

    # --- the model --------------------------------------------------------------------------------------------------

    def _take(self, loaded: LoadedModel, adapter: AdapterFiles | None) -> None:
        """Make this the model; what is not whole in the end is closed."""
        settings, encoder = ModelSettings.taken_from(loaded), PromptEncoder(loaded.tokenizer)
        # 4-bit layers repack their weights, with loss, when they first run: read them before.
        quantized_digest = weights_digest(loaded.model.state_dict()) if loaded.options.quantize_bits else None
        adapters = Adapters(loaded.model, loaded.files.name, adapter)
        with ExitStack() as undo:
            routes = Routes(loaded, settings, encoder.decoder(), self._route_options, adapters)
            undo.callback(routes.close)
            if adapter is not None:
                routes.use_adapter(adapter)
            undo.pop_all()
        self._settings, self._encoder, self._routes, self._adapters = settings, encoder, routes, adapters
        self._loaded: LoadedModel | None = loaded
        self._quantized_digest = quantized_digest
        self._guides = Guides(lambda: guide_tokenizer(loaded.tokenizer, vocabulary_size(loaded)))
        claim = "batched" if self._routes.has_engine else "alone"
        self.capabilities = replace(type(self).capabilities, reproducible=claim)
        # A model that is dropped without close() ends its threads, too.
        self._ends = [*(end for end in self._ends if end.alive), weakref.finalize(self, self._routes.close)]
        vars(self).pop("_identity", None)

    def _replace(self, loaded: LoadedModel, adapter: AdapterFiles | None = None) -> None:
        """Make another model this object's, and wait until the old one has ended what it was given."""
        with self._rebinding:
            before, end_before = self._routes, self._ends[-1]
            self._take(loaded, adapter)
        before.retire(end_before)
        _collect_garbage()

    def _generating(self) -> object:
        return self._routes

    @property
    def engine_info(self) -> EngineInfo:
        """Which route this model takes, and why."""
        self._require()
        return self._routes.info

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self._require().model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._require().tokenizer

    load_tokenizer = staticmethod(load_tokenizer)

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
        # The files of the model that is loaded may be a checkpoint's, not those of its name.
        stays = model_name == self.model_name
        source = str(self._require().files.folder) if stays else model_name
        # An adapter was made for one model: another begins without.
        self._replace(load_model(source, options), self._adapters.active if stays else None)
        self._options = options

    def _model_params(self) -> GenerationParams:
        return self._settings.params

    @property
    def context_length(self) -> int | None:
        """Positions that the model has; None where its config names no limit, or prompt and text have one each."""
        config = self.model.config.get_text_config()
        return None if config.is_encoder_decoder else window(config)

    # --- adapters ---------------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> str | None:
        """The folder of the LoRA adapter in use."""
        self._require()
        active = self._adapters.active
        return None if active is None else str(active.path)

    def _adapted_by(self) -> object:
        return self._adapters.since

    def set_adapter(self, adapter: str | os.PathLike[str] | None) -> None:
        """Generate with this LoRA adapter from now on, or without one; the model's weights stay as they are loaded.

        Waits for what runs; requests that come meanwhile wait for the change. Cached prefixes are dropped. An adapter's
        files are read when it is first used, and kept for when it is used again.

        Raises:
            ModelInvalid: not an adapter for this model; nothing was changed.
            ExtraUnavailable: peft is not installed.
            ModelClosed: the model was closed.
        """
        self._check_open()
        path = adapter_path(adapter)
        files = None if path is None else self._adapters.read(path)
        if files is not self._adapters.active:
            self._routes.use_adapter(files)

    # --- identity ---------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """What the bits depend on: weights, adapter, tokenizer, route, precision, device, libraries and processor."""
        self._require()
        try:
            return self._fingerprint_now()
        except AttributeError:
            self._require()  # closed meanwhile, by another thread
            raise

    def _fingerprint_now(self) -> str:
        claim, adapter = self._routes.info.reproducible, self._adapters.active
        return fingerprint(
            {
                **self._identity,
                "adapter": None if adapter is None else [adapter.digest, library_versions("peft")],
                "route": [self._routes.info.route, claim],
                # Steps that are proved independent of their neighbours are so of the number of threads, too.
                "threads": self._route_options.n_threads if claim == "alone" else None,
                "kernels": kernel_choices(self.model.device),
            }
        )

    @cached_property
    def _identity(self) -> Mapping[str, object]:
        """What of the fingerprint stays while this model does; all weights are read once."""
        loaded = self._require()
        return {
            "weights": self._quantized_digest or weights_digest(self._adapters.own_weights()),
            "config": loaded.model.config.to_json_string(),
            "generation_config": self._settings.unnamed,
            "tokenizer": folder_digest(loaded.files.folder, "token*", "*.jinja", "vocab*", "merges*", "spiece*"),
            "dtype": str(loaded.model.dtype),
            "quantize_bits": loaded.options.quantize_bits,
            "libraries": library_versions("torch", "transformers", "tokenizers", "bitsandbytes", "llguidance"),
        }

    # --- generating -------------------------------------------------------------------------------------------------

    def _encode(self, request: Request) -> Sequence[int]:
        self._check_token_ids(request.params)
        if request.guide is not None and request.params.uses_beams:
            raise UnsupportedFeature("structured output and beam search exclude each other; leave num_beams out")
        ids = self._encoder.encode(request)
        positions = window(self.model.config) if self._routes.generate.is_encoder_decoder else None
        if positions is not None and len(ids) > positions:
            raise ContextLengthExceeded(len(ids), request.params.max_tokens, positions)
        return ids

    def _compile(self, constraint: Constraint) -> Guide:
        return self._guides.get(constraint)

    def _read_answer(self, request: Request, choice: Choice) -> Answer:
        return answer_of(choice, request, self.tokenizer)

    def _check_token_ids(self, params: GenerationParams) -> None:
        """Refuse what would be looked up beyond the embeddings, which on a GPU ends the process."""
        n_tokens = vocabulary_size(self._require())
        for name in ("bos_token_id", "pad_token_id"):
            token_id = getattr(params, name)
            if token_id is not None and token_id >= n_tokens:
                raise ParameterError(f"{name} must be below the vocabulary's size of {n_tokens}, got {token_id}")
        # The model's own may be beyond it: a tokenizer can have more tokens than the model has embeddings.
        for token_id in set(params.eos_token_ids) - set(self._settings.params.eos_token_ids):
            if token_id >= n_tokens:
                raise ParameterError(f"eos_token_id must be below the vocabulary's size of {n_tokens}, got {token_id}")

    def _num_tokens(self, text: str) -> int:
        """Tokens of a text by the model's own tokenizer, special tokens not counted."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        return self._routes.chunks(requests)

    def _agenerate(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        return self._routes.achunks(requests)

    # --- GPT tasks, checkpoints, life -------------------------------------------------------------------------------

    def _task_mismatch(self, task: GPTTask) -> str | None:
        if self.adapter is not None:
            return f"adapter: the task asks for a model without one, this one generates with {self.adapter!r}"
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
        if self._loaded is None:
            return {}
        details: dict[str, str | int | float] = {"model memory": format_bytes(self.model.get_memory_footprint())}
        if packed_bytes(self.model):
            details["packed weights"] = format_bytes(packed_bytes(self.model))
        return details

    def _engine_figures(self) -> EngineFigures | None:
        return None if self._loaded is None else self._routes.figures

    def _save_weights(self, folder: Path) -> None:
        loaded = self._require()
        self._routes.without_adapter(partial(loaded.model.save_pretrained, folder))
        self._settings.config.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    def _load_weights(self, folder: Path) -> None:
        self._replace(load_model(str(folder), self._options))

    def _release(self) -> None:
        for end in self._ends:
            end()
        self._loaded = None
        del self._routes, self._encoder, self._guides, self._adapters
        _collect_garbage()


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"{name} must be an integer >= 1, got {number!r}")


def _check_flags(**flags: bool) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"{name} must be True or False, got {flag!r}")


def _collect_garbage() -> None:
    """Give a model's memory back now: modules hold cycles, and CUDA keeps what it once had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
