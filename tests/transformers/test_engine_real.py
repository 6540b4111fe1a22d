"""The engine over the real runner: the right distribution, the right tokens under any budget, nothing left behind."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmkit import GenerationParams
from llmkit.engine.engine import Engine
from llmkit.engine.sequence import Delta, EngineRequest, Failure
from llmkit.engine.worker import EngineWorker
from llmkit.errors import GenerationError
from llmkit.text import OutputText
from llmkit_transformers.keys_values import SequenceBuffers
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.proof import why_not_flat
from llmkit_transformers.runner import ChoiceSampler
from llmkit_transformers.sampling import Sampler
from llmkit_transformers.self_test import self_test
from tests.transformers.company import Company
from tests.transformers.flat_models import FLAT, built, runner_of, usual
from tests.transformers.test_flat_steps import generated, prompts

MUCH = 1 << 28
GREEDY = GenerationParams(do_sample=False)


def tiny(**more: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return built(LlamaConfig(**usual(**sizes, **more)))


def request(
    prompt: Sequence[int],
    params: GenerationParams = GREEDY,
    *,
    n: int = 1,
    max_tokens: int = 4,
    reproducible: bool = False,
) -> EngineRequest:
    samplers = [ChoiceSampler(Sampler(params, choice), prompt) for choice in range(n)]
    outputs = [OutputText(lambda ids: " ".join(map(str, ids)), max_tokens=max_tokens) for _ in range(n)]
    return EngineRequest(tuple(prompt), samplers, outputs, reproducible, max_tokens)


def tokens_of(engine: Engine, requests: Sequence[EngineRequest]) -> list[list[int]]:
    """The first choice's tokens of each request, in their order."""
    found: dict[EngineRequest, list[int]] = {one: [] for one in requests}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, Delta)
            found[event.request].append(event.token_id)
    return list(found.values())


# --- the right tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FLAT)
def test_greedy_tokens_are_those_of_generate_under_any_budget(family: str) -> None:
    draw, model, tasks = random.Random(family), built(FLAT[family]()), prompts(6, 60, seed=4)
    model.generation_config.eos_token_id = None
    lengths = [draw.randint(1, 9) for _ in tasks]
    expected = [generated(model, task, n) for task, n in zip(tasks, lengths, strict=True)]
    for tokens_per_step, max_running in ((2, 1), (draw.randint(3, 40), 3), (512, 64)):
        engine = Engine(
            runner_of(model), kv_budget_bytes=MUCH, tokens_per_step=tokens_per_step, max_running=max_running
        )
        requests = [request(task, max_tokens=n) for task, n in zip(tasks, lengths, strict=True)]
        assert tokens_of(engine, requests) == expected
        engine.close()


# --- the right distribution -----------------------------------------------------------------------------------------

N_VOCAB, N_DRAWS, N_CHOICES = 24, 20_000, 50
PROMPT = (5, 9, 5, 13, 21, 7)
SAMPLERS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "temperature": ({"temperature": 1.7}, [TemperatureLogitsWarper(1.7)]),
    "top-k": ({"temperature": 1.0, "top_k": 6}, [TopKLogitsWarper(6)]),
    "top-p": ({"temperature": 1.3, "top_p": 0.8}, [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)]),
    "min-p": ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "typical-p": ({"temperature": 1.0, "typical_p": 0.7}, [TypicalLogitsWarper(0.7)]),
    "repetition": ({"temperature": 1.0, "repetition_penalty": 1.8}, [RepetitionPenaltyLogitsProcessor(1.8)]),
    "all": (
        {"temperature": 1.4, "top_k": 15, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(15),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ],
    ),
}


