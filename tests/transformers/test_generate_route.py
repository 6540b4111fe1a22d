"""What reaches generation through TransformersLLM: parameters, stops, beams, seeds, cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.errors import GenerationError, InertParameterWarning, ParameterError
from llmkit.params import GenerationParams
from llmkit.types import Request
from llmkit_transformers import TransformersLLM
from llmkit_transformers.generate_route import Numbered, batches
from llmkit_transformers.proof import company
from tests import tiny_models

PROMPT = "how are you"


def tokens(llm: TransformersLLM, task: Any = PROMPT, **params: Any) -> tuple[int, ...]:
    return llm.complete(task, **{"max_tokens": 12, **params}).choices[0].token_ids


# --- every parameter changes generation -----------------------------------------------------------------------------

SAMPLED = {"do_sample": True, "seed": 3, "max_tokens": 20}
BEAMS = {"num_beams": 4, "max_tokens": 10}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"max_tokens": 3}),
        ({}, {"max_length": 20}),
        ({}, {"do_sample": True, "seed": 1}),
        (SAMPLED, {"seed": 4}),
        (SAMPLED, {"temperature": 5.0}),
        (SAMPLED, {"top_k": 1}),
        (SAMPLED, {"top_p": 0.05}),
        (SAMPLED, {"min_p": 0.9}),
        (SAMPLED, {"typical_p": 0.1}),
        ({}, {"num_beams": 4}),
        ({"num_beams": 4, "max_tokens": 40, "eos_token_id": list(range(4, 60))}, {"length_penalty": 9.0}),
        ({}, {"repetition_penalty": 5.0}),
        ({"max_tokens": 30}, {"frequency_penalty": 2.0}),
        ({"max_tokens": 30}, {"presence_penalty": 2.0}),
        ({}, {"bos_token_id": 7}),
        ({}, {"system_prompt": "be brief"}),
    ],
    ids=lambda params: ",".join(params) or "greedy",
)
def test_a_parameter_changes_what_is_generated(
    llm: TransformersLLM, base: dict[str, Any], change: dict[str, Any]
) -> None:
    assert tokens(llm, **base) == tokens(llm, **base)
    assert tokens(llm, **base) != tokens(llm, **{**base, **change})


def test_temperature_zero_and_top_k_one_are_greedy(llm: TransformersLLM) -> None:
    greedy = tokens(llm)
    assert tokens(llm, temperature=0, do_sample=True) == greedy
    assert tokens(llm, temperature=3.0, top_k=1) == greedy


def test_frequency_penalty_counts_what_was_generated(llm: TransformersLLM) -> None:
    def most_frequent(**params: Any) -> int:
        return max(Counter(tokens(llm, max_tokens=60, **params)).values())

    assert most_frequent(frequency_penalty=2.0) < most_frequent()


def test_repetition_penalty_does_not_count_padding(llm: TransformersLLM) -> None:
    tasks = ["x", "a much longer prompt than that, so that the first one is padded"]
    for params in ({"repetition_penalty": 1.8}, {"frequency_penalty": 1.0, "presence_penalty": 1.0}):
        for pad in (0, 75, 121):
            batch = llm.batch_run(tasks, max_tokens=12, pad_token_id=pad, **params)
            assert batch == [llm.run(task, max_tokens=12, **params) for task in tasks]


def test_padding_takes_effect_only_where_rows_are_padded(model_folder: Any) -> None:
    llm = TransformersLLM(str(model_folder()), engine=False)

    def completions(tasks: list[str]) -> Any:
        params = GenerationParams(max_tokens=2, pad_token_id=9)
        return llm.complete_batch([Request(task, params) for task in tasks])

    assert [c.inert for c in completions(["x", "longer prompt"])] == [(), ()]
    assert [c.inert for c in completions(["x"])] == [("pad_token_id",)]


def test_each_request_of_a_batch_has_its_own_parameters(llm: TransformersLLM) -> None:
    requests = [
        Request("hello", GenerationParams(max_tokens=5)),
        Request("how are you today", GenerationParams(max_tokens=11, repetition_penalty=2.0)),
        Request("x", GenerationParams(max_tokens=8, temperature=1.0, seed=5, n=3)),
        Request("hello", GenerationParams(max_tokens=9, stop_token=llm.run("hello", max_tokens=3)[-1:])),
        Request("yes", GenerationParams(max_tokens=7, num_beams=3, n=2)),
        Request("no", GenerationParams(max_tokens=7, eos_token_id=[*range(4, 200)])),
    ]
    together = llm.complete_batch(requests)
    alone = [llm.complete_batch([request])[0] for request in requests]
    assert [c.choices for c in together] == [c.choices for c in alone]
    assert [c.usage for c in together] == [c.usage for c in alone]
    assert [len(c.choices) for c in together] == [1, 1, 3, 1, 2, 1]


def test_a_batch_larger_than_the_batch_size_keeps_its_order(model_folder: Any) -> None:
    with TransformersLLM(str(model_folder()), batch_size=3) as llm:
        tasks = [f"task {'x' * (n % 5)} {n}" for n in range(10)]
        assert llm.batch_run(tasks, max_tokens=4) == [llm.run(task, max_tokens=4) for task in tasks]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "4"])
def test_a_batch_size_is_a_number_of_rows(bad: Any) -> None:
    with pytest.raises(ParameterError, match="batch_size must be an integer >= 1"):
        TransformersLLM("nowhere", batch_size=bad)


def test_groups_keep_within_the_batch_size_and_reproducible_requests_run_alone() -> None:
    def request(n_ids: int, reproducible: bool = False, **params: Any) -> Request:
        return Request("x", GenerationParams(**params), prompt_ids=(1,) * n_ids, reproducible=reproducible)

    requests = [
        request(2),
        request(9),
        request(5, True),
        request(3, n=2),
        request(4, num_beams=2),
        request(1),
        request(1, eos_token_id=5),
    ]
    numbered = [Numbered(index, request) for index, request in enumerate(requests)]
    groups = [[one.index for one in group] for group in batches(numbered, 3, lambda params: params.eos_token_ids)]
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert [1, 3] in groups
    assert [2] in groups
    assert [4] in groups
    assert [6] in groups


@pytest.mark.parametrize(
    ("family", "batches"), [("gptj", [4]), ("mamba", [4]), ("t5", [4]), ("trocr", [1, 1, 2]), ("rwkv", [1, 1, 1, 1])]
)
def test_prompts_share_a_batch_only_where_that_changes_nothing(
    loaded: Any, family: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TrOCR counts padding as positions, and RWKV gives two equal rows something else than one."""
    llm, prompts = loaded(family), ["hello", "how are you my friend", "hello world, how", "hello"]
    requests = [Request(prompt, GenerationParams(max_tokens=12), raw=True) for prompt in prompts]
    alone = [llm.complete_batch([request])[0].choices[0].token_ids for request in requests]
    llm.complete_batch(requests)  # so that what company does is known
    sizes: list[int] = []
    generate = llm.model.generate

    def noting(input_ids: torch.Tensor, **others: Any) -> Any:
        sizes.append(len(input_ids))
        return generate(input_ids, **others)

    monkeypatch.setattr(llm.model, "generate", noting)
    completions = llm.complete_batch(requests)
    assert [completion.choices[0].token_ids for completion in completions] == alone
    assert sorted(sizes) == batches


