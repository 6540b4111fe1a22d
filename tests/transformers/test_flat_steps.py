"""Flat steps on the families of the engine: the right tokens, and none for models that they would get wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmkit.engine.runner import Slice
from llmkit_transformers.numerics import make_switchable
from llmkit_transformers.proof import why_not_flat
from tests.transformers.flat_models import FLAT, NOT_FLAT, UNUSUAL, V, built, runner_of


def prompts(n: int, longest: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, V) for _ in range(draw.randint(3, longest))] for _ in range(n)]


def greedy(model: PreTrainedModel, tasks: list[list[int]], n_new: int, draw: random.Random) -> list[list[int]]:
    """Greedy tokens by flat steps of random cuts, all sequences side by side."""
    runner = runner_of(model)
    kept, read, texts = [runner.new() for _ in tasks], [0] * len(tasks), [list(task) for task in tasks]
    while any(len(text) < len(task) + n_new for text, task in zip(texts, tasks, strict=True)):
        rows = [i for i, task in enumerate(tasks) if len(texts[i]) < len(task) + n_new]
        rows = draw.sample(rows, draw.randint(1, len(rows)))
        cuts = [min(len(texts[i]), read[i] + draw.randint(1, 40)) for i in rows]
        logits = runner.logits(
            [Slice(kept[i], texts[i][read[i] : cut], read[i], False) for i, cut in zip(rows, cuts, strict=True)]
        )
        for i, cut, row in zip(rows, cuts, logits, strict=True):
            read[i] = cut
            if cut == len(texts[i]):
                texts[i].append(int(row.argmax()))
    return [text[len(task) :] for text, task in zip(texts, tasks, strict=True)]


def generated(model: PreTrainedModel, task: list[int], n_new: int) -> list[int]:
    mask = torch.ones(1, len(task), dtype=torch.long)
    ids = model.generate(torch.tensor([task]), attention_mask=mask, do_sample=False, max_new_tokens=n_new)
    return ids[0, len(task) :].tolist()


@pytest.mark.parametrize("family", [*FLAT, *UNUSUAL])
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model, tasks = built((FLAT | UNUSUAL)[family]()), prompts(5, 70, seed=1)
    assert why_not_flat(model) is None
    model.generation_config.eos_token_id = None
    expected = [generated(model, task, 8) for task in tasks]
    assert greedy(model, tasks, 8, random.Random(2)) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize(
    ("family", "ignored"),
    [
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"sliding_window": 256}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 256}),
    ],
    ids=str,
)
def test_windows_and_softcaps_change_the_tokens_if_they_are_ignored(family: str, ignored: dict[str, Any]) -> None:
    """So the comparison with `generate` would notice."""
    config, tasks = FLAT[family](), prompts(5, 70, seed=1)
    with_it = greedy(built(config), tasks, 8, random.Random(2))
    changed = config.from_dict({**config.to_dict(), **ignored})
    assert greedy(built(changed), tasks, 8, random.Random(2)) != with_it


@pytest.mark.parametrize("family", NOT_FLAT)
def test_a_model_that_a_flat_step_would_get_wrong_is_refused_with_the_reason(family: str) -> None:
    config, reason = NOT_FLAT[family]
    assert reason in (why_not_flat(built(config())) or "")


@pytest.mark.parametrize("broken", ["window", "softcap"])
def test_the_dry_run_notices_a_window_or_a_softcap_that_is_ignored(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is tried on an attention function that ignores what the model passes."""
    from transformers import AttentionInterface

    from llmkit_transformers import flat_attention

    def ignoring(*tensors: Any, **given: Any) -> Any:
        given["softcap" if broken == "softcap" else "sliding_window"] = None
        return flat_attention.flat_attention(*tensors, **given)

    model = built(FLAT["gemma2"]())
    monkeypatch.setitem(AttentionInterface._global_mapping, flat_attention.NAME, ignoring)
    assert why_not_flat(model) is not None


def test_layers_keep_their_names_and_fast_results_when_made_switchable() -> None:
    model, task = built(FLAT["llama"]()), torch.tensor([[5, 6, 7]])
    names = list(model.state_dict())
    with torch.inference_mode():
        before = model(task).logits
        make_switchable(model)
        assert torch.equal(model(task).logits, before)
    assert list(model.state_dict()) == names
