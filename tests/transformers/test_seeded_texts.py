"""Seeded texts through the public interface: the same tokens and log-probabilities however they were computed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit import Completion, GenerationParams, Request
from llmkit_transformers import TransformersLLM
from llmkit_transformers.compute_threads import threads
from llmkit_transformers.routes import NotReproducibleWarning
from tests import tiny_models

BEGINNINGS = ["the capital of France is ", "how are you today my friend ", "x", "bonjour " * 10]


def requests(n: int) -> list[Request]:
    """Seeded requests of many kinds, some with a beginning in common."""
    draw = random.Random(3)
    return [
        Request(
            draw.choice(BEGINNINGS) + str(draw.randrange(5)),
            GenerationParams(
                seed=draw.randrange(5),
                max_tokens=draw.randint(1, 14),
                temperature=draw.choice([0.7, 1.1, 2.0]),
                top_p=draw.choice([None, 0.8]),
                top_k=draw.choice([None, 7]),
                repetition_penalty=draw.choice([None, 1.4]),
                n=draw.choice([1, 1, 3]),
                logprobs=3,
            ),
        )
        for _ in range(n)
    ]


def bits(completion: Completion) -> str:
    """The tokens of all choices, and their log-probabilities to the last bit."""
    return repr([(choice.token_ids, choice.logprobs) for choice in completion.choices])


def all_bits(llm: TransformersLLM, batch: Sequence[Request]) -> list[str]:
    return [bits(completion) for completion in llm.complete_batch(batch)]


@pytest.fixture(scope="module")
def batch() -> list[Request]:
    return requests(40)


@pytest.fixture(scope="module")
def alone(model_folder: Callable[..., Path], batch: list[Request]) -> list[str]:
    """What each request gives by itself, in one thread."""
    with threads(1), TransformersLLM(str(model_folder())) as llm:
        return [all_bits(llm, [one])[0] for one in batch]


def shuffled_parts(n: int, draw: random.Random) -> list[list[int]]:
    order = draw.sample(range(n), n)
    cuts = sorted({0, n, *draw.sample(range(1, n), 4)})
    return [order[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("n_threads", [2, 3])
def test_seeded_texts_are_those_of_each_request_alone_in_any_batch(
    n_threads: int, model_folder: Callable[..., Path], batch: list[Request], alone: list[str]
) -> None:
    with threads(n_threads), TransformersLLM(str(model_folder())) as llm:
        for _ in range(3):
            for part in shuffled_parts(len(batch), random.Random(n_threads)):
                assert all_bits(llm, [batch[i] for i in part]) == [alone[i] for i in part]
    assert len(set(alone)) > 20


def test_seeded_texts_survive_evictions_cancelled_neighbours_and_unseeded_ones(
    model_folder: Callable[..., Path], batch: list[Request], alone: list[str]
) -> None:
    with TransformersLLM(str(model_folder())) as probe:
        probe.run("x", max_tokens=1)
        tile = probe.track_resource_utilization().engine
    assert tile is not None
    with TransformersLLM(str(model_folder()), kv_cache_bytes=10 * tile.cached_bytes) as llm:
        for index, one in enumerate(batch):
            neighbour = llm.stream(BEGINNINGS[index % 4], max_tokens=20)
            next(neighbour)
            unseeded = Request(BEGINNINGS[index % 4], GenerationParams(max_tokens=5, temperature=1.0))
            found = llm.complete_batch([unseeded, one])[1]
            neighbour.close()  # pyright: ignore[reportAttributeAccessIssue]
            assert bits(found) == alone[index]
        figures = llm.track_resource_utilization().engine
    assert figures is not None
    assert figures.cached_prefixes < len(batch) / 2, "nothing was evicted"


def test_seeded_texts_of_many_threads_are_those_of_each_alone(
    llm: TransformersLLM, batch: list[Request], alone: list[str]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert [found[0] for found in pool.map(lambda one: all_bits(llm, [one]), batch)] == alone


ELSEWHERE = """
import hashlib, json, sys, torch
torch.set_num_threads(3)
from llmkit_transformers import TransformersLLM
from tests.transformers.test_seeded_texts import all_bits, requests
with TransformersLLM(sys.argv[1]) as llm:
    print(json.dumps([llm.fingerprint, all_bits(llm, requests(40))]))