def test_a_prompt_that_ends_before_its_neighbour_is_compared_until_then(loaded: Any) -> None:
    """With padding behind its end, what a row would be chosen from means nothing."""

    def logits(prompts: Any, n_new: int) -> torch.Tensor:
        found = torch.ones(len(prompts), n_new, 7)
        if len(prompts) == 1:
            return found[:, :1]
        found[0, 1] = 99.0
        return found

    assert company(loaded("t5").model, logits) == "any"


def test_choices_of_a_model_whose_rows_see_one_another_are_made_one_by_one(loaded: Any) -> None:
    llm = loaded("rwkv")
    greedy = llm.complete(PROMPT, raw=True, max_tokens=8).choices[0].token_ids
    choices = llm.complete(PROMPT, raw=True, max_tokens=8, n=3, temperature=1.0, top_k=1).choices
    assert [choice.token_ids for choice in choices] == [greedy] * 3


LONGROPE: Any = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
}


def test_positions_that_the_longest_row_changes_are_shared_by_rows_of_one_length(tmp_path: Path) -> None:
    with TransformersLLM(str(tiny_models.build(tmp_path, **LONGROPE))) as llm:
        assert "longrope" in llm.engine_info.reason
        texts = ["how", "a" * 40, "are", "b" * 9, "c" * 9]
        requests = [Request(text, GenerationParams(max_tokens=12), raw=True) for text in texts]
        alone = [llm.complete_batch([request])[0].choices[0].token_ids for request in requests]
        assert [found.choices[0].token_ids for found in llm.complete_batch(requests)] == alone


