"""From names to models: where files come from, what is refused, and what is printed."""

from __future__ import annotations

import gc
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import pytest

import llmkit
from llmkit.errors import (
    DeviceUnavailable,
    ModelClosed,
    ModelInvalid,
    ModelNotDownloaded,
    ParameterError,
    UnknownDevice,
    UnknownParameter,
)
from llmkit_llama_cpp import LlamaCppLLM
from llmkit_llama_cpp.files import find_model
from tests.llama_cpp import ggufs
from tests.llama_cpp.ggufs import EMBEDDED

QUESTION = "What is the capital of France?"


def test_the_embedded_model_a_path_and_a_hub_file_are_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--org--repo"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    shutil.copyfile(EMBEDDED, snapshot / "q4.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("llama_cpp:", "llama_cpp:llmkit-tiny", str(EMBEDDED), "org/repo:q4.gguf", "org/repo@main:q4.gguf"):
        with llmkit.load(name) as llm:
            assert isinstance(llm, LlamaCppLLM)
            assert llm.run(QUESTION) == "The capital of France is Paris."


def test_all_parts_of_a_model_in_several_files_are_found(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-{n:05d}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.touch()
    assert find_model(str(parts[0])).parts == tuple(parts)
    parts[1].unlink()
    with pytest.raises(ModelInvalid, match="00002-of-00002"):
        find_model(str(parts[0]))


def test_a_file_that_is_not_here_is_not_downloaded_in_silence(tmp_path: Path) -> None:
    with pytest.raises(ModelNotDownloaded, match="the hub is offline"):
        LlamaCppLLM("nobody/nothing:model.gguf")
    with pytest.raises(ModelNotDownloaded, match="local_files_only is set"):
        LlamaCppLLM("nobody/nothing:model.gguf", local_files_only=True)
    with pytest.raises(ModelInvalid, match="there is no GGUF file"):
        LlamaCppLLM(str(tmp_path / "missing.gguf"))
    with pytest.raises(ModelInvalid, match="is a folder"):
        LlamaCppLLM(str(tmp_path))


def test_damaged_and_foreign_files_are_refused_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(EMBEDDED.read_bytes()[: EMBEDDED.stat().st_size // 2])
    with pytest.raises(ModelInvalid, match=r"model\.gguf.*(bounds|corrupt|incomplete|read)"):
        LlamaCppLLM(str(path))
    path.write_bytes(b"these are not the weights you are looking for")
    with pytest.raises(ModelInvalid, match="magic"):
        LlamaCppLLM(str(path))
    writer = gguf.GGUFWriter(path, "perpetuum-mobile")
    writer.add_name("none such")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelInvalid, match="perpetuum-mobile"):
        LlamaCppLLM(str(path))
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaCppLLM() as llm:
        llm.batch_run([QUESTION, "Hello!"])
        llm.run(QUESTION, seed=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_ctx": 0}, ParameterError, "n_ctx must be an integer >= 1, got 0"),
        ({"n_ctx": 1025}, ParameterError, "n_ctx must be at most the model's own length of 1024, got 1025"),
        ({"n_threads": True}, ParameterError, "n_threads must be an integer >= 1, got True"),
        ({"n_ctx": 512, "kv_cache_bytes": 1}, ParameterError, "kv_cache_bytes must hold a window of 512 tokens"),
        ({"n_gpu_layers": -2}, ParameterError, "n_gpu_layers must be an integer >= -1, got -2"),
        ({"n_gpu_layers": 1, "device": "cpu"}, ParameterError, 'n_gpu_layers must be 0 on device "cpu"'),
        ({"device": "abacus"}, UnknownDevice, "got 'abacus'"),
        ({"n_cxt": 5}, UnknownParameter, "n_cxt"),
        ({"adapter": "nowhere.gguf"}, ModelInvalid, "there is no adapter"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LlamaCppLLM(**options)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build has a GPU")
    for options in ({"device": "cuda"}, {"n_gpu_layers": -1}):
        with pytest.raises(DeviceUnavailable, match="built without a GPU"):
            LlamaCppLLM(**options)


def test_the_window_is_the_models_own_or_the_one_asked_for(llm: LlamaCppLLM) -> None:
    assert llm.context_length == 1024
    assert llm.engine_info.kv_cache_bytes >= 1024 * 6 * 2 * 192 * 2  # layers, keys and values, width, float16
    with LlamaCppLLM(n_ctx=100) as short:
        assert short.context_length == 100
        completion = short.complete("word " * 40, raw=True, max_tokens=500, eos_token_id=[])
        assert completion.usage.total_tokens == 100
        assert completion.choices[0].finish_reason == "length"
        with pytest.raises(llmkit.errors.ContextLengthExceeded):
            short.run("word " * 200, raw=True)


def test_sampling_fields_of_the_file_are_honoured_or_refused(tmp_path: Path) -> None:
    fields = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "general.sampling.penalty_repeat": 1.5}
    path = ggufs.changed(tmp_path / "sampled.gguf", fields)
    with LlamaCppLLM(str(path)) as llm:
        params = llm.complete("Hello!").params
        assert (params.temperature, params.top_k, params.repetition_penalty, params.do_sample) == (0.5, 7, 1.5, True)
        assert llm.complete("Hello!", temperature=0).params.do_sample is False
    for field in ({"general.sampling.xtc_probability": 0.5}, {"general.sampling.mirostat": 2}):
        with pytest.raises(ModelInvalid, match=next(iter(field))):
            LlamaCppLLM(str(ggufs.changed(tmp_path / "refused.gguf", field)))


def test_set_model_name_loads_another_file_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    other = ggufs.changed(tmp_path / "other.gguf", {"general.name": "other"})
    with LlamaCppLLM() as llm:
        before = llm.fingerprint
        with pytest.raises(ModelInvalid):
            llm.set_model_name(str(tmp_path / "missing.gguf"))
        assert (llm.model_name, llm.fingerprint) == ("llmkit-tiny", before)
        llm.set_model_name(str(other))
        assert llm.metadata["general.name"] == "other"
        assert llm.fingerprint != before
        assert llm.run(QUESTION) == "The capital of France is Paris."


def test_weights_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    with LlamaCppLLM(str(ggufs.changed(tmp_path / "mine.gguf", {"general.name": "mine"}))) as llm:
        saved = llm.save_checkpoint(tmp_path / "checkpoints", include_weights=True)
    (tmp_path / "mine.gguf").unlink()
    with LlamaCppLLM() as other:
        other.load_checkpoint(saved)
        assert other.metadata["general.name"] == "mine"


def test_after_close_every_call_says_so_and_the_memory_is_free() -> None:
    llm = LlamaCppLLM()
    llm.run("Hello!", seed=1)
    model, context = llm._model, llm._routes._cells
    llm.close()
    llm.close()
    assert model.handle is None
    assert context._handle is None
    for call in (
        lambda: llm.run("Hello!"),
        lambda: llm.batch_run(["Hello!"]),
        lambda: next(llm.stream("Hello!")),
        lambda: llm.set_adapter(None),
        lambda: model.tokenize("Hello!", add_special=True),
        lambda: llm.metadata,
    ):
        with pytest.raises(ModelClosed):
            call()


def test_a_model_that_is_dropped_without_closing_is_freed_with_its_threads() -> None:
    def own_threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("llmkit")}

    before = own_threads()
    llm = LlamaCppLLM()
    llm.run("Hello!", max_tokens=2)
    llm.run("Hello!", max_tokens=2, seed=1)
    model, threads = llm._model, own_threads() - before
    assert len(threads) == 2
    del llm
    gc.collect()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert model.handle is None


def test_no_room_for_the_cells_is_told_before_they_are_taken() -> None:
    with pytest.raises(MemoryError, match="tokens of keys and values need"):
        LlamaCppLLM(kv_cache_bytes=2**50)


@pytest.mark.parametrize("settings", [{}, {"seed": 1, "temperature": 1.0}], ids=["engine", "alone"])
def test_a_call_that_runs_ends_with_the_model_that_it_began_with(tmp_path: Path, settings: dict[str, Any]) -> None:
    other = ggufs.changed(tmp_path / "other.gguf", {"general.name": "other"})
    with LlamaCppLLM(n_threads=1, max_tokens=12) as llm:
        expected = llm.run("Tell me a joke.", **settings)
        stream = llm.stream("Tell me a joke.", **settings)
        begun = next(stream)
        with ThreadPoolExecutor(1) as thread:
            replacing = thread.submit(llm.set_model_name, str(other))
            assert begun + "".join(stream) == expected
            replacing.result(60)
        assert llm.metadata["general.name"] == "other"
        assert llm.run("Tell me a joke.", **settings) == expected
