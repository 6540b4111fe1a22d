"""A GGUF model called as users call it: greedy, seeded, batched, streamed, cancelled, from threads and tasks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import GenerationParams, Request
from llmkit.errors import InertParameterWarning, ModelClosed, QueueFull, UnsupportedParameter
from llmkit_llama_cpp import LlamaCppLLM
from tests.llama_cpp import ggufs

COUNTRIES = ("France", "Japan", "Peru", "Italy", "Kenya", "the Bahamas", "New Zealand", "Chad", "Fiji", "Oman")
SMALL_TALK = ("Hello!", "Who are you?", "Tell me a joke.", "Thank you!", "Translate to French: Good morning")
TASKS = ["Hello!", "Tell me a joke.", "What is the capital of Peru?", "x", "long " * 100]
SEEDED: dict[str, Any] = {"max_tokens": 12, "temperature": 1.6, "top_p": 0.98}
LONG: dict[str, Any] = {"max_tokens": 400, "raw": True, "eos_token_id": []}


def test_greedy_tokens_are_those_of_transformers(llm: LlamaCppLLM) -> None:
    chat = [f"What is the capital of {country}?" for country in COUNTRIES] + list(SMALL_TALK)
    few_shot = [f"Question: What is the capital of {country}?\nAnswer:" for country in COUNTRIES]
    requests = [Request(text, GenerationParams(max_tokens=32)) for text in chat]
    requests += [Request(text, GenerationParams(max_tokens=12), raw=True) for text in few_shot]
    with llmkit.load("transformers:", device="cpu") as other:
        expected = [completion.choices[0].token_ids for completion in other.complete_batch(requests)]
    assert [completion.choices[0].token_ids for completion in llm.complete_batch(requests)] == expected


def test_a_batch_a_stream_and_a_lone_run_give_the_same_greedy_text(llm: LlamaCppLLM) -> None:
    texts = [llm.run(task, max_tokens=16) for task in TASKS]
    assert llm.batch_run(TASKS, max_tokens=16) == texts
    assert ["".join(llm.stream(task, max_tokens=16)) for task in TASKS] == texts


def test_seeded_texts_are_the_same_in_any_company(llm: LlamaCppLLM) -> None:
    seeds = list(range(len(TASKS)))
    alone = [llm.run(task, seed=seed, **SEEDED) for task, seed in zip(TASKS, seeds, strict=True)]

    async def together() -> list[str]:
        calls = (llm.arun(task, seed=seed, **SEEDED) for task, seed in zip(TASKS, seeds, strict=True))
        noise = [llm.arun("noise", **SEEDED) for _ in range(5)]
        return (await asyncio.gather(*calls, *noise))[: len(TASKS)]

    assert llm.batch_run(TASKS, seed=seeds, **SEEDED) == alone
    assert asyncio.run(together()) == alone
    assert len(set(alone)) > 1


def test_seeded_logits_are_the_same_bits_after_other_prompts_and_in_another_process(llm: LlamaCppLLM) -> None:
    prompt = "word " * 300  # two batches
    wish: dict[str, Any] = {"seed": 0, "n": 2, "logprobs": 3, "max_tokens": 6, "temperature": 1.3, "raw": True}

    def numbers() -> list[Any]:
        completion = llm.complete(prompt, **wish)
        return [completion.fingerprint, *([t.logprob for t in choice.logprobs] for choice in completion.choices)]

    first = numbers()
    llm.run("something else entirely", seed=1)
    llm.run(prompt, raw=True, max_tokens=3)
    assert numbers() == first
    script = (
        "import sys, llmkit\nllm = llmkit.load('llama_cpp:', n_threads=1)\n"
        f"c = llm.complete({prompt!r}, **{wish!r})\n"
        "print([c.fingerprint, *([t.logprob for t in choice.logprobs] for choice in c.choices)])"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (printed.stdout.strip(), printed.stderr) == (str(first), "")


def test_seed_zero_is_a_seed_and_no_seed_is_a_new_one(llm: LlamaCppLLM) -> None:
    task = "Tell me a story about"
    wish: dict[str, Any] = {"max_tokens": 20, "temperature": 3.0, "raw": True}
    assert llm.run(task, seed=0, **wish) == llm.run(task, seed=0, **wish) != llm.run(task, seed=1, **wish)
    unseeded = [llm.complete(task, **wish) for _ in range(4)]
    assert len({completion.text for completion in unseeded}) == 4
    assert len({completion.params.seed for completion in unseeded}) == 4
    with LlamaCppLLM(seed=0, temperature=3.0) as zero:
        assert zero.run(task, max_tokens=20, raw=True) == llm.run(task, seed=0, **wish)


def test_a_gpt_task_runs_alone_and_repeats(llm: LlamaCppLLM) -> None:
    task = {"model": "llmkit-tiny", "messages": [{"role": "user", "content": "Hello!"}]}
    steps = llm._routes.figures.steps
    assert llm.execute(task) == llm.execute(task)
    assert llm._routes.figures.steps == steps
    with pytest.raises(llmkit.errors.TaskArgsInvalid, match="precision that it was written with"):
        llm.execute({**task, "dtype": "float16"})


def test_many_threads_and_tasks_share_steps(llm: LlamaCppLLM) -> None:
    steps = llm._routes.figures.steps
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda n: llm.run(f"thread {n}", **{**LONG, "max_tokens": 100}), range(8)))
    assert len(texts) == 8
    assert llm._routes.figures.steps - steps < 8 * 100 / 2

    async def gathered() -> list[str]:
        return await asyncio.gather(*(llm.arun(f"task {n}", **{**LONG, "max_tokens": 50}) for n in range(8)))

    steps = llm._routes.figures.steps
    asyncio.run(gathered())
    assert llm._routes.figures.steps - steps < 8 * 50 / 2


def test_choices_read_the_prompt_once_and_a_shared_beginning_is_reused(llm: LlamaCppLLM) -> None:
    prompt = "a shared beginning " * 30
    completion = llm.complete(prompt, n=5, temperature=2.0, max_tokens=8, raw=True)
    assert len({choice.text for choice in completion.choices}) > 1
    before = llm._routes.figures
    llm.run(prompt + "and more", raw=True, max_tokens=2)
    after = llm._routes.figures
    assert after.hit_tokens - before.hit_tokens >= llm._num_tokens(prompt) - 1
    greedy = llm.complete(prompt, n=3, max_tokens=8, raw=True).choices
    assert len({choice.token_ids for choice in greedy}) == 1


def test_more_choices_than_may_run_at_once_run_one_after_another(llm: LlamaCppLLM) -> None:
    completion = llm.complete("Hello!", n=70, max_tokens=2)
    assert [choice.index for choice in completion.choices] == list(range(70))
    assert completion.usage.completion_tokens == 140


@pytest.mark.parametrize("seed", [None, 1])
def test_leaving_a_stream_frees_its_place(llm: LlamaCppLLM, seed: int | None) -> None:
    stream = llm.stream("Hello!", seed=seed, **LONG)
    next(stream)
    stream.close()
    assert llm.run("Hello!", seed=seed, max_tokens=8)
    assert llm._routes.figures.running_sequences == 0
    nested = llm.stream("Hello!", seed=seed, **LONG)
    next(nested)
    assert llm.run("Hello!", seed=seed, max_tokens=8)
    assert len("".join(nested)) > 100


@pytest.mark.parametrize("seed", [None, 1])
def test_a_cancelled_task_ends_and_the_loop_goes_on(llm: LlamaCppLLM, seed: int | None) -> None:
    async def cancelled() -> int:
        n_ticks = 0
        task = asyncio.create_task(llm.arun("Hello!", seed=seed, **LONG))
        for _ in range(5):
            await asyncio.sleep(0.01)
            n_ticks += 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return n_ticks

    assert asyncio.run(cancelled()) == 5
    assert llm.run("What is the capital of France?") == "The capital of France is Paris."


def test_stop_strings_limits_and_usage(llm: LlamaCppLLM) -> None:
    stopped = llm.complete("What is the capital of France?", stop_token=["of Fr", "zzz"])
    assert (stopped.text, stopped.choices[0].finish_reason) == ("The capital ", "stop")
    limited = llm.complete("Tell me a joke.", max_tokens=3)
    assert (limited.choices[0].finish_reason, limited.usage.completion_tokens) == ("length", 3)
    whole = llm.complete("Tell me a joke.")
    assert whole.choices[0].token_ids[-1] == llm._model.special("eos")
    assert whole.usage.prompt_tokens == len(llm._encode(Request("Tell me a joke.")))


def test_beams_are_refused_and_padding_is_named_as_idle(llm: LlamaCppLLM) -> None:
    for wish in ({"num_beams": 2}, {"length_penalty": 2.0}, {"early_stopping": True}):
        with pytest.raises(UnsupportedParameter, match=next(iter(wish))):
            llm.run("Hello!", **wish)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InertParameterWarning)
        assert "pad_token_id" in llm.complete("Hello!", pad_token_id=3).inert


@pytest.mark.parametrize("seed", [None, 1])
def test_structured_texts_fit_on_both_routes(llm: LlamaCppLLM, seed: int | None) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wild: dict[str, Any] = {"temperature": 2.5, "seed": seed, "max_tokens": 200}
    parsed = llm.complete("Somebody", schema=schema, **wild).parsed
    assert set(parsed) == {"name", "age"}
    assert llm.run("A colour", choice=["red", "green"], **wild) in ("red", "green")
    assert len(llm.run("A code", regex="[0-9]{4}-[a-f]{2}", **wild)) == 7


def test_every_text_is_finished_or_refused_when_closing_races_with_calls() -> None:
    outcomes: list[str] = []
    closing = LlamaCppLLM()

    def call(n: int) -> None:
        try:
            outcomes.append(closing.run(f"thread {n}", seed=n if n % 2 else None, **LONG))
        except ModelClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    closing.close()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 8
    assert "closed" in outcomes


def test_a_model_without_cells_runs_every_request_alone(tmp_path: Path) -> None:
    with LlamaCppLLM(str(ggufs.mamba(tmp_path / "mamba.gguf"))) as llm:
        assert (llm.engine_info.route, llm.engine_info.kv_cache_bytes) == ("alone", 0)
        texts = [llm.run(task, max_tokens=8, raw=True) for task in TASKS]
        assert llm.batch_run(TASKS, max_tokens=8, raw=True) == texts
        choices = llm.complete(TASKS[0], n=3, max_tokens=8, raw=True).choices
        assert {choice.text for choice in choices} == {texts[0]}
        assert asyncio.run(llm.arun(TASKS[0], max_tokens=8, raw=True)) == texts[0]


def test_a_full_queue_refuses_who_will_not_wait() -> None:
    with LlamaCppLLM(max_waiting=1) as llm:
        running = llm.stream("Hello!", seed=1, **LONG)
        next(running)
        waiting = threading.Thread(target=llm.run, args=("x",), kwargs={"seed": 1, "max_tokens": 1})
        waiting.start()
        deadline = time.monotonic() + 20
        while not llm._routes._thread._places._taken and time.monotonic() < deadline:
            time.sleep(0.001)
        with pytest.raises(QueueFull):
            llm.run("y", seed=1, when_full="raise")
        assert llm.run("y", when_full="raise", max_tokens=1) is not None  # the engine's queue is another one
        running.close()
        waiting.join(20)


def test_resources_name_the_models_memory_and_the_engines(llm: LlamaCppLLM) -> None:
    usage = llm.track_resource_utilization()
    assert "model memory" in usage.extra
    assert usage.engine is not None
    assert usage.engine.budget_bytes == llm.engine_info.kv_cache_bytes