def chi_square(counts: Counter[int], probabilities: Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; tokens with few expected draws are counted as one."""
    n = sum(counts.values())
    expected = {token: n * float(p) for token, p in enumerate(probabilities)}
    rare = [token for token, often in expected.items() if often < 5]
    cells = [(counts[token], often) for token, often in expected.items() if often >= 5]
    cells.append((sum(counts[token] for token in rare), sum(expected[token] for token in rare)))
    statistic = sum((seen - often) ** 2 / often for seen, often in cells if often > 0)
    return statistic, sum(often > 0 for _, often in cells) - 1


def test_20_000_draws_follow_the_distribution_of_transformers_own_processors() -> None:
    """With other parameters in the same batch. The bound is five standard deviations of chi-square."""
    model = tiny(vocab_size=N_VOCAB)
    model.lm_head.weight.data.mul_(10)  # so that the filters have something to filter
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[:, -1].float()
    engine = Engine(runner_of(model), kv_budget_bytes=MUCH)
    each = -(-N_DRAWS // (len(SAMPLERS) * N_CHOICES))
    counts: dict[str, Counter[int]] = {name: Counter() for name in SAMPLERS}
    whose: dict[EngineRequest, str] = {}
    for seed in range(each):
        for name, (params, _) in SAMPLERS.items():
            one = request(PROMPT, GenerationParams(seed=seed, do_sample=True, **params), n=N_CHOICES, max_tokens=1)
            whose[one] = name
            engine.add(one)
    while engine.has_work:
        for event in engine.step():
            counts[whose[event.request]][event.token_id] += 1  # pyright: ignore[reportAttributeAccessIssue]
    engine.close()
    assert sum(sum(count.values()) for count in counts.values()) >= N_DRAWS
    for name, (_, processors) in SAMPLERS.items():
        scores = LogitsProcessorList(processors)(torch.tensor([PROMPT]), logits.clone())
        probabilities = torch.softmax(scores, dim=-1)[0].double()
        assert not any(counts[name][token] for token, p in enumerate(probabilities) if p == 0), name
        statistic, freedom = chi_square(counts[name], probabilities)
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (name, statistic, freedom)
        assert chi_square(counts[name], torch.softmax(logits * 3, dim=-1)[0])[0] > 10 * freedom, "it cannot fail"


def test_counted_penalties_follow_the_formula_for_each_choice_alone() -> None:
    """transformers has no frequency and presence penalties: OpenAI's formula, over the text so far."""
    model, params = (
        tiny(vocab_size=N_VOCAB),
        GenerationParams(do_sample=False, frequency_penalty=0.7, presence_penalty=0.4),
    )
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(12):
            logits = model(torch.tensor([[*PROMPT, *expected]])).logits[0, -1].float()
            for token, count in Counter(expected).items():
                logits[token] -= 0.7 * count + 0.4
            expected.append(int(logits.argmax()))
    engine = Engine(runner_of(model), kv_budget_bytes=MUCH)
    plain = request(PROMPT, max_tokens=12)
    assert tokens_of(engine, [request(PROMPT, params, max_tokens=12), plain])[0] == expected
    assert plain.outputs[0].token_ids != expected


# --- nothing left behind --------------------------------------------------------------------------------------------


def live_buffers() -> list[SequenceBuffers]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is SequenceBuffers and thing.n_bytes]


def test_2_000_requests_with_random_cancellations_leave_nothing_behind() -> None:
    model, draw, before = tiny(), random.Random(6), len(live_buffers())
    make_switchable(model)
    runner = runner_of(model)
    budget = runner.bytes_for(64) * 24
    engine = Engine(runner, kv_budget_bytes=budget, tokens_per_step=256, max_running=32)
    ended: Counter[str] = Counter()
    open_requests: dict[EngineRequest, int] = {}
    roots = prompts(8, 60, seed=9)
    for _ in range(2000):
        prompt = [*(draw.choice(roots) * 3)[: draw.choice([1, 5, 30, 64, 100])], draw.randrange(3, 300)]
        one = request(
            prompt, n=draw.choice([1, 1, 1, 2, 4]), max_tokens=draw.randint(1, 9), reproducible=draw.random() < 0.2
        )
        engine.add(one)
        open_requests[one] = one.n_choices
        if draw.random() < 0.3:
            cancelled = draw.choice(list(open_requests))
            engine.cancel(cancelled)
            del open_requests[cancelled]
            ended["cancelled"] += 1
        if draw.random() < 0.5:
            take(engine.step(), open_requests, ended)
    while engine.has_work:
        take(engine.step(), open_requests, ended)
        figures = engine.figures()
        assert figures.live_bytes + figures.promised_bytes + figures.cached_bytes <= budget
    assert not open_requests
    assert ended["whole"] + ended["cancelled"] == 2000
    assert ended["whole"] > 1000
    assert ended["cancelled"] > 300
    figures = engine.figures()
    assert (figures.running_sequences, figures.waiting_requests, figures.live_bytes, figures.promised_bytes) == (
        0,
        0,
        0,
        0,
    )
    assert figures.hit_requests > 100
    engine.close()
    del engine, runner
    assert len(live_buffers()) == before


