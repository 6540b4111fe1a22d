"""Devices by name: what this machine has, and what a name means on it. It loads nothing."""

from __future__ import annotations

import re

import torch

from llmkit.errors import DeviceUnavailable, UnknownDevice
from llmkit.resources import DeviceMemory

_NAME = re.compile(r"(cpu|cuda|mps)(?::(\d+))?|auto")


def present_devices() -> list[str]:
    """Names of the devices that this machine has, the processor first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *cuda, *mps]


def resolve_device(name: str | None) -> str:
    """The device to load to; without a name the first GPU, or the processor. `auto` stays: accelerate decides.

    Raises:
        UnknownDevice: the name means no device.
        DeviceUnavailable: this machine does not have it.
    """
    present = present_devices()
    if name is None:
        return next((device for device in present if device != "cpu"), "cpu")
    match = _NAME.fullmatch(name) if isinstance(name, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if match is None:
        raise UnknownDevice(f"device must be cpu, cuda, cuda:N, mps or auto, got {name!r}")
    if name == "auto" or match.group(1) == "cpu":
        return "cpu" if name != "auto" else name
    wanted = f"cuda:{match.group(2) or 0}" if match.group(1) == "cuda" else "mps"
    if wanted not in present:
        raise DeviceUnavailable(f"device {name!r} is not available; this machine has: {', '.join(present)}, auto")
    return wanted


def device_memory() -> tuple[DeviceMemory, ...]:
    """Used and total bytes of every CUDA device."""
    if not torch.cuda.is_available():
        return ()
    free_and_total = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return tuple(
        DeviceMemory(f"cuda:{index} {torch.cuda.get_device_name(index)}", total - free, total)
        for index, (free, total) in enumerate(free_and_total)
    )