@pytest.mark.parametrize(
    ("family", "engine", "generation"),
    [("gptj", True, {}), ("gpt2", False, {}), ("gptj", True, {"no_repeat_ngram_size": 9, "min_new_tokens": 3})],
)
@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "top_k": 3, "logprobs": 1}], ids=["greedy", "sampled"])
def test_a_batch_ends_no_text_where_a_longer_prompt_reaches_the_last_position(
    tmp_path: Path, family: str, engine: bool, generation: dict[str, Any], params: dict[str, Any]
) -> None:
    """Each text may fill the window, and a row that is done is fed on while others go on."""
    folder = tiny_models.build(tmp_path, family, generation=generation, n_positions=64)
    texts = ["a b" * 3, "c d" * 19, "e f" * 10, "g" * 30]
    with TransformersLLM(str(folder), engine=engine) as llm:
        requests = [Request(text, GenerationParams(eos_token_id=[], **params), raw=True) for text in texts]
        found = [completion.choices[0] for completion in llm.complete_batch(requests)]
        assert [len(choice.token_ids) for choice in found] == [
            64 - len(llm.tokenizer(text)["input_ids"]) for text in texts
        ]
        if not params:
            alone = [llm.complete_batch([request])[0].choices[0].token_ids for request in requests]
            assert [choice.token_ids for choice in found] == alone


def test_the_engine_goes_on_beside_a_beam_search(llm: TransformersLLM, forwards: Any) -> None:
    """Both hold the model for a step at a time; held for the whole search, the short call would end after it."""
    ended: list[str] = []

    def search() -> None:
        llm.run(PROMPT, num_beams=4, max_tokens=100, eos_token_id=[])
        ended.append("search")

    searching = threading.Thread(target=search)
    searching.start()
    assert forwards.first.wait(20)
    llm.run("x", max_tokens=2)
    ended.append("run")
    searching.join(60)
    assert ended == ["run", "search"]


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_stop_string_across_tokens_ends_the_text_and_is_never_seen(llm: TransformersLLM) -> None:
    whole = llm.run(PROMPT, max_tokens=20)
    for start in range(1, len(whole) - 4):
        stop = whole[start : start + 3]
        if "\ufffd" in stop:
            continue
        completion = llm.complete(PROMPT, max_tokens=20, stop_token=["never there", stop])
        assert completion.text == whole[: whole.index(stop)]
        assert completion.choices[0].finish_reason == "stop"
        pieces = list(llm.stream(PROMPT, max_tokens=20, stop_token=stop))
        assert "".join(pieces) == completion.text


def test_a_stop_string_ends_the_work_too(llm: TransformersLLM, forwards: Any) -> None:
    stop = llm.run(PROMPT, max_tokens=4)[-1]
    forwards.n_calls = 0
    completion = llm.complete(PROMPT, max_tokens=50, stop_token=stop)
    assert completion.usage.completion_tokens == forwards.n_calls < 10


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("params", [{}, {"num_beams": 3}])
def test_every_eos_ends_with_stop_and_is_counted(loaded: Any, family: str, params: dict[str, Any]) -> None:
    llm = loaded(family)
    whole = tokens(llm, max_tokens=10)
    for eos in (whole[3], [300, whole[3], 301]):
        completion = llm.complete(PROMPT, max_tokens=10, eos_token_id=eos, **params)
        choice = completion.choices[0]
        ids = [eos] if isinstance(eos, int) else eos
        if not params:
            assert choice.token_ids == whole[: whole.index(whole[3]) + 1]
        assert completion.usage.completion_tokens == len(choice.token_ids)
        assert choice.finish_reason == ("stop" if choice.token_ids[-1] in ids else "length")
        assert not set(choice.token_ids[:-1]) & set(ids)


