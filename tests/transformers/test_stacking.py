"""Sequences that decode side by side in one tensor: their keys and values, their bits, and the memory they leave."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers.keys_values import TILE, SequenceBuffers, whole_tiles
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.runner import FlatRunner
from llmkit_transformers.stacks import Stack, Stacks

V, N_NEW = 200, 6
SHAPE = {"vocab_size": V, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "grouped heads": lambda: LlamaConfig(**SHAPE, num_key_value_heads=2, max_position_embeddings=512),
    "three query heads a key head": lambda: LlamaConfig(
        **SHAPE | {"hidden_size": 96, "num_attention_heads": 6}, num_key_value_heads=2, max_position_embeddings=512
    ),
    "one head each": lambda: GPT2Config(vocab_size=V, n_embd=64, n_layer=2, n_head=4, n_positions=512),
    "windows and softcaps": lambda: Gemma2Config(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=40,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
    ),
}


def built(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    model = model.to(dtype)
    make_switchable(model)
    return model


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass
class Text:
    """A sequence with the tokens that it is to read, and the logits after each when it reads them alone."""

    prompt: list[int]
    new: list[int]
    alone: list[Tensor]


def text_alone(runner: FlatRunner, n_prompt: int, draw: random.Random, reproducible: bool) -> Text:
    tokens = [draw.randrange(V) for _ in range(n_prompt + N_NEW)]
    kept = runner.new()
    runner.logits([Slice(kept, tokens[:n_prompt], 0, reproducible)])
    alone = [
        runner.logits([Slice(kept, [token], n_prompt + at, reproducible)])[0]
        for at, token in enumerate(tokens[n_prompt:])
    ]
    return Text(tokens[:n_prompt], tokens[n_prompt:], alone)


def side_by_side(
    runner: FlatRunner, texts: list[Text], draw: random.Random, reproducible: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits found and expected, while the texts go on in random company: some rest, come back, end, or begin."""
    kept = {id(text): runner.new() for text in texts}
    n_read = {id(text): 0 for text in texts}
    going = list(texts)
    while going:
        step = draw.sample(going, draw.randint(1, len(going)))
        torch.set_num_threads(draw.choice([1, 2, 3, 4, 6, 8]))
        found = runner.logits([_next_slice(kept[id(t)], t, n_read[id(t)], reproducible) for t in step])
        for text, logits in zip(step, found, strict=True):
            at = n_read[id(text)] - len(text.prompt)
            if at >= 0:
                yield logits, text.alone[at]
            n_read[id(text)] += 1 if at >= 0 else len(text.prompt)
            if n_read[id(text)] == len(text.prompt) + N_NEW:
                going.remove(text)
                if draw.random() < 0.5:
                    runner.free(kept[id(text)])


def _next_slice(buffers: SequenceBuffers, text: Text, n_read: int, reproducible: bool) -> Slice:
    at = n_read - len(text.prompt)
    return Slice(buffers, text.prompt if at < 0 else [text.new[at]], n_read, reproducible)


def texts_of_equal_and_other_lengths(runner: FlatRunner, n: int, draw: random.Random, reproducible: bool) -> list[Text]:
    """Most cross from a tile to the next within their new tokens, some begin with a single token."""
    lengths = [draw.choice([1, 5, 20, 60, 61, 63, 64, 124, 126, 130]) for _ in range(n)]
    return [text_alone(runner, length, draw, reproducible) for length in lengths]


@pytest.mark.usefixtures("any_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS)
def test_reproducible_bits_do_not_depend_on_who_stands_beside(config: str, dtype: torch.dtype) -> None:
    runner, draw = FlatRunner(built(CONFIGS[config](), dtype)), random.Random(3)
    texts = texts_of_equal_and_other_lengths(runner, 24, draw, reproducible=True)
    n_compared = n_different = 0
    for found, alone in side_by_side(runner, texts, draw, reproducible=True):
        n_compared += 1
        n_different += not torch.equal(found, alone)
    assert n_compared == 24 * N_NEW
    assert n_different == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_fast_logits_are_those_of_the_sequence_alone_up_to_rounding(config: str) -> None:
    runner, draw = FlatRunner(built(CONFIGS[config]())), random.Random(4)
    texts = texts_of_equal_and_other_lengths(runner, 12, draw, reproducible=False)
    for found, alone in side_by_side(runner, texts, draw, reproducible=False):
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3)