"""


def test_another_process_with_other_threads_has_the_same_fingerprint_and_bits(
    llm: TransformersLLM, alone: list[str]
) -> None:
    command = [sys.executable, "-c", ELSEWHERE, str(llm.model_name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [llm.fingerprint, alone]


# --- a chat ---------------------------------------------------------------------------------------------------------


class LogitsSeen:
    """Digests of the logits after the last token of every forward pass of a model."""

    def __init__(self, llm: TransformersLLM) -> None:
        self.digests: list[str] = []
        llm.model.register_forward_hook(self._note)

    def _note(self, _: Any, __: Any, output: Any) -> None:
        self.digests.append(hashlib.sha256(output.logits[0, 0].float().numpy().tobytes()).hexdigest())

    def during(self, call: Callable[[], object]) -> list[str]:
        self.digests = []
        call()
        return list(self.digests)


CHAT = {"max_tokens": 4, "temperature": 0.9, "seed": 11}
MESSAGES = [f"hi {turn % 3}" for turn in range(10)]


BYTES_PER_TILE = 2 * 2 * 2 * 8 * 64 * 4  # layers, keys and values, heads, columns, positions, bytes


def evict_all(llm: TransformersLLM) -> None:
    """Begin a text that may fill a budget of six tiles, and leave it."""
    stream = llm.stream("y", max_tokens=330)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    llm.run("x", max_tokens=1)  # goes through the same thread, so the other is gone by then


def test_ten_seeded_turns_have_the_same_bits_cached_uncached_and_replayed_cold(tmp_path: Path) -> None:
    folder = str(tiny_models.build(tmp_path, max_position_embeddings=512))
    of_way: dict[str, list[list[str]]] = {}
    hit_tokens: dict[str, int] = {}
    history: list[Any] = []
    for way in ("cached", "uncached", "replayed"):
        with TransformersLLM(folder, kv_cache_bytes=6 * BYTES_PER_TILE) as llm:
            assert llm.engine_info.reproducible == "batched"
            seen, digests = LogitsSeen(llm), list[list[str]]()
            for turn in range(10):
                given = {"history": history[: 2 * turn]} if way == "replayed" else {}
                digests.append(seen.during(partial(llm.chat, MESSAGES[turn], **given, **CHAT)))
                if way != "cached":
                    evict_all(llm)
            figures = llm.track_resource_utilization().engine
            assert figures is not None
            history = history or list(llm.history)
            of_way[way], hit_tokens[way] = digests, figures.hit_tokens
    assert len(history) == 20
    assert of_way["uncached"] == of_way["cached"] == of_way["replayed"]
    assert hit_tokens["cached"] > 500 > 5 * hit_tokens["uncached"]
    assert hit_tokens["replayed"] < 100


# --- a claim withdrawn ----------------------------------------------------------------------------------------------

WAY_OUT = "; MKL_CBWR=AUTO,STRICT" if torch.backends.mkl.is_available() and "MKL_CBWR" not in os.environ else "$"


def test_where_the_self_test_fails_a_warning_says_so_and_seeded_requests_run_alone(
    model_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with TransformersLLM(str(model_folder())) as llm:
        layer = llm.model.model.layers[0].mlp.down_proj
        intact = layer.forward
        layer.forward = lambda x: intact(x) + 1e-2 * x.mean()
        with (
            caplog.at_level(logging.INFO, "llmkit_transformers"),
            pytest.warns(NotReproducibleWarning, match=f"down_proj.*run alone{WAY_OUT}"),
        ):
            first = llm.run("hello", seed=1, max_tokens=6)
        assert "self-test of" in caplog.text
        assert "down_proj" in caplog.text
        assert (llm.engine_info.route, llm.engine_info.reproducible) == ("engine", "alone")
        figures = llm.track_resource_utilization().engine
        assert figures is not None
        assert figures.started_requests == 0, "a seeded request ran on the engine"
        assert llm.batch_run(["how are you", "hello"], seed=1, max_tokens=6)[1] == first
        assert llm.run("hello", max_tokens=2) is not None
        figures = llm.track_resource_utilization().engine
        assert figures is not None
        assert figures.started_requests == 1


def test_the_self_test_runs_once_when_first_asked_for_and_its_cost_is_shown(
    model_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "llmkit_transformers"), TransformersLLM(str(model_folder())) as llm:
        llm.run("hello", max_tokens=2)
        assert "self-test" not in caplog.text
        llm.run("hello", max_tokens=2, seed=1)
        llm.run("hello", max_tokens=2, seed=2)
        assert caplog.text.count("self-test of") == 1
        assert "equal bits" in caplog.text
        assert 0 < llm.engine_info.self_test_s < 60
        assert "packed weights" in llm.track_resource_utilization().extra


# --- the fingerprint ------------------------------------------------------------------------------------------------


def test_a_fingerprint_names_threads_only_where_they_matter(
    llm: TransformersLLM, model_folder: Callable[..., Path]
) -> None:
    def of(n_threads: int, *, engine: bool) -> str:
        with threads(n_threads), TransformersLLM(str(model_folder()), engine=engine) as other:
            return other.fingerprint

    assert of(2, engine=True) == of(3, engine=True)
    assert len({of(1, engine=False), of(2, engine=False), llm.fingerprint}) == 3


def test_torchs_flags_and_the_environment_are_in_the_fingerprint(
    llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {llm.fingerprint}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    seen.add(llm.fingerprint)
    torch.set_float32_matmul_precision(before)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    seen.add(llm.fingerprint)
    assert len(seen) == 3


def test_filters_of_the_models_own_config_are_in_the_fingerprint(
    llm: TransformersLLM, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(model_folder(), tmp_path / "model")
    tiny_models.add_generation_config(tmp_path / "model", epsilon_cutoff=0.02)
    with TransformersLLM(str(tmp_path / "model")) as other:
        assert other.fingerprint != llm.fingerprint
    tiny_models.add_generation_config(tmp_path / "model", epsilon_cutoff=None, temperature=0.3)
    with TransformersLLM(str(tmp_path / "model")) as same:  # a parameter, which completions name by themselves
        assert same.fingerprint == llm.fingerprint