def test_length_is_the_reason_where_the_limit_ends_the_text(llm: TransformersLLM) -> None:
    completion = llm.complete(PROMPT, max_tokens=5)
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 5)


def test_prompt_and_completion_tokens_are_counted_over_all_choices(llm: TransformersLLM) -> None:
    completion = llm.complete("hello", raw=True, max_tokens=6, n=3, temperature=1.0, seed=1)
    assert completion.usage.prompt_tokens == llm._num_tokens("hello")
    assert completion.usage.completion_tokens == sum(len(choice.token_ids) for choice in completion.choices)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_the_tighter_of_two_limits_wins(loaded: Any, family: str) -> None:
    llm = loaded(family)
    n = len(llm._encode(Request("hello")))
    for max_tokens, max_length, expected in [(5, n + 9, 5), (9, n + 5, 5), (None, n + 3, 3)]:
        completion = llm.complete("hello", max_tokens=max_tokens, max_length=max_length)
        assert completion.usage.completion_tokens == expected


def test_a_decoder_with_a_window_generates_what_fits(loaded: Any) -> None:
    completion = loaded("bart").complete("hello", max_tokens=2 * tiny_models.WINDOW)
    assert completion.choices[0].finish_reason == "length"
    assert 0 < completion.usage.completion_tokens <= tiny_models.WINDOW


# --- seeds and beams ------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_in_any_company(llm: TransformersLLM) -> None:
    alone = llm.run("hello", temperature=1.0, seed=7, max_tokens=15)
    assert llm.run("hello", temperature=1.0, seed=7, max_tokens=15) == alone
    batch = llm.batch_run(["longer than the others", "hello", "x"], temperature=1.0, seed=[1, 7, None], max_tokens=15)
    assert batch[1] == alone
    assert "".join(llm.stream("hello", temperature=1.0, seed=7, max_tokens=15)) == alone


def test_unseeded_sampling_reports_the_seed_that_replays_it(llm: TransformersLLM) -> None:
    first, second = (llm.complete("hello", temperature=1.0, max_tokens=15) for _ in range(2))
    assert first.params.seed != second.params.seed
    assert first.text != second.text
    assert llm.run("hello", temperature=1.0, max_tokens=15, seed=first.params.seed) == first.text


def test_choices_of_one_request_differ_and_the_first_is_that_of_a_single_one(llm: TransformersLLM) -> None:
    params = {"temperature": 1.5, "seed": 2, "max_tokens": 12}
    choices = llm.complete("hello", n=4, **params).choices
    assert len({choice.text for choice in choices}) == 4
    assert choices[0].text == llm.run("hello", **params)


