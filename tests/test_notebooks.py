"""The notebook runs from the repository, offline, and computes what its text says; so did the stored one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools.notebooks import NOTEBOOKS, PLOTS, executed, plots

PATH = NOTEBOOKS / "text_generation.ipynb"
PLOTTED = {"plot-forms", "plot-throughput", "plot-ways", "plot-confusion"}
PNG = b"\x89PNG\r\n\x1a\n"
# Of the embedded model on held-out pairs; `tools/tiny/evaluate.py` measures it on all of them.
LEAST_ACCURACY = 0.8

FIGURES = """
import json

verdicts = [capital == known[country] for country, capital in zip(countries, capitals) if country in known]
print(json.dumps({
    "verdicts": verdicts, "contains": contains, "is_alone": is_alone, "throughput": throughput, "accuracy": accuracy,
    "same_texts": all(texts == texts_of[1] for texts in texts_of.values()), "n_pairs": len(labels), "right": right,
    "confusion": confusion, "labels": Counter(labels), "shown": [example.items for example in shown],
    "pairs": [pair.items for pair in pairs],
}))
"""


@pytest.fixture(scope="module")
def notebook() -> Any:
    return executed(PATH, more=FIGURES)


@pytest.fixture(scope="module")
def figures(notebook: Any) -> dict[str, Any]:
    return json.loads(notebook.cells[-1].outputs[0].text)


def printed(notebook: Any, cell_id: str, stream: str = "stdout") -> str:
    """What a cell wrote; a lone expression is not written."""
    [cell] = [cell for cell in notebook.cells if cell.id == cell_id]
    return "".join(output.text for output in cell.get("outputs", ()) if output.get("name") == stream)


@pytest.mark.slow
def test_no_cell_complains(notebook: Any) -> None:
    assert not any(printed(notebook, cell.id, "stderr") for cell in notebook.cells)


@pytest.mark.slow
def test_texts_are_shown_live(notebook: Any) -> None:
    assert printed(notebook, "five-lines").strip() == "Paris"
    numbers = [line.partition("]")[0] for line in printed(notebook, "live").splitlines()]
    assert sorted(numbers) == ["[1/4", "[2/4", "[3/4", "[4/4"]


@pytest.mark.slow
def test_capitals_are_right_in_the_form_that_was_trained_and_not_in_any_form(figures: dict[str, Any]) -> None:
    assert figures["is_alone"]["... after an example"] >= 0.95
    assert figures["contains"]["a bare question"] >= 0.95
    assert figures["is_alone"]["a bare question"] == 0
    assert figures["is_alone"]["... and a space"] < 0.5


@pytest.mark.slow
def test_the_countries_that_the_model_lists_have_the_right_capitals(figures: dict[str, Any]) -> None:
    assert len(figures["verdicts"]) >= 20
    assert sum(figures["verdicts"]) >= 0.9 * len(figures["verdicts"])


@pytest.mark.slow
def test_micro_batches_change_the_time_and_no_text(figures: dict[str, Any]) -> None:
    assert figures["same_texts"] is True
    assert list(figures["throughput"]) == ["1", "2", "4", "8", "16", "32"]


@pytest.mark.slow
def test_entailment_works_in_the_trained_form_and_not_by_examples(figures: dict[str, Any]) -> None:
    accuracy = figures["accuracy"]
    assert accuracy["trained form alone"] >= LEAST_ACCURACY
    assert accuracy["in words"] <= accuracy["in words, 3 examples"] + 0.1 <= 0.5


@pytest.mark.slow
def test_the_accuracy_is_over_200_pairs_that_were_not_shown(figures: dict[str, Any]) -> None:
    assert figures["n_pairs"] == 200
    assert sorted(figures["labels"].values()) == [66, 67, 67]
    assert not [pair for pair in figures["shown"] if pair in figures["pairs"]]
    assert figures["right"] == 200 * figures["accuracy"]["trained form alone"]
    assert sum(map(sum, figures["confusion"])) == 200
    assert sum(row[at] for at, row in enumerate(figures["confusion"])) == figures["right"]


@pytest.mark.slow
def test_the_plots_are_there(notebook: Any) -> None:
    shown = plots(notebook)
    assert set(shown) == PLOTTED
    assert all(png.startswith(PNG) and len(png) > 5_000 for png in shown.values())


def test_the_stored_notebook_shows_a_whole_run() -> None:
    stored = nbformat.read(PATH, as_version=4)
    assert set(plots(stored)) == PLOTTED
    runs = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert runs == list(range(1, len(runs) + 1)), "run: python -m tools.notebooks"
    assert not any(printed(stored, cell.id, "stderr") for cell in stored.cells)


@pytest.mark.parametrize("name", sorted(PLOTTED))
def test_the_documentation_has_the_stored_plots(name: str) -> None:
    stored = plots(nbformat.read(PATH, as_version=4))[name]
    assert (PLOTS / f"{name}.png").read_bytes() == stored, "run: python -m tools.notebooks"


def test_a_cell_that_fails_fails_the_run(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "fails.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(path)