class Kept:
    """Sequences with recognisable contents, in and out of stacks."""

    def __init__(self) -> None:
        self.stacks = Stacks()
        self.lengths: dict[SequenceBuffers, int] = {}

    def add(self, number: int, n_tokens: int) -> SequenceBuffers:
        buffers, rows = SequenceBuffers(), torch.full((2, n_tokens, 4), float(number))
        for layer in range(2):
            buffers.write(layer, 0, rows + layer / 4, -rows - layer / 4)
        self.lengths[buffers] = n_tokens
        return buffers

    def fork(self, source: SequenceBuffers, n_tokens: int) -> SequenceBuffers:
        made = source.fork(n_tokens)
        self.lengths[made] = n_tokens
        return made

    def forget(self, buffers: SequenceBuffers, n_tokens: int) -> None:
        """Keep the first tokens only, and write something else behind them."""
        n_more = min(5, buffers.tensors[0].shape[1] - n_tokens)
        for layer in range(2):
            buffers.write(layer, n_tokens, torch.full((2, n_more, 4), 99.0), torch.full((2, n_more, 4), 99.0))
        self.lengths[buffers] = n_tokens

    def is_whole(self, buffers: SequenceBuffers, number: int) -> bool:
        n = self.lengths[buffers]
        return all(
            bool((tensor[:, :n] == sign * (number + layer / 4)).all()) and bool(tensor.isfinite().all())
            for layer in range(2)
            for sign, tensor in zip((1, -1), buffers.of_layer(layer), strict=True)
        )


def test_contents_survive_any_coming_and_going_and_slots_stay_dense() -> None:
    draw, kept = random.Random(6), Kept()
    numbers = {kept.add(number, draw.choice([3, 64, 100, 130])): number for number in range(30)}
    for _ in range(300):
        forks: list[SequenceBuffers] = []
        for source in draw.sample(list(numbers), draw.randint(0, 3) if len(numbers) < 40 else 0):
            forks.append(kept.fork(source, draw.randint(1, kept.lengths[source])))
            numbers[forks[-1]] = numbers[source]
            if draw.random() < 0.3:
                del numbers[source]
                kept.stacks.free(source)
        named = draw.sample(list(numbers), draw.randint(0, len(numbers)))
        ends = {buffers: draw.choice([kept.lengths[buffers], kept.lengths[buffers] + 1]) for buffers in named}
        stacks = kept.stacks.arrange(ends, forks)
        assert not any(fork.is_borrowed for fork in forks)
        for buffers in draw.sample(list(numbers), 3):
            kept.forget(buffers, draw.randint(1, kept.lengths[buffers]))
        for stack in stacks:
            assert all(
                member.stack is stack and whole_tiles(ends[member]) == stack.capacity for member in stack.members
            )
            n = len(stack.members)
            assert n <= len(stack.tensors[0]) <= n + n // 2 + 1
        assert sum(len(stack.members) for stack in stacks) == sum(buffers.stack is not None for buffers in numbers)
        assert all(kept.is_whole(buffers, number) for buffers, number in numbers.items())
        if len(numbers) > 12 and draw.random() < 0.5:
            gone = draw.choice(list(numbers))
            del numbers[gone]
            kept.stacks.free(gone)
            assert gone.n_bytes == 0


def test_two_of_equal_tiles_stack_and_one_alone_does_not() -> None:
    kept = Kept()
    one, two, other = kept.add(1, 10), kept.add(2, 50), kept.add(3, 70)
    (stack,) = kept.stacks.arrange({one: 11, two: 51, other: 71})
    assert (stack.members, stack.capacity, other.stack) == ([one, two], TILE, None)
    (stack,) = kept.stacks.arrange({one: 12})
    assert stack.members == [one]  # moving it out would cost more than it saves
    assert two.stack is None
    assert kept.stacks.arrange({}) == []


def test_a_stack_goes_with_its_last_member() -> None:
    kept = Kept()
    one, two = kept.add(1, 10), kept.add(2, 50)
    (stack,) = kept.stacks.arrange({one: 11, two: 51})
    gone = weakref.ref(stack)
    del stack
    kept.stacks.free(one)
    assert gone() is not None
    kept.stacks.free(two)
    gc.collect()
    assert gone() is None


def test_a_stack_that_cannot_grow_leaves_its_members_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    numbers = {kept.add(number, 10): number for number in range(6)}
    first = dict.fromkeys(list(numbers)[:2], 11)
    kept.stacks.arrange(first)
    replace, n_calls = Stack._replace, 0

    def out_of_memory(self: Stack, at: int, made: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise MemoryError
        replace(self, at, made)

    with monkeypatch.context() as patched:
        patched.setattr(Stack, "_replace", out_of_memory)
        with pytest.raises(MemoryError):
            kept.stacks.arrange(dict.fromkeys(numbers, 11))
    assert all(kept.is_whole(buffers, number) for buffers, number in numbers.items())
    (stack,) = kept.stacks.arrange(dict.fromkeys(numbers, 11))
    assert len(stack.members) == 6
    assert all(kept.is_whole(buffers, number) for buffers, number in numbers.items())