@pytest.mark.parametrize("params", [{"num_beams": 3, "do_sample": True, "seed": 5}, {"temperature": 1.0, "seed": 5}])
def test_sampling_is_repeatable_and_leaves_the_global_generator_alone(
    llm: TransformersLLM, params: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tokens(llm, **params)
    torch.rand(5)
    again = torch.get_rng_state()
    assert tokens(llm, **params) == first
    assert torch.equal(torch.get_rng_state(), again)
    assert not torch.equal(before, again)
    assert tokens(llm, **{**params, "seed": 6}) != first


def test_beam_choices_are_the_best_beams_in_order(llm: TransformersLLM) -> None:
    choices = llm.complete("hello", num_beams=4, n=3, max_tokens=8).choices
    assert len({choice.token_ids for choice in choices}) == 3
    assert choices[0].token_ids == tokens(llm, "hello", num_beams=4, max_tokens=8)


def test_a_stop_string_ends_a_beam(llm: TransformersLLM) -> None:
    whole = llm.run(PROMPT, num_beams=3, max_tokens=12)
    stop = next(whole[i : i + 2] for i in range(2, len(whole)) if "\ufffd" not in whole[i : i + 2])
    text = llm.run(PROMPT, num_beams=3, max_tokens=12, stop_token=stop)
    assert stop not in text


def test_parameters_without_effect_are_listed_and_warned_about_once(model_folder: Any) -> None:
    with TransformersLLM(str(model_folder())) as llm:
        with pytest.warns(InertParameterWarning, match="length_penalty has no effect"):
            completion = llm.complete(PROMPT, max_tokens=2, length_penalty=2.0)
        assert completion.inert == ("length_penalty",)
        assert llm.complete(PROMPT, max_tokens=2, length_penalty=2.0).inert == ("length_penalty",)


# --- streams, threads, cancelling -----------------------------------------------------------------------------------


def test_a_stream_arrives_while_it_is_generated(llm: TransformersLLM, forwards: Any) -> None:
    stream = llm.stream(PROMPT, max_tokens=60)
    next(stream)
    forwards.gate.clear()
    stream.close()
    forwards.gate.set()
    llm.run("x", max_tokens=1)
    assert forwards.n_calls < 60


def wait_for_first(forwards: Any) -> None:
    assert forwards.first.wait(60)


@pytest.mark.parametrize("params", [{}, {"num_beams": 3}], ids=["rows", "beams"])
def test_cancelling_arun_ends_the_generation(llm: TransformersLLM, forwards: Any, params: dict[str, Any]) -> None:
    forwards.gate.clear()

    async def main() -> None:
        call = asyncio.create_task(llm.arun(PROMPT, max_tokens=90, **params))
        await asyncio.to_thread(wait_for_first, forwards)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        forwards.gate.set()

    asyncio.run(main())
    llm.run("x", max_tokens=1)
    assert forwards.n_calls < 60


def test_the_event_loop_stays_free_while_a_model_generates(llm: TransformersLLM, forwards: Any) -> None:
    """The model waits for a gate that only the event loop opens."""
    forwards.gate.clear()

    async def main() -> str:
        call = asyncio.create_task(llm.arun(PROMPT, max_tokens=3))
        await asyncio.to_thread(wait_for_first, forwards)
        forwards.gate.set()
        return await call

    assert asyncio.run(main()) == llm.run(PROMPT, max_tokens=3)


def test_many_threads_get_the_texts_that_each_gets_alone(llm: TransformersLLM) -> None:
    tasks = [f"task number {n}" for n in range(8)]
    expected = [llm.run(task, max_tokens=8) for task in tasks]
    texts: dict[int, str] = {}

    def work(n: int) -> None:
        texts[n] = llm.run(tasks[n], max_tokens=8)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[n] for n in range(8)] == expected


def test_a_failure_of_the_model_is_an_error_of_the_call_and_of_no_other(llm: TransformersLLM) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken layer")

    handle = llm.model.register_forward_pre_hook(fail)
    with handle, pytest.raises(GenerationError, match="broken layer"):
        llm.run("x")
    assert llm.run("x", max_tokens=2)


