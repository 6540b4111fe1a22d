"""The reference page of the parameters says what the code says."""

import re

import pytest

from llmkit.capabilities import ALL_PARAMS, Capabilities
from llmkit.params import SPECS
from tools import parameter_table

BACKENDS = {"all": Capabilities(params=ALL_PARAMS), "few": Capabilities(params=frozenset({"seed"}))}


def rows() -> dict[str, list[str]]:
    """Cells of each row by the parameter's name; a `|` inside a cell is escaped."""
    lines = parameter_table.table(BACKENDS).splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_parameter_has_a_row_with_all_columns() -> None:
    assert list(rows()) == list(SPECS)
    assert {len(row) for row in rows().values()} == {3 + len(BACKENDS)}


def test_every_alias_is_named_in_its_row() -> None:
    for name, spec in SPECS.items():
        assert all(f"`{alias}`" in rows()[name][0] for alias in spec.aliases)


def test_support_is_what_each_backend_declares() -> None:
    assert {name: row[3:] for name, row in rows().items()} == {
        name: ["yes", "yes" if name == "seed" else "no"] for name in SPECS
    }


def test_a_backends_page_has_a_row_for_each_parameter_and_feature() -> None:
    lines = [line.split(" | ") for line in parameter_table.support_table(BACKENDS).splitlines()]
    support = {cells[0].strip("| `"): [cell.strip(" |") for cell in cells[1:]] for cells in lines}
    assert support.keys() >= {*SPECS, "tools", "structured output", "streaming", "reproducible"}
    assert (support["seed"], support["top_k"]) == (["yes", "yes"], ["yes", "no"])


def test_the_openai_page_has_a_column_for_each_kind_of_server() -> None:
    pytest.importorskip("httpx")
    columns = parameter_table.columns("openai")
    assert "top_k" in columns["vllm"].params
    assert "top_k" not in columns["generic"].params


def test_each_shipped_backend_has_a_page_with_its_table_and_others_have_none() -> None:
    pytest.importorskip("torch")
    pages = {path.stem: path.read_text(encoding="utf-8") for path in parameter_table.tables()}
    assert pages.keys() == {"parameters", "llama-cpp", "openai", "transformers"}
    assert all(parameter_table.BEGIN in page and parameter_table.END in page for page in pages.values())


def test_only_the_table_of_the_page_is_replaced() -> None:
    page = f"before\n{parameter_table.BEGIN}\nold\n{parameter_table.END}\nafter\n"
    fresh = parameter_table.with_table(page, "| new |\n")
    assert fresh == f"before\n{parameter_table.BEGIN}\n\n| new |\n\n{parameter_table.END}\nafter\n"
    assert parameter_table.with_table(fresh, "| new |\n") == fresh


def test_check_passes_on_the_committed_page_and_names_the_command_on_a_stale_one(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torch")
    assert parameter_table.main(["--check"]) is None
    stale = tmp_path / "parameters.md"
    stale.write_text(f"{parameter_table.BEGIN}\n{parameter_table.END}\n", encoding="utf-8")
    monkeypatch.setattr(parameter_table, "PATH", stale)
    assert "run: python -m tools.parameter_table" in str(parameter_table.main(["--check"]))
    assert parameter_table.main([]) is None
    assert parameter_table.main(["--check"]) is None
