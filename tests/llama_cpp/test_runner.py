"""Sequences as cells of one context: shared, cut and given back, and never more of them than llama.cpp tells apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
import pytest

from llmkit import GenerationParams
from llmkit.engine.runner import Slice
from llmkit_llama_cpp import LlamaCppLLM
from llmkit_llama_cpp.context import MAX_SEQUENCES, Context
from llmkit_llama_cpp.runner import CellRunner, Cells
from llmkit_llama_cpp.sampling import ChoiceSampler
from llmkit_llama_cpp.settings import Sizes

N_CELLS = 512
PROMPT = list(range(300, 340))


@pytest.fixture
def runner(llm: LlamaCppLLM) -> Iterator[CellRunner]:
    context = Context(llm._model, n_cells=N_CELLS, n_sequences=MAX_SEQUENCES, n_threads=1)
    one = CellRunner(context, Sizes(N_CELLS, N_CELLS, llm._model.cell_bytes), Lock())
    yield one
    one.close()


def read(runner: CellRunner, cells: Cells, tokens: Sequence[int], start: int) -> np.ndarray:
    """Logits after these tokens."""
    sampler = ChoiceSampler(GenerationParams(do_sample=False), 0, ())
    return runner._logits([Slice(cells, tokens, start, False, [sampler])])[0].copy()


def test_a_fork_goes_on_by_itself_and_its_source_stays(runner: CellRunner) -> None:
    source = runner.new()
    read(runner, source, PROMPT, 0)
    fork = runner.fork(source, 30)
    assert fork.n_tokens == 30
    expected = runner.new()
    other_end = list(range(400, 410))
    whole = read(runner, expected, PROMPT[:30] + other_end, 0)
    np.testing.assert_allclose(read(runner, fork, other_end, 30), whole, atol=2e-2)
    after = read(runner, source, [500], 40)
    fresh = runner.new()
    np.testing.assert_allclose(after, read(runner, fresh, [*PROMPT, 500], 0), atol=2e-2)


def test_cells_are_given_back(runner: CellRunner) -> None:
    for _ in range(MAX_SEQUENCES + 5):
        cells = runner.new()
        read(runner, cells, PROMPT[:20], 0)
        runner.truncate(cells, 10)
        read(runner, cells, [7], 10)
        runner.free(cells)


def test_slices_of_many_sequences_are_read_together(runner: CellRunner) -> None:
    sampler = ChoiceSampler(GenerationParams(do_sample=False), 0, ())
    one, two, three = runner.new(), runner.new(), runner.new()
    slices = [
        Slice(one, PROMPT, 0, False, [sampler]),
        Slice(two, PROMPT[:5], 0, False),
        Slice(three, [3], 0, False, [sampler] * 2),
    ]
    first, none, twice = runner.step(slices)
    assert (len(first), none, len(twice)) == (1, [], 2)
    assert first == [int(read(runner, runner.new(), PROMPT, 0).argmax())]
    assert [cells.n_tokens for cells in (one, two, three)] == [40, 5, 1]


@pytest.mark.parametrize("n_cells", [256, 16_384, 32_768, 131_072, 1_000_192])
def test_the_budget_holds_no_more_sequences_than_there_are_numbers(n_cells: int) -> None:
    sizes = Sizes(n_cells, n_cells, 10)
    runner = CellRunner(None, sizes, Lock())  # type: ignore[arg-type]
    assert sizes.n_bytes // runner.bytes_for(1) <= MAX_SEQUENCES
    assert runner.bytes_for(n_cells) <= sizes.n_bytes + runner.bytes_for(1)
    assert runner.new().n_bytes == runner.bytes_for(0) == runner.bytes_for(64)