def test_out_of_memory_passes_through(llm: TransformersLLM) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    handle = llm.model.register_forward_pre_hook(fail)
    with handle, pytest.raises(MemoryError):
        llm.run("x")
    assert llm.run("x", max_tokens=2)


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id", "eos_token_id"])
def test_a_token_that_the_vocabulary_does_not_have_is_refused(llm: TransformersLLM, name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be below the vocabulary's size of 320, got 5000"):
        llm.batch_run(["x", "longer"], max_tokens=2, **{name: 5000})


def test_decoder_start_tokens_do_not_mix_in_a_batch(loaded: Any) -> None:
    requests = [Request("hello", GenerationParams(max_tokens=6, bos_token_id=bos)) for bos in (5, 200)]
    llm = loaded("t5")
    together = llm.complete_batch(requests)
    assert [c.text for c in together] == [llm.complete_batch([request])[0].text for request in requests]
    assert together[0].text != together[1].text


# --- the model's own generation config ------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [-1, 5000])
def test_a_pad_token_that_a_model_has_no_embedding_for_is_replaced(
    tmp_path: Path, llm: TransformersLLM, pad: int
) -> None:
    tasks = ["x", "a longer one"]
    with with_config(tmp_path, pad_token_id=pad) as own:
        assert own.batch_run(tasks, max_tokens=5) == llm.batch_run(tasks, max_tokens=5)


def with_config(folder: Path, family: str = "llama", **entries: Any) -> TransformersLLM:
    return TransformersLLM(str(tiny_models.build(folder, family, generation=entries)))


@pytest.mark.parametrize(
    ("entries", "params"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
        ({"do_sample": True, "top_k": 3, "min_p": 0.1}, {"top_k": 3, "min_p": 0.1}),
        ({"do_sample": True, "typical_p": 0.5}, {"typical_p": 0.5}),
        ({"num_beams": 3, "length_penalty": 0.2}, {"num_beams": 3, "length_penalty": 0.2}),
        ({"repetition_penalty": 3.0}, {"repetition_penalty": 3.0}),
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
    ],
    ids=str,
)
def test_a_models_own_settings_are_defaults(
    tmp_path: Path, llm: TransformersLLM, entries: dict[str, Any], params: dict[str, Any]
) -> None:
    with with_config(tmp_path, **entries) as own:
        limit = {} if "max_tokens" in params else {"max_tokens": 12}
        assert own.run(PROMPT, seed=4, **limit) == llm.run(PROMPT, seed=4, **params, **limit)
        overridden = {"temperature": 0, "num_beams": 1, "repetition_penalty": 1.0, "max_tokens": 12}
        assert own.complete(PROMPT, **overridden).text == llm.run(PROMPT, max_tokens=12)


def test_a_models_max_length_counts_its_prompt(tmp_path: Path) -> None:
    with with_config(tmp_path, max_length=40) as llm:
        usage = llm.complete(PROMPT).usage
        assert usage.total_tokens == 40
        assert llm.complete(PROMPT, max_tokens=30).usage.completion_tokens == 30


def test_a_models_stop_strings_and_eos_tokens_end_its_texts(tmp_path: Path, llm: TransformersLLM) -> None:
    whole = llm.complete(PROMPT, max_tokens=12).choices[0]
    with with_config(tmp_path / "a", eos_token_id=[2, whole.token_ids[4]]) as own:
        assert own.complete(PROMPT, max_tokens=12).choices[0].finish_reason == "stop"
    stop = next(c for c in whole.text[2:] if c != "\ufffd")
    with with_config(tmp_path / "b", stop_strings=[stop]) as own:
        assert own.run(PROMPT, max_tokens=12) == whole.text[: whole.text.index(stop)]


@pytest.mark.parametrize("beams", [1, 2])
def test_what_llmkit_has_no_name_for_is_left_to_generate(tmp_path: Path, llm: TransformersLLM, beams: int) -> None:
    banned = tokens(llm, max_tokens=8, num_beams=beams)[0]
    with with_config(tmp_path / "suppress", suppress_tokens=[banned]) as own:
        assert banned not in tokens(own, num_beams=beams)
    with with_config(tmp_path / "ngram", no_repeat_ngram_size=1) as own:
        ids = tokens(own, max_tokens=40, num_beams=beams)
        assert len(set(ids)) == len(ids)
        assert own.batch_run(["hello", PROMPT], max_tokens=9) == [own.run(t, max_tokens=9) for t in ("hello", PROMPT)]


def test_a_forced_first_token_is_forced(tmp_path: Path) -> None:
    with with_config(tmp_path, "bart", forced_bos_token_id=77) as own:
        assert tokens(own)[0] == tokens(own, num_beams=2)[0] == 77


def test_a_forced_last_token_is_forced_on_each_row_of_a_batch(tmp_path: Path) -> None:
    with with_config(tmp_path, "bart", forced_eos_token_id=2) as own:
        requests = [Request("hello", GenerationParams(max_tokens=n)) for n in (4, 9)]
        assert [c.choices[0].token_ids[-1] for c in own.complete_batch(requests)] == [2, 2]


@pytest.mark.parametrize("params", [{}, {"num_beams": 2}])
def test_outputs_that_a_config_asks_for_do_no_harm(
    tmp_path: Path, llm: TransformersLLM, params: dict[str, Any]
) -> None:
    with with_config(tmp_path, return_dict_in_generate=True, output_scores=True) as own:
        assert tokens(own, **params) == tokens(llm, **params)


@pytest.mark.parametrize(
    "entries",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"token_healing": True},
        {"temperature": -1.0},
    ],
    ids=lambda entries: next(reversed(entries)),
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, entries: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(entries)):
        with_config(tmp_path, **entries)
