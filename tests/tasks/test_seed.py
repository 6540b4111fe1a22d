"""The seed's snippets, with only their import lines changed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from llmkit.errors import ParameterError
from llmkit.tasks import InferenceEndpointsLLM, TextGeneration, endpoints
from llmkit.testing import ScriptedLLM
from tests.openai.scripted_server import Answer, ScriptedServer, delta, saying, usage

IMPORTS = "from llmkit.tasks import InferenceEndpointsLLM, TextGeneration\n"
TASK = """
task = TextGeneration(
    name="text-generation",
    llm=InferenceEndpointsLLM(
        model_id="meta-llama/Meta-Llama-3-70B-Instruct",
        tokenizer_id="meta-llama/Meta-Llama-3-70B-Instruct",
    ),{more}
)
task.load()
rows = next(task.process([{{"instruction": "What's the capital of Spain?"}}]))
"""
MADRID = "The capital of Spain is Madrid."
MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"
NOTE = {"raw_output_text-generation": MADRID}
ROW = {
    "instruction": "What's the capital of Spain?",
    "generation": MADRID,
    "llmkit_metadata": NOTE,
    "model_name": MODEL,
}
THREE = Answer(
    [*(delta(MADRID, index=n) for n in range(3)), *(delta(finish="stop", index=n) for n in range(3)), usage(3, 9)]
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.answers = [saying(MADRID)]
    monkeypatch.setattr(endpoints, "BASE_URL", scripted.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield scripted
    scripted.close()


def run(snippet: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(IMPORTS + textwrap.dedent(snippet), namespace)
    namespace["task"].llm.close()
    return namespace["rows"]


def test_the_first_snippet_gives_the_seeds_row(server: ScriptedServer) -> None:
    assert run(TASK.format(more="")) == [ROW]
    seen = server.requests[-1]
    assert seen.body["messages"] == [{"role": "user", "content": "What's the capital of Spain?"}]
    assert seen.body["model"] == MODEL
    assert {key.lower(): value for key, value in seen.headers.items()}["authorization"] == "Bearer hf_secret"


def test_the_second_snippet_gives_a_row_a_generation(server: ScriptedServer) -> None:
    server.answer_to = lambda seen: THREE if seen.body.get("n") == 3 else saying(MADRID)
    assert run(TASK.format(more="\n    num_generations=3,")) == [ROW, ROW, ROW]


def test_the_third_snippet_gives_one_row_of_lists(server: ScriptedServer) -> None:
    server.answer_to = lambda seen: THREE if seen.body.get("n") == 3 else saying(MADRID)
    rows = run(TASK.format(more="\n    num_generations=3,\n    group_generations=True"))
    assert rows == [{**ROW, "generation": [MADRID] * 3, "llmkit_metadata": [NOTE] * 3}]


def test_the_seeds_own_key_of_the_metadata_is_an_option() -> None:
    task = TextGeneration(name="text-generation", llm=ScriptedLLM(MADRID), metadata_column="distilabel_metadata")
    [row] = task.apply([{"instruction": "x"}])
    assert row["distilabel_metadata"] == NOTE
    assert "llmkit_metadata" not in row


def test_another_tokenizer_than_the_models_is_refused() -> None:
    with pytest.raises(ParameterError, match="tokenizer_id must be the model's own"):
        InferenceEndpointsLLM(model_id="a/b", tokenizer_id="c/d")


CUSTOM = """
from typing import Any, Dict, List, Union
from llmkit.tasks import Task
from llmkit.tasks import ChatType


class MyCustomTask(Task):
    @property
    def inputs(self) -> List[str]:
        return ["input_field"]

    def format_input(self, input: Dict[str, Any]) -> ChatType:
        return [
            {
                "role": "user",
                "content": input["input_field"],
            },
        ]

    @property
    def outputs(self) -> List[str]:
        return ["output_field", "model_name"]

    def format_output(
        self, output: Union[str, None], input: Dict[str, Any]
    ) -> Dict[str, Any]:
        return {"output_field": output}
"""


def test_the_seeds_custom_task_runs_verbatim() -> None:
    namespace: dict[str, Any] = {"__name__": "seed"}
    exec(CUSTOM, namespace)
    task = namespace["MyCustomTask"](llm=ScriptedLLM("yes", model_name="m"))
    task.load()
    assert next(task.process([{"input_field": "go?", "id": 7}])) == [
        {
            "input_field": "go?",
            "id": 7,
            "output_field": "yes",
            "llmkit_metadata": {"raw_output_my_custom_task_0": "yes"},
            "model_name": "m",
        }
    ]
