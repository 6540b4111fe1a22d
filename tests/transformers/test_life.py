"""Closing, moving and replacing a model; checkpoints with weights; what equal fingerprints promise."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.errors import CheckpointError, DeviceUnavailable, ModelClosed, ModelInvalid, UnknownDevice
from llmkit_transformers import TransformersLLM
from llmkit_transformers import llm as llm_module
from tests import tiny_models

Folder = Callable[..., Path]
SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 12}

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(tmp_path_factory.mktemp("other") / "model", seed=5)


# --- close ----------------------------------------------------------------------------------------------------------


def test_close_frees_the_model(model_folder: Folder) -> None:
    llm = TransformersLLM(str(model_folder()))
    llm.run("hello", **SAMPLED)
    next(llm.stream("hello"))
    model = weakref.ref(llm.model)
    llm.close()
    gc.collect()
    assert model() is None


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("llmkit")}


def test_a_model_that_is_dropped_without_closing_is_freed_with_its_thread(model_folder: Folder) -> None:
    before = own_threads()
    llm = TransformersLLM(str(model_folder()))
    llm.run("hello", max_tokens=2)
    model = weakref.ref(llm.model)
    (thread,) = own_threads() - before
    del llm
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    assert model() is None


def test_every_call_after_close_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    with TransformersLLM(str(model_folder())) as llm:
        pass
    llm.close()
    task = {"model": llm.model_name, "messages": [{"role": "user", "content": "x"}]}

    async def pieces() -> list[str]:
        return [piece async for piece in llm.astream("x")]

    calls: list[Callable[[], Any]] = [
        lambda: llm.run("x"),
        lambda: llm.complete("x"),
        lambda: list(llm.stream("x")),
        lambda: llm.batch_run(["x"]),
        lambda: llm.chat("x"),
        lambda: llm.execute(task),
        lambda: asyncio.run(llm.arun("x")),
        lambda: asyncio.run(pieces()),
        lambda: asyncio.run(llm.abatch_run(["x"])),
        lambda: asyncio.run(llm.aexecute(task)),
        lambda: llm.generate_summary("some text"),
        lambda: llm.model,
        lambda: llm.tokenizer,
        lambda: llm._num_tokens("x"),
        lambda: llm.set_device("cpu"),
        lambda: llm.set_model_name("y"),
        lambda: llm.save_checkpoint(tmp_path),
    ]
    for call in calls:
        with pytest.raises(ModelClosed):
            call()
    assert llm.track_resource_utilization()


def test_a_fingerprint_of_a_model_that_is_closed_or_being_closed_is_refused(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = TransformersLLM(str(model_folder()))
    digest = llm_module.weights_digest

    def closing_meanwhile(weights: Any) -> str:
        llm.close()
        return digest(weights)

    monkeypatch.setattr(llm_module, "weights_digest", closing_meanwhile)
    for _ in range(2):
        with pytest.raises(ModelClosed):
            _ = llm.fingerprint


def test_closing_ends_a_running_generation(model_folder: Folder) -> None:
    llm = TransformersLLM(str(model_folder()))
    stream = llm.stream("hello", max_tokens=100)
    next(stream)
    llm.close()
    with pytest.raises(ModelClosed):
        list(stream)


# --- another model, another device ----------------------------------------------------------------------------------


def test_another_model_replaces_the_one_that_is_loaded(model_folder: Folder, other_folder: Path) -> None:
    with TransformersLLM(str(model_folder())) as llm, TransformersLLM(str(other_folder)) as other:
        first, old = llm.run("hello", **SAMPLED), weakref.ref(llm.model)
        fingerprint = llm.fingerprint
        llm.set_model_name(str(other_folder))
        assert llm.run("hello", **SAMPLED) == other.run("hello", **SAMPLED) != first
        assert llm.fingerprint == other.fingerprint != fingerprint
        gc.collect()
        assert old() is None
        llm.model_name = str(model_folder())
        assert llm.run("hello", **SAMPLED) == first


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        ("model_name", "/no/such/model", ModelInvalid),
        ("device", "gpu", UnknownDevice),
        ("device", "cuda:99", DeviceUnavailable),
    ],
)
def test_a_change_that_fails_leaves_the_old_model_working(
    model_folder: Folder, attribute: str, value: str, error: type[Exception]
) -> None:
    with TransformersLLM(str(model_folder())) as llm:
        before, text = getattr(llm, attribute), llm.run("hello", max_tokens=5)
        with pytest.raises(error):
            setattr(llm, attribute, value)
        assert getattr(llm, attribute) == before
        assert llm.run("hello", max_tokens=5) == text


# --- checkpoints with weights ---------------------------------------------------------------------------------------


def test_a_checkpoint_with_weights_restores_them(model_folder: Folder, other_folder: Path, tmp_path: Path) -> None:
    with TransformersLLM(str(other_folder), temperature=0.9, seed=3) as saved:
        saved.chat("hello", max_tokens=4)
        text = saved.run("hello", max_tokens=9)
        saved.save_checkpoint(tmp_path, include_weights=True)
        with TransformersLLM(str(model_folder())) as llm:
            llm.load_checkpoint(tmp_path)
            assert llm.run("hello", max_tokens=9) == text
            assert (llm.params, llm.history, llm.model_name) == (saved.params, saved.history, str(other_folder))
            llm.set_device("cpu")
            assert llm.run("hello", max_tokens=9) == text


def test_a_checkpoint_without_weights_loads_the_model_it_names(
    model_folder: Folder, other_folder: Path, tmp_path: Path
) -> None:
    with TransformersLLM(str(other_folder)) as saved, TransformersLLM(str(model_folder())) as llm:
        saved.save_checkpoint(tmp_path)
        llm.load_checkpoint(tmp_path)
        assert llm.run("hello", max_tokens=5) == saved.run("hello", max_tokens=5)


def test_damaged_weights_of_a_checkpoint_are_refused_and_change_nothing(
    model_folder: Folder, other_folder: Path, tmp_path: Path
) -> None:
    with TransformersLLM(str(other_folder)) as saved, TransformersLLM(str(model_folder()), stop_token="~") as llm:
        saved.save_checkpoint(tmp_path, include_weights=True)
        (file,) = tmp_path.glob("weights-*/model.safetensors")
        file.write_bytes(file.read_bytes()[:-50])
        before = (llm.run("hello", max_tokens=5), llm.params, llm.model_name)
        with pytest.raises((CheckpointError, ModelInvalid)):
            llm.load_checkpoint(tmp_path)
        assert (llm.run("hello", max_tokens=5), llm.params, llm.model_name) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from llmkit_transformers import TransformersLLM
llm = TransformersLLM(sys.argv[1])
real = llm.model.save_pretrained

def killed_in_the_middle(folder, **options):
    real(folder, **options)
    file = Path(folder, "model.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    os.kill(os.getpid(), signal.SIGKILL)

llm.model.save_pretrained = killed_in_the_middle
llm.save_checkpoint(sys.argv[2], include_weights=True)
"""

