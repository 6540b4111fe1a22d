"""LoRA adapters of one model: their files, and their layers in the places of those that they wrap.

peft makes the layers; the model's own are never changed. Who runs the model meanwhile is not known here: `routes.py`
lets nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.errors import ExtraUnavailable, ModelInvalid
from llmkit_transformers.loading import import_bitsandbytes
from llmkit_transformers.quantized import states_left_alone

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_NAME = "default"
_PREFIX = "base_model.model."
"""What peft puts before a layer's name in its files."""

_LEAVES_THE_MODEL_AS_IT_IS: Mapping[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None,),
}
"""Settings of peft with which an adapter could not be taken away again, or which only some tokens switch on, and the
values that they may have."""


def adapter_path(adapter: str | os.PathLike[str] | None) -> Path | None:
    """Where an adapter is.

    Raises:
        ModelInvalid: there is no such folder.
    """
    if adapter is None:
        return None
    path = Path(adapter).expanduser().resolve()
    if not path.exists():
        raise ModelInvalid(f"there is no adapter at {str(path)!r}")
    if not path.is_dir():
        raise ModelInvalid(f"an adapter is a folder with {_CONFIG} and {_WEIGHTS}, {str(path)!r} is a file")
    return path


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFiles:
    """What an adapter's files hold, all of it read. Each is equal to itself alone.

    Attributes:
        path: its folder.
        config: peft's `LoraConfig`.
        tensors: by the names in the file.
        digest: SHA-256 of both files.
    """

    path: Path
    config: Any
    tensors: Mapping[str, Tensor]
    digest: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one layer stands instead of another."""

    parent: nn.Module
    name: str
    own: nn.Module
    adapted: nn.Module


class Adapters:
    """The adapters of one model, of which one at most is in its place. Each is read once and kept.

    Args:
        model: the model.
        name: the model's, for messages.
        known: an adapter that was read already.

    Attributes:
        active: the adapter in its place.
        since: another object after every change.
    """

    def __init__(self, model: PreTrainedModel, name: str, known: AdapterFiles | None = None) -> None:
        self._model, self._name = model, name
        self._reading, self._changing = Lock(), Lock()
        self._read = {} if known is None else {known.path: known}
        self._places: dict[AdapterFiles, list[_Place]] = {}
        self._own_weights: Mapping[str, Tensor] | None = None
        self.active: AdapterFiles | None = None
        self.since = object()

    def read(self, path: Path) -> AdapterFiles:
        """`read_adapter`, once for each path."""
        with self._reading:
            if path not in self._read:
                self._read[path] = read_adapter(path)
            return self._read[path]

    def own_weights(self) -> Mapping[str, Tensor]:
        """The state of a model that is not quantised, without any adapter, whichever is in its place."""
        with self._changing:
            return self._model.state_dict() if self._own_weights is None else self._own_weights

    @contextmanager
    def changed_to(self, files: AdapterFiles | None) -> Generator[None]:
        """Put an adapter in its place, or none; should the body fail, the one before is back. Nobody may run the model.

        Raises:
            ModelInvalid: it does not fit the model.
        """
        before = self.active
        try:
            self._change(files)
            yield
        except BaseException:
            self._change(before)
            if files is not None and files is not before:
                self._places.pop(files, None)
                self._read.pop(files.path, None)  # it may be repaired before it is next asked for
            raise

    @contextmanager
    def taken_away(self) -> Generator[None]:
        """The model without any adapter meanwhile. Nobody may run it."""
        before = self.active
        self._change(None)
        try:
            yield
        finally:
            self._change(before)

    def _change(self, files: AdapterFiles | None) -> None:
        with self._changing:
            self.since = object()
            if self.active is not None:
                for place in self._places[self.active]:
                    setattr(place.parent, place.name, place.own)
                self.active = None
            if files is not None:
                if files not in self._places:
                    self._places[files] = self._made(files)
                for place in self._places[files]:
                    setattr(place.parent, place.name, place.adapted)
                self.active = files

    def _made(self, files: AdapterFiles) -> list[_Place]:
        """Let peft wrap the model's layers, and take the wrapped ones out again."""
        if self._own_weights is None and not getattr(self._model, "is_quantized", False):
            self._own_weights = self._model.state_dict()
        children = [
            (parent, name, own) for parent in list(self._model.modules()) for name, own in parent.named_children()
        ]
        try:
            _inject(self._model, files)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            # What an adapter that was made for another model breaks is up to peft and the layers.
            if isinstance(error, (ModelInvalid, torch.OutOfMemoryError)):
                raise
            raise ModelInvalid(f"{str(files.path)!r} is no LoRA adapter for {self._name!r}: {error}") from error
        finally:
            found = [_Place(parent, name, own, getattr(parent, name)) for parent, name, own in children]
            places = [place for place in found if place.adapted is not place.own]
            for place in places:
                setattr(place.parent, place.name, place.own)
            # With this, peft would take the next adapter for a second one on top.
            vars(self._model).pop("peft_config", None)
        return places


