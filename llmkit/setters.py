"""The setters of the BaseLLM contract, written out so that editors, docs and grep find them.

Each sets the attribute of the same name, which checks the value; a bad one raises and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

from llmkit.errors import MisspeltAttribute
from llmkit.params import Param
from llmkit.specs import meant_by


def _is_declared(owner: type, name: str) -> bool:
    """Whether a class or a base of it has the name, if only as an annotation."""
    return hasattr(owner, name) or any(name in vars(base).get("__annotations__", ()) for base in owner.__mro__)


class ParameterSetters:
    """Sixteen setters over the attributes that the inheriting class has."""

    _model_name: str | None
    _device: str | None
    _rebinding: threading.RLock
    temperature = Param[float | None]()
    max_tokens = Param[int | None]()
    max_length = Param[int | None]()
    frequency_penalty = Param[float | None]()
    presence_penalty = Param[float | None]()
    stop_token = Param[str | Sequence[str] | None]()
    length_penalty = Param[float | None]()
    role = Param[str | None]()
    top_k = Param[int | None]()
    top_p = Param[float | None]()
    num_beams = Param[int | None]()
    do_sample = Param[bool | None]()
    early_stopping = Param[bool | Literal["never"] | None]()
    seed = Param[int | None]()

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; a new name that is a parameter's but for a slip is refused.

        Raises:
            MisspeltAttribute: such a name, which the class does not declare.
        """
        if not (name in vars(self) or name.startswith("_") or _is_declared(type(self), name)):
            meant = meant_by(name)
            if meant is not None:
                raise MisspeltAttribute(type(self).__name__, name, meant)
        super().__setattr__(name, value)

    @property
    def model_name(self) -> str | None:
        """The model's name; setting it on a loaded model replaces the model."""
        return self._model_name

    @model_name.setter
    def model_name(self, value: str | None) -> None:
        with self._rebinding:
            self._rebind(value, self._device)
            self._model_name = value

    @property
    def device(self) -> str | None:
        """Where the model runs; setting it on a loaded model moves the model."""
        return self._device

    @device.setter
    def device(self, value: str | None) -> None:
        with self._rebinding:
            self._rebind(self._model_name, value)
            self._device = value

    def _rebind(self, model_name: str | None, device: str | None) -> None:
        """Load or move the model before the attributes change; an error leaves both as they were."""

    def set_temperature(self, value: float | None) -> None:
        """Set `temperature`."""
        self.temperature = value

    def set_max_tokens(self, value: int | None) -> None:
        """Set `max_tokens`."""
        self.max_tokens = value

    def set_max_length(self, max_length: int | None) -> None:
        """Set `max_length`."""
        self.max_length = max_length

    def set_model_name(self, model_name: str | None) -> None:
        """Set `model_name`; a loaded model is replaced by the new one."""
        self.model_name = model_name

    def set_frequency_penalty(self, frequency_penalty: float | None) -> None:
        """Set `frequency_penalty`."""
        self.frequency_penalty = frequency_penalty

    def set_presence_penalty(self, presence_penalty: float | None) -> None:
        """Set `presence_penalty`."""
        self.presence_penalty = presence_penalty

    def set_stop_token(self, stop_token: str | Sequence[str] | None) -> None:
        """Set `stop_token`."""
        self.stop_token = stop_token

    def set_length_penalty(self, length_penalty: float | None) -> None:
        """Set `length_penalty`."""
        self.length_penalty = length_penalty

    def set_role(self, role: str | None) -> None:
        """Set `role`."""
        self.role = role

    def set_top_k(self, top_k: int | None) -> None:
        """Set `top_k`."""
        self.top_k = top_k

    def set_top_p(self, top_p: float | None) -> None:
        """Set `top_p`."""
        self.top_p = top_p

    def set_num_beams(self, num_beams: int | None) -> None:
        """Set `num_beams`."""
        self.num_beams = num_beams

    def set_do_sample(self, do_sample: bool | None) -> None:
        """Set `do_sample`."""
        self.do_sample = do_sample

    def set_early_stopping(self, early_stopping: bool | Literal["never"] | None) -> None:
        """Set `early_stopping`."""
        self.early_stopping = early_stopping

    def set_seed(self, seed: int | None) -> None:
        """Set `seed`."""
        self.seed = seed

    def set_device(self, device: str | None) -> None:
        """Set `device`; a loaded model is moved there."""
        self.device = device
