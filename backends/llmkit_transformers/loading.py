"""From files to a model in memory: class, dtype, quantisation and device.

It maps transformers' loading errors and knows nothing of generation.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import base as quantizers
from transformers.utils import logging as transformers_logging

from llmkit.errors import BackendUnavailable, ModelInvalid, ParameterError
from llmkit_transformers.devices import resolve_device
from llmkit_transformers.hub import ModelFiles, find_model

Dtype = Literal["auto", "float16", "bfloat16", "float32"]
_DTYPES = ("auto", "float16", "bfloat16", "float32")
_global_state = threading.Lock()


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; checked before any file is touched.

    Raises:
        ParameterError: an unknown dtype or number of bits.
        UnknownDevice: the device's name means nothing.
        DeviceUnavailable: this machine does not have the device.
        BackendUnavailable: bitsandbytes is needed and missing.
    """

    dtype: Dtype = "auto"
    quantize_bits: int | None = None
    device: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ParameterError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if self.quantize_bits not in (None, 4, 8):
            raise ParameterError(f"quantize_bits must be 4, 8 or None, got {self.quantize_bits!r}")
        if self.quantize_bits and find_spec("bitsandbytes") is None:
            raise BackendUnavailable("transformers", "bitsandbytes", "pip install bitsandbytes")
        resolve_device(self.device)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready, with its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: ModelFiles
    options: LoadOptions


def load_model(name: str | None, options: LoadOptions) -> LoadedModel:
    """Load a model and its tokenizer.

    Raises:
        ModelError: the files cannot be had, or are not those of a language model.
    """
    found = find_model(name, local_files_only=options.local_files_only)
    with _global_state, _loading_errors(found), _quiet_loading():
        if options.quantize_bits:
            import_bitsandbytes()
        config = cast("Any", AutoConfig).from_pretrained(found.folder, trust_remote_code=options.trust_remote_code)
        tokenizer = cast("Any", AutoTokenizer).from_pretrained(
            found.folder, trust_remote_code=options.trust_remote_code
        )
        if (found.folder / "generation_config.json").exists():
            # transformers passes over a damaged one in silence, and with it over the model's EOS tokens.
            GenerationConfig.from_pretrained(found.folder)
        model = _load_weights(found, config, options)
    return LoadedModel(model.eval(), tokenizer, found, options)


def _load_weights(found: ModelFiles, config: Any, options: LoadOptions) -> PreTrainedModel:
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    device = resolve_device(options.device)
    model, info = auto.from_pretrained(
        found.folder,
        config=config,
        dtype=_dtype(options),
        quantization_config=_quantization(options, auto, config),
        device_map=device if device != "cpu" or options.quantize_bits else None,
        use_safetensors=True,
        trust_remote_code=options.trust_remote_code,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelInvalid(f"{found.name!r} lacks {len(missing)} weights, among them {missing[0]!r}")
    if options.quantize_bits == 8:
        _feed_float16(model)
    return model


def _dtype(options: LoadOptions) -> str | torch.dtype:
    """8-bit kernels compute in float16, so `auto` takes that for the rest of the model too."""
    if options.dtype == "auto":
        return torch.float16 if options.quantize_bits == 8 else "auto"
    return getattr(torch, options.dtype)


def _quantization(options: LoadOptions, auto: Any, config: Any) -> BitsAndBytesConfig | None:
    if options.quantize_bits == 4:
        skipped = _not_for_4bit(auto, config, options) if resolve_device(options.device) == "cpu" else None
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(load_in_8bit=True) if options.quantize_bits == 8 else None


def _not_for_4bit(auto: Any, config: Any, options: LoadOptions) -> list[str] | None:
    """The layers that stay as they are, if any has a shape for which bitsandbytes' kernels for processors are not made.

    They take inputs in blocks of 64 and outputs in blocks of 32; otherwise they fail, or compute something else.
    """
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=options.trust_remote_code)
    odd = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and (layer.in_features % 64 or layer.out_features % 32)
    ]
    return [*cast("Any", quantizers).get_keys_to_not_convert(model), *odd] if odd else None


def _feed_float16(model: PreTrainedModel) -> None:
    """Cast what enters and leaves 8-bit layers, as the layer would, but without its warning at every call."""
    from bitsandbytes.nn.modules import Linear8bitLt

    def cast_in(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(torch.float16) for tensor in inputs)

    def cast_out(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(model.dtype)

    if model.dtype == torch.float16:
        return
    for layer in model.modules():
        if isinstance(layer, Linear8bitLt):
            layer.register_forward_pre_hook(cast_in)
            layer.register_forward_hook(cast_out)


@contextlib.contextmanager
def _loading_errors(found: ModelFiles) -> Generator[None]:
    """Transformers' and safetensors' loading errors as ours."""
    try:
        yield
    except SafetensorError as error:
        raise ModelInvalid(f"{found.name!r} has a damaged safetensors file in {found.folder}: {error}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        # What a config with impossible numbers breaks is up to each model's code.
        if isinstance(error, (ModelInvalid, torch.OutOfMemoryError)):
            raise
        raise ModelInvalid(f"{found.name!r} in {found.folder} cannot be loaded: {error}") from error


@contextlib.contextmanager
def _quiet_loading() -> Generator[None]:
    """No progress bars of transformers meanwhile; the setting is global, so loads take turns."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def import_bitsandbytes() -> None:
    """Import bitsandbytes without the `kernels` package, through which it would ask the hub for native kernels."""
    if "bitsandbytes" in sys.modules:
        return
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import_module("bitsandbytes")
    finally:
        logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
