from __future__ import annotations

from typing import Any

import pytest
import torch

from llmkit.errors import DeviceUnavailable, UnknownDevice
from llmkit_transformers import TransformersLLM
from llmkit_transformers.devices import device_memory, present_devices, resolve_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "CPU", "", "cpu cuda", 0])
def test_a_string_that_names_no_device_is_refused(name: Any) -> None:
    with pytest.raises(UnknownDevice, match="device must be cpu, cuda, cuda:N, mps or auto, got "):
        resolve_device(name)
    assert issubclass(UnknownDevice, ValueError)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:7"])
def test_a_device_that_is_not_there_is_refused_naming_what_there_is(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=r"this machine has: cpu.*auto"):
        resolve_device(name)
    assert issubclass(DeviceUnavailable, OSError)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_each_kind_is_there_or_refused(name: str) -> None:
    there = torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()
    if there:
        assert resolve_device(name) in present_devices()
    else:
        with pytest.raises(DeviceUnavailable):
            resolve_device(name)


def test_without_a_name_the_first_accelerator_or_the_processor_is_taken() -> None:
    assert resolve_device(None) == [*present_devices(), "cpu"][1]
    assert resolve_device("cpu") == "cpu"


def test_a_bad_device_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownDevice):
        TransformersLLM("no/such-model", device="gpu")
    with pytest.raises(DeviceUnavailable):
        TransformersLLM("no/such-model", device="cuda:99")


def test_auto_is_accelerates_device_map(model_folder: Any) -> None:
    with TransformersLLM(str(model_folder()), device="auto") as llm, TransformersLLM(str(model_folder())) as plain:
        assert llm.device == "auto"
        assert llm.run("hello", max_tokens=5) == plain.run("hello", max_tokens=5)


@pytest.mark.gpu
def test_a_gpu_runs_the_model_and_reports_its_memory(model_folder: Any) -> None:
    with (
        TransformersLLM(str(model_folder()), device="cuda") as llm,
        TransformersLLM(str(model_folder()), device="cpu") as plain,
    ):
        assert llm.model.device.type == "cuda"
        assert llm.run("hello", max_tokens=4) == plain.run("hello", max_tokens=4)
        assert device_memory()[0].total_bytes > 0
        llm.set_device("cpu")
        assert llm.model.device.type == "cpu"
