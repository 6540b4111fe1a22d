"""One step taken apart: how its time grows with sequences and history, what attention and sampling take, what is left.

These figures are of the runner alone: no queue, no text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.measure import Row, in_own_thread, interleaved, ratios, row
from benchmarks.random_llama import random_llama
from llmkit import GenerationParams
from llmkit.engine.runner import Slice
from llmkit_transformers.keys_values import SequenceBuffers
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.runner import ChoiceSampler, FlatRunner
from llmkit_transformers.sampling import Sampler

N_ROUNDS, N_STEPS = 7, 5
BATCHES, HISTORIES = (1, 2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024, 2000)
N_HISTORY, N_BESIDE = 128, 8
BATCH_GROWTH, HISTORY_GROWTH = "a step, by sequences", "a step, by history"
VOCABULARY, N_SAMPLED = 150_000, 16
SPREADS = (4, 8)  # nuclei of some hundred tokens, and of some dozen
KINDS: dict[str, tuple[str, ...]] = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_index_put_impl_"),
}


def growth() -> list[Row]:
    """Seconds of a decoding step with 1 to 64 sequences, and after 64 to 2,000 tokens."""
    with random_llama() as llm:
        sizes = {f"{n} sequences, {N_HISTORY} tokens": _step(llm.model, [N_HISTORY] * n, False) for n in BATCHES}
        modes = {f"{n} sequences, reproducible": _step(llm.model, [N_HISTORY] * n, True) for n in BATCHES}
        lone = {f"{n} tokens, alone": _step(llm.model, [n], False) for n in HISTORIES}
        beside = {f"{n} tokens, {N_BESIDE} sequences": _step(llm.model, [n] * N_BESIDE, False) for n in HISTORIES}
        by_batch, by_history = _seconds_each(sizes | modes), _seconds_each(lone | beside)
    return [
        *(row(BATCH_GROWTH, name, "s", seconds) for name, seconds in by_batch.items()),
        *(row(HISTORY_GROWTH, name, "s", seconds) for name, seconds in by_history.items()),
    ]


def _seconds_each(steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of one step, of several in a row: the first one in a thread pays for what the others find ready."""

    def repeated(step: Callable[[], object]) -> Callable[[], None]:
        def several() -> None:
            for _ in range(N_STEPS):
                step()

        return several

    seconds = interleaved({name: repeated(step) for name, step in steps.items()}, N_ROUNDS)
    return {name: [s / N_STEPS for s in measured] for name, measured in seconds.items()}


def shares() -> list[Row]:
    """Parts of a step with 64 sequences of 16 to 200 tokens; and top-p's part where the vocabulary is large."""
    with random_llama() as llm:
        lengths = random.Random(2)
        step = _step(llm.model, [lengths.randint(16, 200) for _ in range(64)], False)
        in_own_thread(step)
        found = [in_own_thread(lambda: _profiled(step)) for _ in range(N_ROUNDS)]
    rows = [row("a step of 64 sequences", f"share of {kind}", "x", [one[kind] for one in found]) for kind in found[0]]
    return [*rows, *_sampling()]


def _step(model: PreTrainedModel, histories: Sequence[int], reproducible: bool) -> Callable[[], object]:
    """A call that reads one more token of each sequence, always at the same place.

    It has a runner of its own: in a shared one, the sequences of another call would have to leave their tensors first.
    """
    runner, draw = FlatRunner(model), random.Random(5)
    kept: list[SequenceBuffers] = []
    for n in histories:
        kept.append(runner.new())
        prompt = Slice(kept[-1], [draw.randrange(8192) for _ in range(n)], 0, reproducible)
        in_own_thread(lambda prompt=prompt: runner.logits([prompt]))
    slices = [Slice(buffers, [7], n, reproducible) for buffers, n in zip(kept, histories, strict=True)]
    return lambda: runner.logits(slices)


def _profiled(step: Callable[[], object]) -> dict[str, float]:
    """Shares of the processor time by kind, in this thread; `outside torch` is Python's."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        step()
        elapsed_us = 1e6 * (time.perf_counter() - started)
    events: EventList = profiled.key_averages()
    in_torch = {event.key: event.self_cpu_time_total for event in events}
    shares = {kind: sum(in_torch.get(name, 0.0) for name in names) / elapsed_us for kind, names in KINDS.items()}
    whole = min(1.0, sum(in_torch.values()) / elapsed_us)
    return shares | {"other operations": whole - sum(shares.values()), "what is outside torch": 1 - whole}


def _sampling() -> list[Row]:
    """Choosing sixteen tokens with top-p from 150,000 each, beside the step that they are chosen in."""
    model, logits = in_own_thread(_large_vocabulary)
    step = _step(model, [N_HISTORY] * N_SAMPLED, False)
    params = GenerationParams(do_sample=True, temperature=1.0, top_p=0.9, seed=1)

    def sampling(scale: int) -> Callable[[], object]:
        rows = in_own_thread(lambda: scale * logits)
        return lambda: [ChoiceSampler(Sampler(params, 0, GenerationConfig()), ()).choose(one, 0) for one in rows]

    sides = {f"logits of standard deviation {scale}": sampling(scale) for scale in SPREADS}
    seconds = _seconds_each({"step": step, **sides})
    workload = f"top-p of {N_SAMPLED} sequences, vocabulary {VOCABULARY:,}"
    return [
        *(row(workload, f"choosing, {name}", "s", seconds[name]) for name in sides),
        *(row(workload, f"choosing / the step, {name}", "x", ratios(seconds[name], seconds["step"])) for name in sides),
    ]


def _large_vocabulary() -> tuple[LlamaForCausalLM, torch.Tensor]:
    """A random model, and logits for the sequences of a step."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=4, **shape)).eval()
    make_switchable(model)
    return model, torch.randn(N_SAMPLED, VOCABULARY)
