"""What a GGUF file asks for, and what this machine can give: parameters, window, cells, layers and threads.

Every sampling field of the file is honoured or refused; none is lost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import llama_cpp
import psutil

from llmkit.errors import DeviceUnavailable, ModelInvalid, ParameterError, UnknownDevice
from llmkit.params import GenerationParams
from llmkit.resources import format_bytes
from llmkit_llama_cpp.model import GGUFModel

FREE_MEMORY_SHARE = 0.15
"""The part of the free memory that the window's cells may take by default; reproducible requests take as much again."""

_ROOM_BYTES = 2**30  # for more sequences than one window holds
_WINDOWS = 16  # and no more of them than this
_CELLS_MULTIPLE = 256  # llama.cpp rounds up to it
_SAMPLING = "general.sampling."
_OURS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_REFUSED = ("xtc_probability", "mirostat", "sequence")
_NO_GPU = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a model may hold.

    Attributes:
        window: tokens that a prompt and its new text may have together.
        n_cells: tokens whose keys and values are held, all sequences together.
        cell_bytes: bytes of one of them.
    """

    window: int
    n_cells: int
    cell_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all cells."""
        return self.n_cells * self.cell_bytes


def sizes(model: GGUFModel, n_ctx: int | None, kv_cache_bytes: int | None) -> Sizes:
    """The window and the cells of a model.

    Args:
        model: the model.
        n_ctx: the window; None for the model's own length, as far as memory goes.
        kv_cache_bytes: what the cells may take; None for a window, and room for more where memory allows.

    Raises:
        ParameterError: the window is longer than the model's, or than the cells.
    """
    own, cell_bytes = model.context_length, model.cell_bytes
    if n_ctx is not None and n_ctx > own:
        raise ParameterError(f"n_ctx must be at most the model's own length of {own}, got {n_ctx}")
    affordable = int(psutil.virtual_memory().available * FREE_MEMORY_SHARE) // cell_bytes
    if kv_cache_bytes is None:
        window = n_ctx or max(_CELLS_MULTIPLE, min(own, affordable))
        n_cells = max(window, min(affordable, _WINDOWS * window, _ROOM_BYTES // cell_bytes))
    else:
        n_cells = kv_cache_bytes // cell_bytes
        window = n_ctx or max(1, min(own, n_cells))
        if n_cells < window:
            needed = format_bytes(window * cell_bytes)
            raise ParameterError(
                f"kv_cache_bytes must hold a window of {window} tokens, {needed}, got {kv_cache_bytes}"
            )
    if _length_picks_rope(model):
        n_cells = window
    return Sizes(window, -(-n_cells // _CELLS_MULTIPLE) * _CELLS_MULTIPLE, cell_bytes)


def _length_picks_rope(model: GGUFModel) -> bool:
    """Whether llama.cpp picks rotation factors by the length of the context, which sequences share (long-rope)."""
    scaling = f"{model.architecture}.rope.scaling."
    has_original = f"{scaling}original_context_length" in model.metadata
    return has_original and model.metadata.get(f"{scaling}type", "longrope") == "longrope"


def model_params(model: GGUFModel, name: str) -> GenerationParams:
    """What the file's sampling fields set, and the tokens that end a text.

    Raises:
        ModelInvalid: a field cannot be honoured, or has an impossible value.
    """
    fields = {key.removeprefix(_SAMPLING): text for key, text in model.metadata.items() if key.startswith(_SAMPLING)}
    refused = [field for field in _REFUSED if fields.get(field, "0").strip("0.")]
    if _penalises_a_part(fields):
        refused.append("penalty_last_n")
    if refused:
        raise ModelInvalid(f"{name!r} sets {_SAMPLING}{refused[0]} in its metadata; llmkit cannot honour it")
    values: dict[str, Any] = {ours: _number(fields[theirs]) for theirs, ours in _OURS.items() if theirs in fields}
    # llama.cpp samples unless the temperature says otherwise; the file has no field of its own for that.
    values["do_sample"] = bool(values.keys() - {"repetition_penalty"}) and values.get("temperature") != 0
    values.update(eos_token_id=model.ending_tokens(), pad_token_id=model.special("pad"))
    try:
        return GenerationParams(**values)
    except ParameterError as error:
        raise ModelInvalid(f"{name!r} has an impossible sampling field: {error}") from error


def _penalises_a_part(fields: dict[str, str]) -> bool:
    """Whether repetition is penalised over the last tokens alone; here it is over all of them."""
    is_penalised = float(fields.get("penalty_repeat", "1")) != 1.0
    return is_penalised and fields.get("penalty_last_n", "-1") != "-1"


def _number(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def gpu_layers(device: str | None, n_gpu_layers: int | None) -> int:
    """Layers to hold on the GPU: all of them where there is one, unless somebody says otherwise; -1 is all.

    Raises:
        UnknownDevice: the device is none of `cpu`, `gpu`, `cuda`, `mps` and `auto`.
        DeviceUnavailable: llama.cpp was built without a GPU.
        ParameterError: a bad number of layers, or layers on the GPU of the device `cpu`.
    """
    if device not in (None, "auto", "cpu", "gpu", "cuda", "mps"):
        raise UnknownDevice(f"device must be cpu, gpu, cuda, mps or auto, got {device!r}; llama.cpp spreads by itself")
    if n_gpu_layers is not None and (isinstance(n_gpu_layers, bool) or n_gpu_layers < -1):
        raise ParameterError(f"n_gpu_layers must be an integer >= -1, got {n_gpu_layers!r}")
    if device == "cpu" and n_gpu_layers not in (None, _NO_GPU):
        raise ParameterError(f'n_gpu_layers must be 0 on device "cpu", got {n_gpu_layers}')
    has_gpu = bool(llama_cpp.llama_supports_gpu_offload())
    if not has_gpu and (device in ("gpu", "cuda", "mps") or n_gpu_layers not in (None, _NO_GPU)):
        raise DeviceUnavailable("this llama-cpp-python was built without a GPU; reinstall it with CMAKE_ARGS for one")
    if n_gpu_layers is not None:
        return n_gpu_layers
    return -1 if has_gpu and device != "cpu" else _NO_GPU


def default_threads() -> int:
    """As many threads as this process has physical cores; more of them slow matrix products down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
