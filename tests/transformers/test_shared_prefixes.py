"""Sequences that begin alike: one copy of the beginning for all, the same logits, and bits where bits are promised."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from llmkit.engine.engine import Engine
from llmkit.engine.runner import Slice
from llmkit.engine.sequence import Delta, EngineRequest
from llmkit_transformers.forks import Forks
from llmkit_transformers.keys_values import TILE, SequenceBuffers, capacity
from llmkit_transformers.runner import FlatRunner
from tests.transformers import flat_models
from tests.transformers.flat_models import runner_of
from tests.transformers.test_engine_real import MUCH, request, tokens_of
from tests.transformers.test_flat_steps import generated
from tests.transformers.test_keys_values import read, rows
from tests.transformers.test_stacking import CONFIGS, V, built

N_SHARED = 200
HAS_WINDOWS = ("mistral", "gemma2", "gemma3")


def tokens(n: int, draw: random.Random) -> list[int]:
    return [draw.randrange(V) for _ in range(n)]


def contents(buffers: SequenceBuffers, n_tokens: int) -> Tensor:
    """The keys of layer 0, `(2, n, 4)`, wherever they are."""
    own = buffers.of_layer(0)[0]
    whole = own if buffers.shared is None else torch.cat([buffers.shared.of_layer(0)[0], own], dim=1)
    return whole[:, :n_tokens]


# --- what is shared -------------------------------------------------------------------------------------------------


def test_those_that_begin_alike_share_one_copy_and_so_does_the_one_they_came_from() -> None:
    source, forks = read([300]), Forks()
    made = [forks.add(source, n) for n in (200, 210, 255)]
    assert forks.settle((), may_share=True) == made
    for one, n in zip(made, (200, 210, 255), strict=True):
        one.own()
        assert one.shared is not None
        assert one.shared is source.shared
        assert one.n_shared == 3 * TILE
        assert torch.equal(contents(one, n), rows(0, n))
        assert one.n_bytes == read([n]).n_bytes
        one.write(0, n - one.n_shared, rows(n, 70), -rows(n, 70))
        assert torch.equal(contents(one, n + 70), rows(0, n + 70))
        assert one.n_bytes == read([n + 70]).n_bytes
    assert torch.equal(contents(source, 300), rows(0, 300))
    assert source.n_bytes <= read([300]).n_bytes


def test_a_fork_of_a_fork_shares_with_the_others() -> None:
    source, forks = read([300]), Forks()
    first = forks.add(source, 200)
    second = forks.add(first, 199)
    forks.settle((), may_share=True)
    assert first.shared is not None
    assert first.shared is second.shared


@pytest.mark.parametrize("n_tokens", [1, 63, 127])
def test_a_short_beginning_is_not_worth_it(n_tokens: int) -> None:
    source, forks = read([300]), Forks()
    made = [forks.add(source, n_tokens) for _ in range(3)]
    forks.settle((), may_share=True)
    assert [one.shared for one in [source, *made]] == [None] * 4


def test_one_fork_by_itself_and_those_who_must_be_alone_get_their_own() -> None:
    source, forks = read([300]), Forks()
    made = [forks.add(source, n) for n in (200, 200, 140)]
    forks.settle({made[0]}, may_share=True)
    assert [one.shared for one in [source, *made]] == [None] * 4
    forks.clear()
    made = [forks.add(source, 200) for _ in range(3)]
    forks.settle((), may_share=False)
    assert [one.shared for one in [source, *made]] == [None] * 4


def test_what_a_source_has_lost_is_still_there_for_its_forks() -> None:
    for lose in (lambda s, forks: (s.truncate(150), forks.source_was_cut(s)), lambda s, forks: s.clear()):
        source, forks = read([300]), Forks()
        made = [forks.add(source, 256) for _ in range(2)]
        lose(source, forks)
        forks.settle((), may_share=True)
        for one in made:
            assert one.n_shared == 256
            assert torch.equal(contents(one, 256), rows(0, 256))
        assert source.shared is None


def test_settling_again_after_a_failure_changes_nothing() -> None:
    source, forks = read([300]), Forks()
    made = [forks.add(source, 256) for _ in range(2)]
    forks.settle((), may_share=True)
    shared = made[0].shared
    assert forks.settle((), may_share=True) == made
    assert (made[0].shared, made[1].shared, source.shared) == (shared, shared, shared)


@pytest.mark.parametrize("n_kept", [1, 64, 150, 192, 200, 260])
def test_a_sequence_that_shares_is_forked_cut_and_made_whole_like_any_other(n_kept: int) -> None:
    def sharing() -> SequenceBuffers:
        source, forks = read([300]), Forks()
        made, _ = (forks.add(source, 200) for _ in range(2))
        forks.settle((), may_share=True)
        made.own()
        made.write(0, 200 - made.n_shared, rows(200, 60), -rows(200, 60))
        return made

    shares = sharing()
    fork = shares.fork(n_kept)
    assert fork.n_shared == min(n_kept, 192) // TILE * TILE
    fork.own()
    assert torch.equal(contents(fork, n_kept), rows(0, n_kept))
    shares.truncate(n_kept)
    shares.write(0, n_kept - shares.n_shared, rows(900, 5), rows(900, 5))
    assert torch.equal(contents(shares, n_kept), rows(0, n_kept))
    assert shares.n_bytes <= read([max(n_kept + 5, 260)]).n_bytes
    whole = sharing()
    whole.unshare()
    assert whole.shared is None
    assert torch.equal(contents(whole, 260), rows(0, 260))
    assert whole.tensors[0].shape[1] == capacity(260)


def test_two_that_begin_with_the_same_part_of_what_is_shared_share_the_part() -> None:
    source, forks = read([400]), Forks()
    made = [forks.add(source, 384) for _ in range(2)]
    forks.settle((), may_share=True)
    parts = [one.fork(200) for one in made]
    assert parts[0].shared is parts[1].shared
    assert parts[0].n_shared == 192


# --- what comes of it -----------------------------------------------------------------------------------------------


def alone(runner: FlatRunner, prompt: list[int], new: list[int], *, reproducible: bool) -> list[Tensor]:
    """Logits after the prompt and after each new token."""
    kept = runner.new()
    found = [runner.logits([Slice(kept, prompt, 0, reproducible)])[0]]
    for at, token in enumerate(new):
        found.append(runner.logits([Slice(kept, [token], len(prompt) + at, reproducible)])[0])
    return found


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06), (torch.float16, 0.01)])
@pytest.mark.parametrize("config", ["grouped heads", "three query heads a key head", "one head each"])
def test_logits_are_those_of_a_sequence_that_read_all_itself(config: str, dtype: torch.dtype, error: float) -> None:
    draw, runner = random.Random(1), runner_of(built(CONFIGS[config](), dtype))
    source, beginning = runner.new(), tokens(N_SHARED, draw)
    runner.logits([Slice(source, [*beginning, 5], 0, False)])
    texts = [(tokens(draw.randint(1, 70), draw), tokens(5, draw)) for _ in range(7)]
    forks = [runner.fork(source, N_SHARED) for _ in texts]
    found = [runner.logits([Slice(f, p, N_SHARED, False) for f, (p, _) in zip(forks, texts, strict=True)])]
    for at in range(5):
        slices = [Slice(f, [new[at]], N_SHARED + len(p) + at, False) for f, (p, new) in zip(forks, texts, strict=True)]
        found.append(runner.logits(slices))
    assert {fork.n_shared for fork in forks} == {192}
    assert len({id(fork.shared) for fork in forks}) == 1
    for n, (prompt, new) in enumerate(texts):
        expected = alone(runner, [*beginning, *prompt], new, reproducible=False)
        for step, logits in zip(found, expected, strict=True):
            off = (step[n] - logits).float().abs().max() / logits.float().abs().max()
            assert off < error


def test_models_with_windows_or_softcaps_share_nothing() -> None:
    runner = runner_of(built(CONFIGS["windows and softcaps"]()))
    source = runner.new()
    runner.logits([Slice(source, tokens(300, random.Random(1)), 0, False)])
    forks = [runner.fork(source, 256) for _ in range(3)]
    runner.logits([Slice(fork, [1], 256, False) for fork in forks])
    assert [one.shared for one in [source, *forks]] == [None] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reproducible_bits_beside_sequences_that_share(dtype: torch.dtype) -> None:
    """Each is read alone first; then fast and reproducible forks of one source go on in one company."""
    draw, runner = random.Random(2), runner_of(built(CONFIGS["grouped heads"](), dtype))
    beginning = tokens(N_SHARED, draw)
    texts = [(tokens(draw.randint(1, 70), draw), tokens(6, draw)) for _ in range(10)]
    expected = [alone(runner, [*beginning, *prompt], new, reproducible=True) for prompt, new in texts]
    source = runner.new()
    runner.logits([Slice(source, [*beginning, 5], 0, True)])
    n_compared = 0
    for reproducible_ones in ({0, 3, 4}, set(range(10)), {9}):
        forks = [runner.fork(source, N_SHARED) for _ in texts]
        reading = [(*text, 0) for text in texts]
        for at in range(7):
            slices = [
                Slice(fork, prompt if at == 0 else [new[at - 1]], n_read(at, prompt), n in reproducible_ones)
                for n, (fork, (prompt, new, _)) in enumerate(zip(forks, reading, strict=True))
            ]
            order = draw.sample(range(len(slices)), len(slices))
            logits = dict(zip(order, runner.logits([slices[n] for n in order]), strict=True))
            for n in reproducible_ones:
                assert torch.equal(logits[n], expected[n][at])
                n_compared += 1
        sharing = {n for n, fork in enumerate(forks) if fork.shared is not None}
        assert sharing == (set(range(10)) - reproducible_ones if len(reproducible_ones) < 9 else set())
    assert n_compared == 14 * 7


def n_read(at: int, prompt: list[int]) -> int:
    return N_SHARED if at == 0 else N_SHARED + len(prompt) + at - 1


def test_a_source_that_came_to_share_goes_on_reproducibly() -> None:
    draw, runner = random.Random(3), runner_of(built(CONFIGS["grouped heads"]()))
    beginning, new = tokens(N_SHARED, draw), tokens(6, draw)
    expected = alone(runner, beginning, new, reproducible=True)
    source = runner.new()
    runner.logits([Slice(source, beginning, 0, True)])
    for fork in (forks := [runner.fork(source, N_SHARED) for _ in range(3)]):
        assert fork.shared is None
    runner.logits([Slice(fork, [1], N_SHARED, False) for fork in forks])
    assert source.shared is not None
    for at, token in enumerate(new):
        assert torch.equal(runner.logits([Slice(source, [token], N_SHARED + at, True)])[0], expected[at + 1])


def test_any_coming_and_going_leaves_the_logits_as_they_are() -> None:
    """Forks of forks, cuts and ends in random order, fast and reproducible, against each text read alone."""
    draw, runner = random.Random(4), runner_of(built(CONFIGS["grouped heads"]()))
    prompts = [tokens(420, draw) for _ in range(2)]
    exact = [alone(runner, prompt[:1], prompt[1:], reproducible=True) for prompt in prompts]
    live: list[tuple[SequenceBuffers, int, int, bool]] = []
    n_compared, most_sharing = 0, 0
    while n_compared < 1200:
        for n, (kept, which, at, reproducible) in enumerate(list(live)):
            fate = draw.random()
            if fate < 0.05:
                runner.free(kept)
                live[n] = (kept, which, -1, reproducible)
            elif fate < 0.1 and at > 1:
                cut = draw.randrange(1, at)
                runner.truncate(kept, cut)
                live[n] = (kept, which, cut, reproducible)
        live = [one for one in live if 0 <= one[2] < 420]
        for _ in range(draw.randint(0, 4)):
            sources = [one for one in live if one[2] > 130]
            if sources and len(live) < 20 and draw.random() < 0.8:
                source, which, at, was_reproducible = draw.choice(sources)
                n_kept = draw.randrange(120, at)
                forks = [runner.fork(source, n_kept) for _ in range(draw.randint(1, 4))]
                live += [(fork, which, n_kept, was_reproducible and draw.random() < 0.3) for fork in forks]
            elif len(live) < 20:
                live.append((runner.new(), draw.randrange(2), 0, draw.random() < 0.5))
        if not live:
            continue
        going = draw.sample(range(len(live)), draw.randint(1, len(live)))
        slices: list[Slice] = []
        for n in going:
            kept, which, at, reproducible = live[n]
            size = min(420 - at, draw.choice([1, 1, 1, 1, 3, 40, 150]))
            slices.append(Slice(kept, prompts[which][at : at + size], at, reproducible))
        found = runner.logits(slices)
        for n, piece, logits in zip(going, slices, found, strict=True):
            kept, which, at, reproducible = live[n]
            at += len(piece.token_ids)
            live[n] = (kept, which, at, reproducible)
            if reproducible:
                assert torch.equal(logits, exact[which][at - 1])
            else:
                torch.testing.assert_close(logits, exact[which][at - 1], rtol=1e-3, atol=1e-3)
            n_compared += 1
        most_sharing = max(most_sharing, sum(one[0].shared is not None for one in live))
    assert most_sharing >= 4


@pytest.mark.parametrize("family", flat_models.FLAT)
def test_greedy_tokens_of_prompts_that_begin_alike_are_those_of_generate(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, model = random.Random(family), flat_models.built(flat_models.FLAT[family]())
    model.generation_config.eos_token_id = None
    n_vocab = model.config.get_text_config().vocab_size
    beginning = [draw.randrange(3, n_vocab) for _ in range(150)]
    tasks = [[*beginning, *(draw.randrange(3, n_vocab) for _ in range(draw.randint(1, 30)))] for _ in range(6)]
    kinds: set[bool] = set()
    read_all = FlatRunner.logits

    def watched(self: FlatRunner, slices: list[Slice]) -> Tensor:
        found = read_all(self, slices)
        kinds.update(piece.keys_values.shared is not None for piece in slices)  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(FlatRunner, "logits", watched)
    engine = Engine(runner_of(model), kv_budget_bytes=MUCH)
    found = tokens_of(engine, [request(task, max_tokens=6) for task in tasks])
    again = tokens_of(engine, [request(task, max_tokens=6) for task in reversed(tasks)])
    figures = engine.figures()
    assert figures.cached_bytes <= figures.budget_bytes
    engine.close()
    assert found == [generated(model, task, 6) for task in tasks]
    assert again == found[::-1]
    assert kinds == ({False} if family in HAS_WINDOWS else {False, True})


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_holds_and_texts_are_right_while_some_share_and_some_are_cancelled(seed: int) -> None:
    draw, model = random.Random(seed), flat_models.built(flat_models.FLAT["llama"]())
    model.generation_config.eos_token_id = None
    beginnings = [[draw.randrange(3, flat_models.V) for _ in range(180)] for _ in range(2)]
    runner = runner_of(model)
    budget = runner.bytes_for(256) * (5, 9, 20)[seed]
    engine = Engine(runner, kv_budget_bytes=budget, tokens_per_step=draw.choice([64, 512]), max_running=8)
    todo: list[EngineRequest] = []
    for _ in range(40):
        prompt = draw.choice(beginnings)[: draw.choice([100, 130, 180])]
        prompt = [*prompt, *(draw.randrange(3, flat_models.V) for _ in range(draw.randint(1, 40)))]
        n, reproducible = draw.choice([1, 1, 1, 2, 4]), draw.random() < 0.3
        todo.append(request(prompt, max_tokens=draw.randint(1, 8), n=n, reproducible=reproducible))
    found: dict[EngineRequest, dict[int, list[int]]] = {}
    while todo or engine.has_work:
        for _ in range(min(len(todo), draw.randint(0, 4))):
            engine.add(todo[-1])
            found[todo.pop()] = {}
        for event in engine.step() if engine.has_work else ():
            assert isinstance(event, Delta)
            found[event.request].setdefault(event.choice, []).append(event.token_id)
        if found and draw.random() < 0.1:
            gone = draw.choice(list(found))
            engine.cancel(gone)
            del found[gone]
        figures = engine.figures()
        assert figures.live_bytes + figures.promised_bytes + figures.cached_bytes <= budget
        assert figures.promised_bytes >= 0
    engine.close()
    for one, texts in found.items():
        expected = generated(model, list(one.prompt_ids), one.max_tokens)
        assert texts == dict.fromkeys(range(one.n_choices), expected)
