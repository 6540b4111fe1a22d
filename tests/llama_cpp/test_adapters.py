"""LoRA adapters: switched without loading the model again, and never mixed up with what came before."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import ModelInvalid, TaskArgsInvalid
from llmkit_llama_cpp import LlamaCppLLM
from tests.llama_cpp import ggufs

PROMPT = "a beginning that is long enough to be kept " * 8
WISH: dict[str, Any] = {"max_tokens": 12, "raw": True, "eos_token_id": []}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [ggufs.adapter(folder / f"{seed}.gguf", seed, scale=0.3) for seed in (1, 2)]


@pytest.fixture
def own() -> Iterator[LlamaCppLLM]:
    with LlamaCppLLM() as llm:
        yield llm


@pytest.mark.parametrize("seed", [None, 4])
def test_an_adapter_changes_texts_and_none_brings_them_back(
    own: LlamaCppLLM, adapters: list[Path], seed: int | None
) -> None:
    def texts() -> list[str]:
        return own.batch_run([PROMPT, "Hello!"], seed=seed, **WISH)

    model = own._model
    base, fingerprints = texts(), {own.fingerprint}
    by_adapter = []
    for adapter in adapters:
        own.set_adapter(adapter)
        assert own.adapter == str(adapter)
        with LlamaCppLLM(adapter=adapter) as fresh:
            # What the base had cached must not serve: a fresh model has no cache.
            assert texts() == fresh.batch_run([PROMPT, "Hello!"], seed=seed, **WISH)
            assert own.fingerprint == fresh.fingerprint
        by_adapter.append(texts())
        fingerprints.add(own.fingerprint)
    own.set_adapter(None)
    assert own.adapter is None
    assert texts() == base
    assert base not in by_adapter
    assert by_adapter[0] != by_adapter[1]
    assert len(fingerprints) == 3
    assert own._model is model


def test_a_bad_adapter_is_refused_and_changes_nothing(own: LlamaCppLLM, adapters: list[Path], tmp_path: Path) -> None:
    own.set_adapter(adapters[0])
    before = own.run(PROMPT, seed=1, **WISH), own.fingerprint
    other_model = ggufs.adapter(tmp_path / "other.gguf", 1, n_embd=64)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"no adapter")
    for bad in (other_model, garbage, ggufs.EMBEDDED):
        with pytest.raises(ModelInvalid, match="is no LoRA adapter for 'llmkit-tiny'"):
            own.set_adapter(bad)
    with pytest.raises(ModelInvalid, match="there is no adapter"):
        own.set_adapter(tmp_path / "missing.gguf")
    with pytest.raises(ModelInvalid):
        LlamaCppLLM(adapter=garbage)
    assert (own.run(PROMPT, seed=1, **WISH), own.fingerprint) == before


@pytest.mark.parametrize("seed", [None, 4])
def test_what_runs_ends_under_its_own_adapter(own: LlamaCppLLM, adapters: list[Path], seed: int | None) -> None:
    wish = {**WISH, "max_tokens": 300}
    expected = own.run(PROMPT, seed=seed, **wish)
    stream = own.stream(PROMPT, seed=seed, **wish)
    first = next(stream)
    changing = threading.Thread(target=own.set_adapter, args=(adapters[0],))
    changing.start()
    assert first + "".join(stream) == expected
    changing.join(60)
    assert not changing.is_alive()
    assert own.run(PROMPT, seed=seed, **wish) != expected


def test_a_gpt_task_is_refused_while_an_adapter_is_in_use(own: LlamaCppLLM, adapters: list[Path]) -> None:
    task = json.loads((Path(__file__).parents[2] / "examples" / "task.json").read_text())
    own.set_adapter(adapters[0])
    with pytest.raises(TaskArgsInvalid, match="adapter: the task asks for a model without one"):
        own.execute(task)
    own.set_adapter(None)
    assert own.execute(task)


def test_another_model_begins_without_the_adapter(own: LlamaCppLLM, adapters: list[Path]) -> None:
    own.set_adapter(adapters[0])
    own.set_model_name(str(ggufs.EMBEDDED))
    assert own.adapter is None
    assert own.run("What is the capital of France?") == "The capital of France is Paris."