def take(events: Sequence[Any], open_requests: dict[EngineRequest, int], ended: Counter[str]) -> None:
    for event in events:
        assert isinstance(event, Delta)
        if event.finish_reason is not None:
            open_requests[event.request] -= 1
            if not open_requests[event.request]:
                del open_requests[event.request]
                ended["whole"] += 1


class FailingOnce:
    """Makes a model raise in the middle of one forward pass, between two layers."""

    def __init__(self, model: PreTrainedModel, at_call: int) -> None:
        self.n_left = at_call
        self._hook = model.model.layers[1].register_forward_pre_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise RuntimeError("a layer broke")


def test_a_model_that_raises_in_the_middle_fails_the_requests_of_that_step_alone() -> None:
    model = built(FLAT["llama"]())
    engine = Engine(runner_of(model), kv_budget_bytes=MUCH, max_running=3)
    tasks = prompts(7, 30, seed=8)
    expected = tokens_of(engine, [request(task, max_tokens=5) for task in tasks])
    requests = [request(task, max_tokens=5) for task in tasks]
    for one in requests:
        engine.add(one)
    failing, failed, whole = FailingOnce(model, at_call=3), set[EngineRequest](), dict[EngineRequest, list[int]]()
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failure):
                failed.add(event.request)
                assert isinstance(event.error, GenerationError)
                assert "RuntimeError: a layer broke" in str(event.error)
            else:
                whole.setdefault(event.request, []).append(event.token_id)
    assert failing.n_left < 0
    assert failed == set(requests[:3])
    assert [whole[one] for one in requests[3:]] == expected[3:]
    assert engine.figures().live_bytes == 0
    assert tokens_of(engine, [request(task, max_tokens=5) for task in tasks]) == expected
    engine.close()


def test_dropped_readers_and_a_closed_worker_leave_nothing_behind() -> None:
    model, before = tiny(), len(live_buffers())
    worker = EngineWorker(lambda: Engine(runner_of(model), kv_budget_bytes=MUCH))
    tickets = [worker.submit(request(prompt, max_tokens=100)) for prompt in prompts(12, 40, seed=3)]
    for ticket in tickets:
        next(ticket)
    del tickets, ticket
    worker.submit(request([5], max_tokens=1)).close()
    assert worker.run_in_thread(lambda: worker.figures.running_sequences) <= 12
    worker.close()
    assert len(live_buffers()) == before


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gemma2", "gpt2"])
def test_greedy_tokens_on_a_gpu_are_those_on_the_processor(family: str) -> None:
    model, tasks = built(FLAT[family]()), prompts(6, 60, seed=4)
    on_cpu = tokens_of(Engine(runner_of(model), kv_budget_bytes=MUCH), [request(task) for task in tasks])
    model.to("cuda")
    assert why_not_flat(model) is None
    engine = Engine(runner_of(model), kv_budget_bytes=MUCH)
    assert tokens_of(engine, [request(task) for task in tasks]) == on_cpu
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_claim_on_a_gpu_holds_in_any_company(dtype: torch.dtype) -> None:
    model = built(FLAT["llama"]()).to("cuda", dtype)
    make_switchable(model)
    if self_test(model, runner_of(model)).problem:
        pytest.skip("the self-test makes no claim on this GPU, so there is nothing to hold")
    company = Company(model)
    company.compare(250)
    assert company.n_different == 0


@pytest.mark.gpu
def test_keys_and_values_on_a_gpu_are_freed() -> None:
    model = built(FLAT["llama"]()).to("cuda")
    runner = runner_of(model)
    runner.bytes_for(1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    engine = Engine(runner, kv_budget_bytes=MUCH)
    tokens_of(engine, [request(task, max_tokens=8) for task in prompts(20, 100, seed=1)])
    engine.close()
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 1 << 20
