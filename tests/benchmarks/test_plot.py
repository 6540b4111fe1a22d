"""The plot is a picture whatever was measured, and rounds may draw new prompts before their sides run."""

import random

import pytest

from benchmarks.batches import few_shot_texts, ragged_texts
from benchmarks.measure import Row, interleaved
from benchmarks.plot import write_plot
from benchmarks.steps import BATCH_GROWTH

PNG = b"\x89PNG\r\n\x1a\n"
GROWTH = [Row(BATCH_GROWTH, f"{n} sequences, 128 tokens", "s", 0.01 * n, 0.01, 0.02, 5) for n in (1, 2, 4)]


@pytest.mark.parametrize("rows", [[], [Row("work", "ours / theirs", "x", 0.4, 0.3, 0.5, 5, 0.43), *GROWTH]])
def test_a_plot_is_written_of_what_there_is(rows: list[Row], tmp_path) -> None:
    write_plot(tmp_path / "new" / "plot.png", rows)
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(PNG)


def test_prompts_are_drawn_before_the_warm_up_and_before_each_round() -> None:
    calls: list[str] = []
    interleaved({"a": lambda: calls.append("a")}, 2, before=lambda: calls.append("draw"))
    assert calls == ["draw", "a"] * 3


@pytest.mark.parametrize(("make", "n_shared"), [(ragged_texts, 0), (few_shot_texts, 400)])
def test_rounds_have_the_same_lengths_and_other_texts(make, n_shared: int) -> None:
    draw = random.Random(1)
    (first, n_first), (second, n_second) = make(draw), make(draw)
    assert (list(map(len, first)), n_first) == (list(map(len, second)), n_second)
    assert not set(first) & set(second)
    assert len({text[:n_shared] for text in first}) == 1
