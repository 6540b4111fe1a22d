"""LlamaCppLLM: a GGUF model behind llmkit's contract.

It joins the parts: files, the model, encoding, and the routes that generate.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import llama_cpp

from llmkit.backend import BackendLLM
from llmkit.capabilities import ALL_PARAMS, Capabilities
from llmkit.engine.engine import EngineFigures
from llmkit.errors import ModelClosed, ModelInvalid, ParameterError
from llmkit.fingerprint import fingerprint, library_versions
from llmkit.params import GenerationParams
from llmkit.places import MAX_WAITING
from llmkit.registry import EMBEDDED_MODEL
from llmkit.resources import format_bytes
from llmkit.specs import BEAM_ONLY
from llmkit.structured import KINDS, Constraint, Guide, Guides
from llmkit.types import Chunk, Request
from llmkit.wire import GPTTask
from llmkit_llama_cpp.context import N_BATCH
from llmkit_llama_cpp.encoding import PromptEncoder
from llmkit_llama_cpp.files import ModelFiles, find_model
from llmkit_llama_cpp.model import GGUFModel
from llmkit_llama_cpp.routes import EngineInfo, Routes
from llmkit_llama_cpp.settings import default_threads, gpu_layers, model_params, sizes

_WEIGHTS = "model.gguf"


class LlamaCppLLM(BackendLLM):
    """A GGUF model on llama.cpp.

    Args:
        model_name: a GGUF file, or `org/repo:file.gguf` on the hub; nothing for the embedded model.
        n_ctx: tokens of prompt and new text together; the model's own length by default, as far as memory goes.
        n_gpu_layers: layers to hold on the GPU, -1 for all; all of them where llama.cpp was built for one.
        n_threads: threads that compute; as many as there are physical cores by default.
        kv_cache_bytes: what keys and values of all requests and of the prefix cache may take, allocated at once.
        adapter: a GGUF file with a LoRA adapter.
        local_files_only: never download.
        max_waiting: requests that may wait to start; more wait for a place, or are refused, as their `when_full` says.
        params: the parameters of `BaseLLM`, among them `device`: `cpu`, or `gpu` (also `cuda`, `mps`, `auto`).

    Raises:
        ModelError: the model or the adapter cannot be had.
        DeviceUnavailable: llama.cpp was built without a GPU.
        MemoryError: there is no room for the keys and values that were asked for.
    """

    backend_name: ClassVar[str] = "llama_cpp"
    capabilities: Capabilities = Capabilities(
        params=ALL_PARAMS - {"num_beams", *BEAM_ONLY},
        streaming=True,
        batching=True,
        tools=True,
        structured=frozenset(KINDS),
        bounded_queue=True,
        reproducible="alone",
    )

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_gpu_layers: int | None = None,
        n_threads: int | None = None,
        kv_cache_bytes: int | None = None,
        adapter: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        max_waiting: int = MAX_WAITING,
        **params: Any,
    ) -> None:
        _check_positive(n_ctx=n_ctx, n_threads=n_threads, kv_cache_bytes=kv_cache_bytes, max_waiting=max_waiting)
        super().__init__(os.fspath(model_name or EMBEDDED_MODEL), **params)
        self._n_ctx, self._kv_cache_bytes, self._local_files_only = n_ctx, kv_cache_bytes, local_files_only
        self._n_gpu_layers, self._n_threads = n_gpu_layers, n_threads or default_threads()
        self._max_waiting = max_waiting
        self._ends: list[weakref.finalize[..., LlamaCppLLM]] = []
        self._take(find_model(self.model_name, local_files_only=local_files_only), self.device, _adapter_path(adapter))

    # --- the model --------------------------------------------------------------------------------------------------

    def _take(self, files: ModelFiles, device: str | None, adapter: Path | None) -> None:
        """Load these files and make them the model; what is not whole in the end is freed."""
        with ExitStack() as undo:
            model = GGUFModel(files, gpu_layers(device, self._n_gpu_layers))
            undo.callback(model.close)
            its_params = model_params(model, files.name)
            its_sizes = sizes(model, self._n_ctx, self._kv_cache_bytes)
            encoder = PromptEncoder(model)
            routes = Routes(
                model,
                encoder,
                its_sizes,
                n_threads=self._n_threads,
                name=files.name,
                adapter=None if adapter is None else model.adapter(adapter),
                max_waiting=self._max_waiting,
            )
            undo.pop_all()
        self._files, self._sizes, self._its_params, self._adapter = files, its_sizes, its_params, adapter
        self._adapted_since = object()  # another one after every change of adapters
        self._model: GGUFModel | None = model
        self._encoder, self._routes, self._guides = encoder, routes, Guides(model.guide_tokenizer)
        # A model that is dropped without close() ends its threads, too.
        self._ends = [*(end for end in self._ends if end.alive), weakref.finalize(self, routes.close)]
        self._forget_identity("_digests", "fingerprint")

    def _replace(self, files: ModelFiles, device: str | None, adapter: Path | None) -> None:
        """Make another model this object's, and wait until the old one has ended what it was given."""
        with self._rebinding:
            before, end_before = self._routes, self._ends[-1]
            self._take(files, device, adapter)
        before.retire(end_before)

    def _generating(self) -> object:
        return self._routes

    def _rebind(self, model_name: str | None, device: str | None) -> None:
        self._check_open()
        if (model_name, device) == (self.model_name, self.device):
            return
        if model_name == self.model_name:
            # The files of the model that is loaded may be a checkpoint's, not those of its name.
            self._replace(self._files, device, self._adapter)
        else:
            self._replace(find_model(model_name, local_files_only=self._local_files_only), device, None)

    def _require(self) -> GGUFModel:
        if self._model is None:
            raise ModelClosed(self.model_name)
        return self._model

    @property
    def engine_info(self) -> EngineInfo:
        """Which route this model takes, and why."""
        self._require()
        return self._routes.info

    @property
    def metadata(self) -> Mapping[str, str]:
        """The keys and values of the GGUF file, lists left out."""
        return dict(self._require().metadata)

    def _model_params(self) -> GenerationParams:
        return self._its_params

    @property
    def context_length(self) -> int:
        """Tokens that prompt and new text may have together."""
        self._require()
        return self._sizes.window

    # --- adapters ---------------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> str | None:
        """The file of the LoRA adapter in use."""
        return None if self._adapter is None else str(self._adapter)

    def _adapted_by(self) -> object:
        return self._adapted_since

    def set_adapter(self, adapter: str | os.PathLike[str] | None) -> None:
        """Generate with this LoRA adapter from now on, or without one; the model's weights stay as they are loaded.

        Waits for what runs; requests that come meanwhile wait for the change. Cached prefixes are dropped.

        Raises:
            ModelInvalid: not an adapter for this model; nothing was changed.
            ModelClosed: the model was closed.
        """
        self._check_open()
        path = _adapter_path(adapter)
        if path != self._adapter:
            self._routes.use_adapter(None if path is None else self._require().adapter(path))
            self._adapter, self._adapted_since = path, object()
            self._forget_identity("fingerprint")

    # --- identity ---------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the bits depend on: weights, adapter, sizes, threads, libraries and processor."""
        self._require()
        return fingerprint(
            {
                "route": "alone",
                "weights": self._digests,
                "adapter": None if self._adapter is None else _digest(self._adapter),
                "sizes": [self._sizes.window, N_BATCH],
                "gpu_layers": gpu_layers(self.device, self._n_gpu_layers),
                "threads": self._n_threads,
                "system": llama_cpp.llama_print_system_info().decode(),
                "libraries": library_versions("llama_cpp_python", "numpy"),
            }
        )

    @cached_property
    def _digests(self) -> list[str]:
        """SHA-256 of the model's files; a second for two gigabytes."""
        return [_digest(part) for part in self._files.parts]

    def _forget_identity(self, *names: str) -> None:
        for name in names:
            vars(self).pop(name, None)

    # --- generating -------------------------------------------------------------------------------------------------

    def _encode(self, request: Request) -> Sequence[int]:
        model, bos = self._require(), request.params.bos_token_id
        if bos is not None and bos >= model.n_vocabulary:
            raise ParameterError(f"bos_token_id must be below the vocabulary's size of {model.n_vocabulary}, got {bos}")
        return self._encoder.encode(request)

    def _compile(self, constraint: Constraint) -> Guide:
        return self._guides.get(constraint)

    def _num_tokens(self, text: str) -> int:
        """Tokens of a text by the model's own vocabulary, special tokens not counted."""
        return len(self._require().tokenize(text, add_special=False))

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        return self._routes.chunks(requests)

    def _agenerate(self, requests: Sequence[Request]) -> AsyncIterator[Chunk]:
        return self._routes.achunks(requests)

    # --- GPT tasks, checkpoints, life -------------------------------------------------------------------------------

    def _task_mismatch(self, task: GPTTask) -> str | None:
        if self.adapter is not None:
            return f"adapter: the task asks for a model without one, this one generates with {self.adapter!r}"
        if task.quantize_bits is not None or task.dtype != "auto":
            return "dtype, quantize_bits: a GGUF file has the precision that it was written with"
        return super()._task_mismatch(task)

    def _resource_details(self) -> Mapping[str, str | int | float]:
        if self._model is None:
            return {}
        details: dict[str, str | int | float] = {"model memory": format_bytes(self._model.n_bytes)}
        return details

    def _engine_figures(self) -> EngineFigures | None:
        return None if self._model is None else self._routes.figures

    def _save_weights(self, folder: Path) -> None:
        self._require()
        names = [_WEIGHTS] if len(self._files.parts) == 1 else [part.name for part in self._files.parts]
        for part, name in zip(self._files.parts, names, strict=True):
            shutil.copyfile(part, folder / name)

    def _load_weights(self, folder: Path) -> None:
        first = min(folder.glob("*.gguf"), default=folder / _WEIGHTS)
        self._replace(find_model(str(first)), self.device, None)

    def _release(self) -> None:
        for end in self._ends:
            end()
        self._model = None


def _adapter_path(adapter: str | os.PathLike[str] | None) -> Path | None:
    """Where an adapter is.

    Raises:
        ModelInvalid: there is no such file.
    """
    if adapter is None:
        return None
    path = Path(adapter).expanduser().resolve()
    if not path.is_file():
        raise ModelInvalid(f"there is no adapter at {str(path)!r}")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"{name} must be an integer >= 1, got {number!r}")
