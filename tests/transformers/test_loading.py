"""Names, files and options of loading, and what is said of those that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llmkit
from llmkit.errors import (
    BackendUnavailable,
    InvalidRequest,
    ModelInvalid,
    ModelNotDownloaded,
    ParameterError,
    UnsupportedFeature,
)
from llmkit_transformers import TransformersLLM
from tests import tiny_models


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that ended well in a process of its own, in which every warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_path_may_be_a_string_or_a_path(model_folder: Callable[..., Path]) -> None:
    for model in (str(model_folder()), model_folder()):
        for make in (TransformersLLM, llmkit.load):
            with make(model) as llm:
                assert llm.model_name == str(model_folder())


def test_a_relative_path_is_a_path(model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder().parent)
    with TransformersLLM("llama") as llm:
        assert llm.run("hello", max_tokens=2)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "~/no/such-folder", "a/b/c"])
def test_a_path_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(ModelInvalid, match="there is no model folder at"):
        TransformersLLM(name)


def test_a_model_that_does_not_exist_while_offline_is_not_downloaded() -> None:
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(ModelNotDownloaded, match="'no-such/model-at-all' is not on this machine"):
            TransformersLLM("no-such/model-at-all", **options)


@pytest.mark.parametrize("name", ["has spaces", "a/b@", "@main", "dots..", "-x"])
def test_what_is_no_hub_id_is_refused(name: str) -> None:
    with pytest.raises((ModelInvalid, ModelNotDownloaded)):
        TransformersLLM(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(ModelInvalid, match="is a file"):
        TransformersLLM(str(file))


def cached(root: Path, source: Path, name: str, revision: str) -> None:
    """Put a model into a hub cache as a download leaves it."""
    repository = root / f"models--{name.replace('/', '--')}"
    commit = revision * 40 if len(revision) == 1 else revision
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


def test_a_cached_hub_model_loads_offline_by_id_and_by_revision(
    tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    other = tiny_models.build(tmp_path / "other", seed=9)
    cached(tmp_path / "hub", other, "org/tiny", "a")
    cached(tmp_path / "hub", model_folder(), "org/tiny", "b")
    code = """
        import sys, llmkit
        for name in sys.argv[1:]:
            with llmkit.load(name) as llm:
                print(repr(llm.run("hello", max_tokens=8)))
        """
    names = ["org/tiny", "org/tiny@" + "a" * 40, "org/tiny@" + "b" * 40]
    lines = run_python(code, *names, HF_HUB_CACHE=str(tmp_path / "hub")).stdout.splitlines()
    with TransformersLLM(str(other)) as first, TransformersLLM(str(model_folder())) as second:
        texts = [repr(llm.run("hello", max_tokens=8)) for llm in (first, second)]
    assert lines == [texts[1], texts[0], texts[1]]


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("auto", torch.bfloat16),
    ],
)
def test_the_weights_have_the_dtype_that_was_asked_for(tmp_path: Path, dtype: Any, expected: torch.dtype) -> None:
    folder = tiny_models.build(tmp_path, dtype=torch.bfloat16)
    with TransformersLLM(str(folder), dtype=dtype) as llm:
        assert llm.model.dtype == expected
        assert len(llm.complete("hello", max_tokens=3).choices[0].token_ids) == 3


@pytest.mark.parametrize(
    "options", [{"dtype": "int8"}, {"dtype": "float64"}, {"quantize_bits": 3}, {"quantize_bits": "4"}], ids=str
)
def test_options_are_checked_before_anything_is_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"{next(iter(options))} must be"):
        TransformersLLM("no-such/model", **options)


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="unknown parameter 'quantise_bits'"):
        TransformersLLM("no-such/model", quantise_bits=4)


def test_code_of_a_repository_is_not_run_unless_asked_for(tmp_path: Path) -> None:
    folder = tiny_models.build(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nraise ValueError"
    )
    with pytest.raises(ModelInvalid, match="trust_remote_code"):
        TransformersLLM(str(folder))
    assert not list(tmp_path.rglob("ran"))


# --- quantized ------------------------------------------------------------------------------------------------------

QUANTIZED = """
    import socket, sys

    def refuse(*args, **kwargs):
        raise SystemExit(f"a socket was opened: {args}")

    socket.socket.connect = socket.getaddrinfo = refuse
    import llmkit
    for bits, dtype in ((bits, dtype) for bits in (4, 8) for dtype in ("auto", "float32", "bfloat16", "float16")):
        with llmkit.load(sys.argv[1], quantize_bits=bits, dtype=dtype) as llm:
            texts = [llm.run("hello", max_tokens=4), llm.run("how are you", max_tokens=4)]
            assert texts == [llm.run("hello", max_tokens=4), "".join(llm.stream("how are you", max_tokens=4))]
            kinds = {type(module).__name__ for module in llm.model.modules()}
            assert {4: "Linear4bit", 8: "Linear8bitLt"}[bits] in kinds, kinds
            assert dtype == "auto" or str(llm.model.dtype).endswith(dtype), llm.model.dtype
            print(bits, dtype)
    """


def test_quantized_models_run_on_the_processor_without_a_warning_or_a_socket(tmp_path: Path) -> None:
    """The 4-bit kernels of some processors take inputs in blocks of 64 and outputs in blocks of 32."""
    folder = tiny_models.build(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    done = run_python(QUANTIZED, str(folder))
    assert done.stdout.split("\n")[:-1] == [
        f"{bits} {dtype}" for bits in (4, 8) for dtype in ("auto", "float32", "bfloat16", "float16")
    ]
    assert done.stderr == ""


def test_without_bitsandbytes_the_install_line_is_in_the_message(model_folder: Callable[..., Path]) -> None:
    code = """
        import importlib.abc, importlib.util, sys

        class Blocked(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.split(".")[0] == "bitsandbytes":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocked())
        importlib.util.find_spec = lambda name, package=None, original=importlib.util.find_spec: (
            None if name == "bitsandbytes" else original(name, package))
        import llmkit
        try:
            llmkit.load(sys.argv[1], quantize_bits=4)
        except llmkit.errors.BackendUnavailable as error:
            print(error)
        llmkit.load(sys.argv[1]).close()
        """
    assert "needs bitsandbytes, which is not installed: pip install" in run_python(code, str(model_folder())).stdout
    assert issubclass(BackendUnavailable, ImportError)


# --- damaged files --------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')


def forget_the_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')


def wrong_kind_of_value(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))


def a_list_for_a_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_language_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def lose_the_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def break_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", ')


def empty_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def break_the_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_header,
        empty,
        garbage,
        lose_a_tensor,
        change_a_shape,
        lose_the_weights,
        lose_the_config,
        break_the_config,
        forget_the_type,
        unknown_type,
        wrong_kind_of_value,
        a_list_for_a_config,
        no_language_model,
        lose_the_tokenizer,
        break_the_tokenizer,
        empty_the_tokenizer,
        break_the_generation_config,
        break_the_index,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_model_is_refused_by_its_name(
    tmp_path: Path, model_folder: Callable[..., Path], damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged-model"
    shutil.copytree(model_folder(), folder)
    damage(folder)
    with pytest.raises(ModelInvalid, match="damaged-model"):
        TransformersLLM(str(folder))


def test_weights_that_no_layer_takes_do_no_harm(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    folder = tmp_path / "more"
    shutil.copytree(model_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with TransformersLLM(str(folder)) as llm:
        assert llm.run("hello", max_tokens=2)


# --- tokenizers that lack something ---------------------------------------------------------------------------------


def test_a_tokenizer_without_a_pad_token_can_run_batches(tmp_path: Path, llm: TransformersLLM) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), pad=False)
    tasks = ["x", "a longer one", "hello"]
    with TransformersLLM(str(tiny_models.build(tmp_path, tokenizer=tokenizer))) as padless:
        assert padless.tokenizer.pad_token_id is None
        assert padless.batch_run(tasks, max_tokens=6) == llm.batch_run(tasks, max_tokens=6)
        assert padless.run("hello", max_tokens=6, num_beams=3) == llm.run("hello", max_tokens=6, num_beams=3)


def test_a_model_without_an_eos_token_runs_to_its_limit(tmp_path: Path) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), pad=False, eos=False)
    folder = tiny_models.build(tmp_path, tokenizer=tokenizer, eos=None)
    with TransformersLLM(str(folder)) as llm:
        for params in ({}, {"num_beams": 2}, {"temperature": 1.0, "seed": 1}):
            completion = llm.complete("hello", max_tokens=9, **params)
            assert completion.usage.completion_tokens == 9
            assert completion.choices[0].finish_reason == "length"
        assert len(llm.batch_run(["x", "a longer one"], max_tokens=3)) == 2


def test_a_tokenizer_without_a_template_joins_and_refuses_tools(tmp_path: Path) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), template=None)
    with TransformersLLM(str(tiny_models.build(tmp_path, tokenizer=tokenizer))) as llm:
        messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        assert llm.complete(messages, max_tokens=4).text == llm.run("a\nb", max_tokens=4)
        with pytest.raises(UnsupportedFeature, match="need a chat template"):
            llm.run("hello", tools=[{"name": "f"}])


# --- requests that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", ["", None, [], [{"role": "usr", "content": "x"}], 5, [{"role": "user", "content": ""}]]
)
def test_what_is_no_task_is_refused(llm: TransformersLLM, task: Any) -> None:
    with pytest.raises(InvalidRequest):
        llm.complete(task)


def test_image_blocks_are_refused(llm: TransformersLLM) -> None:
    block = {"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}
    with pytest.raises(UnsupportedFeature, match="image blocks are not supported"):
        llm.complete([{"role": "user", "content": [{"type": "text", "text": "what is this?"}, block]}])
