import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .conftest import Run

TASK = {
    "model": "scripted:x",
    "messages": [{"role": "user", "content": "hi"}],
    "generation_config": {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 2},
    "seed": 42,
}
QUESTION = {"model": "llmkit-tiny", "messages": [{"role": "user", "content": "What is the capital of Italy?"}]}


def schema(llmkit: Run, shape: str) -> dict[str, Any]:
    process = llmkit("schema", shape)
    assert (process.returncode, process.stderr) == (0, "")
    return json.loads(process.stdout)


def test_a_task_gives_its_response_from_a_file_and_from_stdin(llmkit: Run, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    pretty = llmkit("task", "task.json")
    compact = llmkit("task", "-", "--compact", stdin=json.dumps(TASK))
    assert (pretty.returncode, pretty.stderr) == (0, "")
    response = json.loads(pretty.stdout)
    assert pretty.stdout == json.dumps(response, indent=2, ensure_ascii=False) + "\n"
    assert compact.stdout == json.dumps(response, ensure_ascii=False) + "\n"
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    jsonschema.validate(TASK, schema(llmkit, "request"))
    jsonschema.validate(response, schema(llmkit, "response"))


def test_the_streamed_pieces_join_to_the_response(llmkit: Run) -> None:
    chunks = [json.loads(line) for line in llmkit("task", "-", "--stream", stdin=json.dumps(TASK)).stdout.splitlines()]
    response = json.loads(llmkit("task", "-", stdin=json.dumps(TASK)).stdout)
    jsonschema.validate(chunks[0], schema(llmkit, "chunk"))
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in response["choices"]]
    assert chunks[-1]["usage"] == response["usage"]
    assert len(chunks) > 4, "it came in pieces"


def test_the_embedded_model_runs_a_task(llmkit: Run) -> None:
    process = llmkit("task", "-", stdin=json.dumps(QUESTION))
    assert (process.returncode, process.stderr) == (0, "")
    assert "Rome" in json.loads(process.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": "x",\n "messages" [', "line 2, column 13"),
        (json.dumps({**TASK, "sed": 1}), "did you mean 'seed'?"),
        (
            json.dumps({**TASK, "generation_config": {"top_p": 1.7}}),
            "generation_config.top_p: must be in (0, 1], got 1.7",
        ),
        ("", "line 1, column 1"),
    ],
)
def test_a_malformed_task_exits_with_1_and_says_where_it_is_wrong(llmkit: Run, text: str, words: str) -> None:
    process = llmkit("task", "-", stdin=text)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: ")
    assert words in process.stderr
    assert "Traceback" not in process.stderr


def test_a_file_that_cannot_be_read_is_wrong_usage(llmkit: Run) -> None:
    process = llmkit("task", "missing.json")
    assert (process.returncode, process.stdout) == (2, "")
    assert "cannot read 'missing.json'" in process.stderr


def test_a_model_that_is_not_there_is_a_failure(llmkit: Run) -> None:
    process = llmkit("task", "-", stdin=json.dumps({**TASK, "model": "/no/such/model"}))
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: ")
