import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from .conftest import Run

ROWS = [{"A": "Who are you?", "B": "h2oGPT."}, {"A": "hi", "B": "hello " * 40}]
NAMES = '{"A": "input", "B": "output"}'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS))
    return path


def prepared(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_become_examples(llmkit: Run, data: Path, tmp_path: Path) -> None:
    options = ("--data-col-dict", NAMES, "--prompt-type", "human_bot", "--train-on-outputs", "--cutoff-len", "30")
    process = llmkit("prepare", "data.json", "-o", "out.jsonl", *options)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "2 examples in out.jsonl\n")
    rows = prepared(tmp_path / "out.jsonl")
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) == 1
    assert max(lengths) <= 30
    assert rows[0]["labels"][0] == -100
    assert llmkit("prepare", "data.json", "-o", "out.parquet", *options).returncode == 0
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows


def test_a_folder_is_saved_for_datasets(llmkit: Run, data: Path, tmp_path: Path) -> None:
    style = '{"name": "own", "input_prefix": "Q: ", "response_prefix": " A: "}'
    options = ("--data-col-dict", NAMES, "--prompt-type", style, "--drop-truncations", "--cutoff-len", "30")
    process = llmkit("prepare", "data.json", "-o", "folder", *options)
    assert (process.returncode, process.stderr) == (0, "1 examples in folder\n")
    assert (tmp_path / "folder" / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("missing.json", "-o", "out.jsonl"), 2, "cannot read 'missing.json'"),
        (("data.json", "-o", "out.txt"), 2, "must end in .jsonl or .parquet"),
        (("data.json", "-o", "no/such/out.jsonl"), 2, "does not exist"),
        (("data.json", "-o", "out.jsonl", "--data-col-dict", "[]"), 2, "must be a JSON object"),
        (("data.json", "-o", "out.jsonl"), 1, "found are 'A', 'B'"),
        (("data.json", "-o", "out.jsonl", "--data-col-dict", NAMES, "--prompt-type", "humanbot"), 1, "human_bot"),
        (("data.json", "-o", "out.jsonl", "--data-col-dict", NAMES, "--prompt-type", "auto"), 1, "llmkit-tiny"),
    ],
)
def test_what_is_wrong_is_said(llmkit: Run, data: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    process = llmkit("prepare", *arguments)
    assert (process.returncode, process.stdout) == (code, "")
    assert words in " ".join(process.stderr.split())
    assert "Traceback" not in process.stderr
