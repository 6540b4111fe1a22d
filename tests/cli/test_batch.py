"""`llmkit batch` and `llmkit pipeline`, as processes of their own."""

import json
from pathlib import Path

import pytest

from .conftest import Run

SCRIPTED = ["-m", "scripted:x"]
YAML = """
name: two
source: in.jsonl
sink: out.jsonl
batch_size: 2
steps:
  - function: own.py:clean
    reads: [q]
    writes: [instruction]
  - route: own.py:by_length
  - - task: TextGeneration
      name: ask
      llm: {model: "scripted:x", max_tokens: 3}
    - chain:
        - function: own.py:note
        - function: own.py:note
          name: again
"""
OWN = """
def clean(row):
    return {**row, "instruction": row["q"].strip()}

def by_length(row):
    return "ask" if len(row["q"]) < 5 else "note"

def note(row):
    return {**row, "notes": row.get("notes", 0) + 1}
"""


def write(folder: Path, *prompts: str, name: str = "in.jsonl", column: str = "prompt") -> None:
    lines = [json.dumps({column: prompt}) for prompt in prompts]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_batch_answers_each_row_in_order(llmkit: Run, tmp_path: Path) -> None:
    write(tmp_path, "hi", "ho")
    process = llmkit("batch", "in.jsonl", "-o", "out.jsonl", *SCRIPTED)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    made = rows((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [(row["prompt"], row["generation"]) for row in made] == [
        ("hi", "you said hi é😀"),
        ("ho", "you said ho é😀"),
    ]
    assert made[0]["model_name"] == "x"


def test_batch_writes_lines_to_stdout_and_reads_them_from_stdin(llmkit: Run) -> None:
    process = llmkit("batch", "-", *SCRIPTED, stdin='{"instruction": "hi"}\n{"instruction": "ho"}\n')
    assert (process.returncode, process.stderr) == (0, "")
    assert [row["generation"] for row in rows(process.stdout)] == ["you said hi é😀", "you said ho é😀"]


def test_batch_takes_a_column_or_a_template_of_columns(llmkit: Run) -> None:
    stdin = '{"q": "hi", "to": "you"}\n'
    by_column = llmkit("batch", "-", "--column", "q", *SCRIPTED, stdin=stdin)
    assert rows(by_column.stdout)[0]["generation"] == "you said hi é😀"
    by_template = llmkit("batch", "-", "--template", "{{ q }} to {{ to }}", *SCRIPTED, stdin=stdin)
    assert rows(by_template.stdout)[0]["generation"] == "you said hi to you é😀"


def test_batch_goes_on_where_it_was_and_tries_failed_rows_again(llmkit: Run, tmp_path: Path) -> None:
    write(tmp_path, "hi", "bug", "ho")
    process = llmkit("batch", "in.jsonl", "-o", "out.jsonl", *SCRIPTED)
    assert process.returncode == 1
    assert process.stderr.startswith("error: 1 results failed; each row's llmkit_metadata has the reason")
    made = rows((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [row["generation"] is None for row in made] == [False, True, False]
    assert made[1]["llmkit_metadata"] == {"error_batch": "RuntimeError: not an error of llmkit"}
    assert (tmp_path / "out.jsonl.journal").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl"], "there is no file none.jsonl"),
        (["in.txt"], "must end in .jsonl"),
        (["in.jsonl", "--column", "x"], "there is no column x, the columns are: prompt"),
        (["in.jsonl", "-o", "out.txt"], "must be a file that ends in .jsonl"),
        (["in.jsonl", "--batch-size", "0"], "greater than or equal to 1"),
        (["in.jsonl", "--temperature", "-1"], "temperature must be"),
    ],
)
def test_batch_refuses_wrong_usage_with_2(arguments: list[str], words: str, llmkit: Run, tmp_path: Path) -> None:
    write(tmp_path, "hi")
    (tmp_path / "in.txt").write_text("hi")
    process = llmkit("batch", *arguments, *SCRIPTED)
    assert (process.returncode, process.stdout) == (2, "")
    assert words in " ".join(process.stderr.split())


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    write(tmp_path, " hi ", "a longer one", "ho", column="q")
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "two.yaml"
    path.write_text(YAML)
    return path


def test_a_pipeline_file_runs_and_goes_on(llmkit: Run, pipeline: Path, tmp_path: Path) -> None:
    for _ in range(2):
        process = llmkit("pipeline", "run", "two.yaml")
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    made = rows((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [(row.get("generation"), row.get("notes")) for row in made] == [
        ("you said hi", None),
        (None, 2),
        ("you said ho", None),
    ]


def test_a_pipeline_file_is_checked_and_drawn_without_a_model(llmkit: Run, pipeline: Path) -> None:
    drawn = llmkit("pipeline", "draw", "two.yaml")
    assert drawn.stdout.startswith("flowchart LR\n")
    assert 'n1{"by_length"}' in drawn.stdout
    assert llmkit("pipeline", "check", "two.yaml").returncode == 0
    pipeline.write_text(YAML.replace("reads: [q]", "reads: [question]").replace("scripted:x", "/no/such/model"))
    process = llmkit("pipeline", "check", "two.yaml")
    assert process.returncode == 2
    assert "'clean' needs the column 'question', the columns there are: q" in process.stderr
    assert "clean >> by_length" in process.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size", "batchsize", "unknown key 'batchsize'; did you mean 'batch_size'"),
        ("TextGeneration", "TextGenerator", "there is no task 'TextGenerator'; did you mean 'TextGeneration'"),
        ("own.py:clean", "own.py:clear_up", "own.py:clear_up cannot be imported"),
        ("own.py:clean", "clean", "code must be named as file.py:name or package.module:name, got 'clean'"),
        ("name: ask", "nom: ask", "unknown parameter 'nom'; did you mean 'name'"),
        ("steps:", "runner: {ray: {workers: 2}}\nsteps:", "unknown key 'workers'"),
        ("steps:", "steps: [", "is not YAML"),
    ],
)
def test_a_wrong_pipeline_file_is_refused_with_its_place(
    old: str, new: str, words: str, llmkit: Run, pipeline: Path
) -> None:
    pipeline.write_text(YAML.replace(old, new))
    process = llmkit("pipeline", "run", "two.yaml")
    assert (process.returncode, process.stdout) == (2, "")
    assert words in process.stderr
