"""Sources and sinks: what goes in comes out, and a file is there whole or not at all."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from llmkit.errors import PipelineError
from llmkit.pipeline import Pipeline, open_source

ROWS: list[dict[str, Any]] = [
    {"question": "Who, me?", "note": 'a "quote"\nand a line', "n": 1},
    {"question": "été \U0001f600", "note": None, "n": 2},
]


def copied(source: Any, sink: Path) -> Path:
    Pipeline().run(source, sink, journal=False)
    return sink


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.parquet", "dataset"])
def test_rows_survive_a_file(name: str, tmp_path: Path) -> None:
    made = copied(ROWS, tmp_path / name)
    source = datasets.load_from_disk(str(made)) if made.is_dir() else made
    assert list(open_source(source).rows()) == ROWS
    assert set(open_source(source).columns or ()) == {"question", "note", "n"}


def test_csv_holds_text_and_nothing_else(tmp_path: Path) -> None:
    made = copied([*ROWS, {"question": "x", "more": {"a": [1]}}], tmp_path / "rows.csv")
    assert list(open_source(made).rows()) == [
        {"question": "Who, me?", "note": 'a "quote"\nand a line', "n": "1", "more": ""},
        {"question": "été \U0001f600", "note": "", "n": "2", "more": ""},
        {"question": "x", "note": "", "n": "", "more": '{"a": [1]}'},
    ]


def test_a_dataset_is_a_source_and_a_dictionary_of_splits_is_not() -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    assert list(Pipeline().stream(dataset)) == ROWS
    with pytest.raises(PipelineError, match="must be one split of the dataset, which has: train"):
        open_source(datasets.DatasetDict({"train": dataset}))
    streamed = dataset.to_iterable_dataset()
    assert list(Pipeline().stream(streamed)) == ROWS


def test_only_wanted_columns_are_read() -> None:
    assert list(open_source(ROWS, columns=["n"]).rows()) == [{"n": 1}, {"n": 2}]
    with pytest.raises(PipelineError, match="no column 'm', it has: question, note, n"):
        open_source(ROWS, columns=["m"])


def test_columns_that_come_late_are_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"a": 1}] * 1500 + [{"a": 2.5, "b": "late"}]
    made = copied(rows, tmp_path / "rows.parquet")
    read = list(open_source(made).rows())
    assert read[0] == {"a": 1.0, "b": None}
    assert read[-1] == {"a": 2.5, "b": "late"}


def test_rows_that_do_not_fit_stay_in_the_partial_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="a column must have one type"):
        copied([{"a": 1}, {"a": "text"}], tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()
    assert lines(tmp_path / "rows.parquet.partial") == [{"a": 1}, {"a": "text"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\nnonsense\n', "line 2 of .* is not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 of .* must be an object, got list"),
        ("a.csv", "a,b\n1,2\n1\n", "line 3 of .* must have 2 cells, got 1"),
        ("a.csv", "a,a\n1,2\n", "has the column 'a' twice"),
        ("a.parquet", "nonsense", "is damaged or no Parquet file"),
        ("a.txt", "", "must end in .jsonl, .ndjson, .csv or .parquet, got 'a.txt'"),
    ],
)
def test_a_bad_file_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PipelineError, match=message):
        list(Pipeline().stream(tmp_path / name))


def test_a_missing_file_a_bad_sink_and_a_bad_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no file"):
        Pipeline().stream(tmp_path / "none.jsonl")
    with pytest.raises(PipelineError, match=r"or a folder, got 'out\.txt'"):
        copied(ROWS, tmp_path / "out.txt")
    with pytest.raises(PipelineError, match="a row must be a dictionary, row 1 is 'b'"):
        list(Pipeline().stream([{"a": 1}, "b"]))  # pyright: ignore
    with pytest.raises(PipelineError, match="a row must hold what JSON holds"):
        list(Pipeline().stream([{"a": {1, 2}}]))
    with pytest.raises(PipelineError, match="a row must hold what JSON holds"):
        list(Pipeline().stream([{"a": float("nan")}]))


def test_source_and_sink_must_differ(tmp_path: Path) -> None:
    same = copied(ROWS, tmp_path / "rows.jsonl")
    with pytest.raises(PipelineError, match="must be different files"):
        Pipeline().run(same, same)
    assert lines(same) == ROWS


def test_the_file_appears_at_the_end_and_an_old_one_stays_until_then(tmp_path: Path) -> None:
    out = copied(ROWS, tmp_path / "out.jsonl")

    def rows() -> Any:
        yield {"a": 1}
        assert lines(out) == ROWS
        raise RuntimeError("the source breaks")

    with pytest.raises(RuntimeError, match="the source breaks"):
        copied(rows(), out)
    assert lines(out) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.partial"]


def test_a_byte_order_mark_empty_lines_and_half_pairs_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud800"}\n\n{"a": 2}')
    made = copied(path, tmp_path / "b.jsonl")
    assert made.read_bytes() == b'{"a": "\\ud800"}\n{"a": 2}\n'