def _inject(model: PreTrainedModel, files: AdapterFiles) -> None:
    """Wrap the layers that an adapter is for, in place.

    Raises:
        ModelInvalid: the adapter lacks tensors, or has some that belong nowhere, or is one that peft cannot run here.
    """
    if files.config.use_dora and any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        # peft unpacks the weights in each step, and 8-bit layers lose their scales by that.
        raise ModelInvalid(
            f"{str(files.path)!r} is a DoRA adapter, which peft cannot run on 8-bit layers; "
            "load the model with quantize_bits=4, or without"
        )
    functional: Any = import_module("peft.functional")
    offloaded = _meta_names(model)
    # On the meta device, since peft's initial values would draw from torch's global generator.
    functional.inject_adapter_in_model(deepcopy(files.config), model, adapter_name=_NAME, low_cpu_mem_usage=True)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in files.tensors.items()}
    with states_left_alone(model):  # peft reads them all, for their names
        result = functional.set_peft_model_state_dict(model, tensors, adapter_name=_NAME, low_cpu_mem_usage=True)
    if result.unexpected_keys:
        raise ModelInvalid(
            f"{str(files.path)!r} is no LoRA adapter for this model, which has no layer for "
            f"{len(result.unexpected_keys)} of its tensors, among them {min(result.unexpected_keys)!r}"
        )
    empty = sorted(name for name in _meta_names(model) if name.replace(".base_layer.", ".") not in offloaded)
    if empty:
        raise ModelInvalid(f"{str(files.path)!r} lacks {len(empty)} of its tensors, among them {empty[0]!r}")
    functional.cast_adapter_dtype(model, _NAME)
    model.eval()


def _meta_names(model: PreTrainedModel) -> set[str]:
    """The parameters that are without values here: not filled yet, or brought here layer by layer."""
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def read_adapter(path: Path) -> AdapterFiles:
    """Read and check an adapter's files.

    Raises:
        ModelInvalid: not the files of a LoRA adapter, or of one that cannot be taken away again.
        ExtraUnavailable: peft is not installed.
    """
    peft = _peft()
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            reason = f"; {_PICKLE} is not read, because reading it could run code" if (path / _PICKLE).exists() else ""
            raise ModelInvalid(f"{str(path)!r} is no LoRA adapter: it has no {name}{reason}")
    try:
        config_bytes, weight_bytes = (path / _CONFIG).read_bytes(), (path / _WEIGHTS).read_bytes()
        settings: Any = json.loads(config_bytes)
        config = _config(path, settings, peft)
        tensors = safetensors.torch.load(weight_bytes)
    except SafetensorError as error:
        raise ModelInvalid(f"{str(path)!r} has a damaged {_WEIGHTS}: {error}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelInvalid(f"the adapter in {str(path)!r} cannot be read: {error}") from error
    digest = hashlib.sha256(hashlib.sha256(config_bytes).digest() + hashlib.sha256(weight_bytes).digest())
    return AdapterFiles(path, config, tensors, digest.hexdigest())


def _config(path: Path, settings: object, peft: ModuleType) -> Any:
    """What the file says, as peft's config.

    Raises:
        ModelInvalid: not one of LoRA, or with settings that cannot be honoured.
    """
    kind = cast("dict[str, Any]", settings).get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ModelInvalid(
            f"{str(path)!r} is no LoRA adapter: its {_CONFIG} must say peft_type 'LORA', it says {kind!r}"
        )
    values = cast("dict[str, Any]", settings)
    unknown = sorted(set(values) - {field.name for field in fields(peft.LoraConfig)} - {"peft_type"})
    if unknown:
        raise ModelInvalid(
            f"the adapter in {str(path)!r} sets {unknown[0]!r}, which this peft {peft.__version__} lacks"
        )
    for name, allowed in _LEAVES_THE_MODEL_AS_IT_IS.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ModelInvalid(
                f"the adapter in {str(path)!r} sets {name} to {values[name]!r}, which llmkit cannot honour"
            )
    try:
        config = peft.LoraConfig(**{name: value for name, value in values.items() if name != "peft_type"})
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ModelInvalid(f"the {_CONFIG} in {str(path)!r} is none of LoRA: {error}") from error
    config.inference_mode, config.init_lora_weights = True, False
    return config


def _peft() -> ModuleType:
    """The peft package, imported at the first adapter.

    Raises:
        ExtraUnavailable: it is not installed.
    """
    if find_spec("bitsandbytes") is not None:
        import_bitsandbytes()  # peft imports it, whatever the model
    try:
        import peft
    except ImportError as error:
        raise ExtraUnavailable("a LoRA adapter", "peft", "lora") from error
    return peft
