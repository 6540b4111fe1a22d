from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llmkit.errors import InvalidRequest
from llmkit.training_data import Record, parse_record, read_rows

ROWS = [
    {"input": "Who are you?", "output": "My name is h2oGPT.", "prompt_type": "human_bot"},
    {"input": 'é, "quoted"\nand a second line', "output": "x", "prompt_type": "plain"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join('"' + v.replace('"', '""') + '"' for v in r.values()) for r in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    elif path.name == "list.json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["list.json", "lines.json", "data.jsonl", "data.csv", "data.parquet"])
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path / name, ROWS))) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"must end in \.json, \.jsonl, \.csv, \.parquet, got 'a.txt'"),
        ("a.json", "[{]", "a.json is not JSON"),
        ("a.json", "[3]", "row 0 must be an object, got 3"),
        ("a.jsonl", '{"input": "x"}\n{"input"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1 must be an object, got \[1\]"),
        ("a.csv", "input,output\nx\n", "row 0 has more or fewer cells"),
        ("a.csv", "input,output\nx,y,z\n", "row 0 has more or fewer cells"),
    ],
)
def test_a_malformed_file_is_refused_and_says_where(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        list(read_rows(tmp_path / name))


def test_missing_columns_are_empty_and_others_are_left() -> None:
    assert parse_record({"input": "a", "id": 7}) == Record("", "a", "")
    assert parse_record({"output": "a", "input": None}) == Record("", "", "a")


def test_columns_are_renamed() -> None:
    names = {"A": "input", "B": "output", "style": "prompt_type"}
    row = {"A": "a", "B": "b", "style": "human_bot"}
    assert parse_record(row, names) == Record("", "a", "b", "human_bot")
    swap = {"input": "output", "output": "input"}
    assert parse_record({"input": "a", "output": "b"}, swap) == Record("", "b", "a")


def test_none_of_the_three_columns_is_an_error_that_names_those_found() -> None:
    with pytest.raises(
        InvalidRequest, match=r"row 4 must have a column instruction, input or output.*'question', 'answer'"
    ):
        parse_record({"question": "a", "answer": "b"}, at=4)


@pytest.mark.parametrize(
    ("row", "names", "message"),
    [
        ({"A": "a"}, {"A": "inptu"}, "'inptu'.*did you mean 'input'"),
        ({"A": "a"}, {"B": "input"}, "names the column 'B'; row 0 has 'A'"),
        ({"A": "a", "B": "b"}, {"A": "input", "B": "input"}, "different columns"),
        ({"A": "a", "input": "b"}, {"A": "input"}, "which row 0 has already"),
        ({"input": 3}, None, "input must be text, got 3 in row 0"),
    ],
)
def test_a_wrong_renaming_or_value_is_refused(row: dict[str, Any], names: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_record(row, names)
