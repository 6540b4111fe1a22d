"""Whether attention by itself gives a row the same bits in any company, after more tokens than a model is tried on.

Products within attention are those of libraries that choose their ways by size, so it is tried with the very sizes that
a model has. It knows neither layers nor models.
"""

from __future__ import annotations

import random
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers.compute_threads import thread_counts, threads
from llmkit_transformers.flat_attention import flat_attention
from llmkit_transformers.flat_step import AttentionKind
from llmkit_transformers.keys_values import TILE
from llmkit_transformers.runner import FlatRunner

_N_TOKENS = 64
"""Different tokens of the trial."""

_N_READ = 8 * TILE
"""Tokens before those whose rows are compared: the fused kernel takes 512 keys at a time."""

_N_COMPARED = TILE + 6

_NEW_AND_OTHERS = ((1, 0), (2, 0), (3, 1), (1, 1), (5, 3), (1, 6), (17, 0), (64, 2), (1, 33))
"""How many tokens one sequence reads at once, and how many others read one beside it."""


class _OnlyAttention(nn.Module):
    """A model that is one call of attention: a token's query, key and value are random rows of tables."""

    def __init__(self, kind: AttentionKind, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.device, self.config = kind, device, SimpleNamespace(_attn_implementation="")
        draw = torch.Generator().manual_seed(0)
        sizes = ((kind.n_heads, kind.size), (kind.n_kv_heads, kind.size), (kind.n_kv_heads, kind.value_size))
        self.tables = [torch.randn(_N_TOKENS, *size, generator=draw).to(device, dtype) for size in sizes]

    def forward(self, *, input_ids: Tensor, logits_to_keep: Tensor, **others: object) -> Any:
        query, key, value = (table[input_ids[0]].transpose(0, 1)[None] for table in self.tables)
        kind = self.kind
        found = flat_attention(self, query, key, value, None, kind.scaling, kind.window, kind.softcap)[0]
        return SimpleNamespace(logits=found.flatten(2)[:, logits_to_keep])


def attention_is_independent(kind: AttentionKind, like: PreTrainedModel) -> bool:
    """Whether rows read beside others, or several at once, have the bits that each has alone.

    On a processor it is tried in float32 as well, for a narrow type's few bits hide most of what its products do.

    Args:
        kind: what is tried.
        like: on whose device, in whose type.
    """
    dtypes = {like.dtype, torch.float32} if like.device.type == "cpu" else {like.dtype}
    return all(_is_independent(_OnlyAttention(kind, like.device, dtype)) for dtype in dtypes)


def _is_independent(attention: _OnlyAttention) -> bool:
    runner = FlatRunner(cast("Any", attention))
    draw, last = random.Random(0), _N_READ + _N_COMPARED
    prompt = [draw.randrange(_N_TOKENS) for _ in range(last)]
    whole = runner.new()
    runner.logits([Slice(whole, prompt[:_N_READ], 0, True)])
    alone = {at: runner.logits([Slice(whole, [prompt[at]], at, True)])[0] for at in range(_N_READ, last)}

    def part(n_new: int) -> Slice:
        """So many tokens of the prompt, whose last one is among those compared, behind all that come before."""
        end = draw.randint(max(_N_READ, n_new) + 1, last)
        return Slice(runner.fork(whole, end - n_new), prompt[end - n_new : end], end - n_new, True)

    for n_threads, (n_new, n_others) in product(thread_counts(), _NEW_AND_OTHERS):
        parts = [part(n_new), *(part(1) for _ in range(n_others))]
        with threads(n_threads):
            found = runner.logits(parts)
        expected = torch.stack([alone[one.start + len(one.token_ids) - 1] for one in parts])
        if not torch.equal(found, expected):
            return False
        for one in parts:
            runner.free(one.keys_values)
    return True
