"""The arithmetic behind the benchmarks' figures, and the forms in which they are reported."""

import json

import pytest

from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.report import BEGIN, END, write_json, write_page

ROWS = [Row("work", "figure", "x", 1.0, 0.9, 1.1, 5, 1.03), Row("work", "other", "s", 2.0, 1.0, 3.0, 5)]
FACTS = {"cores": 2, "load_1min_before": 0.1}


def test_a_row_has_the_median_and_the_quartiles() -> None:
    assert row("work", "figure", "s", [5.0, 1.0, 2.0, 4.0, 3.0], 3.0) == Row(
        "work", "figure", "s", 3.0, 2.0, 4.0, 5, 3.0
    )


@pytest.mark.parametrize(("limit", "kept"), [(None, None), (1.0, True), (0.99, False)])
def test_a_limit_is_the_most_that_the_median_may_be(limit: float | None, kept: bool | None) -> None:
    assert Row("work", "figure", "x", 1.0, 0.9, 1.1, 5, limit).keeps_limit is kept


def test_rounds_are_interleaved_in_changing_order_after_a_warm_up() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, n_rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_the_json_file_has_every_row_and_the_machine(tmp_path) -> None:
    write_json(tmp_path / "new" / "results.json", ROWS, FACTS)
    document = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert document["machine"] == FACTS
    assert [(r["median"], r["keeps_limit"]) for r in document["rows"]] == [(1.0, True), (2.0, None)]


def test_only_the_figures_of_the_page_are_replaced(tmp_path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_page(page, ROWS, FACTS)
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"before\n{BEGIN}\n\n| workload |")
    assert "| work | figure | 1 x | 0.9 to 1.1 | 5 | 1.03 x | kept |" in written
    assert "old" not in written
    assert written.endswith(f"- load 1min before: 0.1\n\n{END}\nafter\n")