FULL_DISK = """
import resource, sys
from llmkit_transformers import TransformersLLM
llm = TransformersLLM(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    llm.save_checkpoint(sys.argv[2], include_weights=True)
except Exception as error:
    print(type(error).__name__)
    raise SystemExit(7)
"""


@posix_only
@pytest.mark.parametrize(("code", "status"), [(KILLED, -signal.SIGKILL), (FULL_DISK, 7)], ids=["killed", "full disk"])
def test_a_save_that_is_cut_short_leaves_the_checkpoint_before_whole(
    model_folder: Folder, other_folder: Path, tmp_path: Path, code: str, status: int
) -> None:
    with TransformersLLM(str(other_folder)) as saved:
        saved.save_checkpoint(tmp_path, include_weights=True)
        text = saved.run("hello", max_tokens=6)
        done = subprocess.run(
            [sys.executable, "-c", code, str(model_folder()), str(tmp_path)], timeout=240, capture_output=True
        )
        assert done.returncode == status, done.stderr.decode()
        with TransformersLLM(str(model_folder())) as llm:
            llm.load_checkpoint(tmp_path)
            assert llm.run("hello", max_tokens=6) == text


# --- equal bits -----------------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys, torch
torch.set_num_threads(1)
from llmkit_transformers import TransformersLLM
with TransformersLLM(sys.argv[1]) as llm:
    completion = llm.complete("hello", temperature=1.0, seed=7, max_tokens=12)
    print(repr(completion.text), completion.fingerprint)
"""


def test_another_process_gives_the_same_text_under_the_same_fingerprint(llm: TransformersLLM) -> None:
    completion = llm.complete("hello", **SAMPLED)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(llm.model_name)], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == f"{completion.text!r} {completion.fingerprint}"


def test_another_thread_beside_other_work_gives_the_same_text(llm: TransformersLLM) -> None:
    task = {
        "model": llm.model_name,
        "messages": [{"role": "user", "content": "hello"}],
        "generation_config": {"temperature": 1.0, "max_new_tokens": 12},
        "seed": 7,
    }
    expected, texts, stop = llm.run("hello", **SAMPLED), [], threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.manual_seed(0)
            llm.batch_run(["noise", "more noise", "x"], temperature=1.5, max_tokens=5)

    disturber = threading.Thread(target=disturb)
    worker = threading.Thread(
        target=lambda: texts.extend(llm.execute(task).choices[0].message.content for _ in range(5))
    )
    disturber.start()
    worker.start()
    worker.join()
    stop.set()
    disturber.join()
    assert texts == [expected] * 5


def test_a_changed_weight_changes_the_fingerprint(model_folder: Folder, tmp_path: Path, llm: TransformersLLM) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(model_folder(), folder)
    with TransformersLLM(str(folder)) as copy:
        assert copy.fingerprint == llm.fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with TransformersLLM(str(folder)) as changed, TransformersLLM(str(model_folder()), dtype="bfloat16") as rounded:
        assert len({changed.fingerprint, rounded.fingerprint, llm.fingerprint}) == 3


def test_a_fingerprint_does_not_depend_on_what_ran_before(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny_models.build(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    for bits in (4, 8):
        with (
            TransformersLLM(str(folder), quantize_bits=bits) as one,
            TransformersLLM(str(folder), quantize_bits=bits) as two,
        ):
            text = two.run("hello", max_tokens=4)
            assert one.fingerprint == two.fingerprint
            assert two.run("hello", max_tokens=4) == text == one.run("hello", max_tokens=4)
