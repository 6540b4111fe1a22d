"""The built-in tasks: what the embedded model knows, on it; how they ask and read, on a scripted one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
import pytest

import llmkit
from llmkit.backend import BackendLLM
from llmkit.base import BaseLLM
from llmkit.capabilities import Capabilities
from llmkit.errors import InvalidConstraint, ParameterError
from llmkit.tasks import (
    ChatGeneration,
    Entailment,
    FewShot,
    PairwiseJudge,
    QuestionAnswering,
    Row,
    StructuredGeneration,
    Summarization,
    Task,
    TextClassification,
    TextGeneration,
    Translation,
    failure,
)
from llmkit.testing import ScriptedLLM

QA_STYLE = {
    "name": "question-answer", "input_prefix": "Question: ", "response_prefix": "\nAnswer:", "response_lead": " ",
    "turn_separator": "\n", "stop": ["\n"],
}  # fmt: skip
CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("Peru", "Lima")]
SOLVED = [{"question": f"What is the capital of {name}?", "answer": city} for name, city in CAPITALS]


class Unconstrained(ScriptedLLM):
    """Cannot keep a text to choices or a schema."""

    capabilities = Capabilities(params=ScriptedLLM.capabilities.params, batching=True)


@pytest.fixture(scope="module")
def tiny() -> Iterator[BackendLLM]:
    with llmkit.load(max_tokens=24) as llm:
        yield llm


def prompt(llm: ScriptedLLM, at: int = -1) -> list[tuple[str, str]]:
    messages = llm.requests[at].prompt
    assert isinstance(messages, tuple)
    return [(message.role, message.content) for message in messages]


EVERY: list[tuple[type[Task], dict[str, Any]]] = [
    (TextGeneration, {"template": "{{ a }}"}),
    (ChatGeneration, {}),
    (Summarization, {}),
    (QuestionAnswering, {}),
    (TextClassification, {"labels": ["a", "b"]}),
    (Entailment, {"form": "mnli"}),
    (Translation, {"target": "French"}),
    (StructuredGeneration, {"schema": {"type": "object"}}),
    (FewShot, {"examples": SOLVED}),
    (PairwiseJudge, {}),
]


@pytest.mark.parametrize(("kind", "arguments"), EVERY, ids=lambda x: getattr(x, "__name__", ""))
def test_every_task_travels_is_set_at_run_time_and_has_an_identity(kind: type[Task], arguments: dict[str, Any]) -> None:
    task = kind(llm=ScriptedLLM, **arguments)
    assert pickle.loads(pickle.dumps(task)).parameters == task.parameters
    changed = task.with_runtime_parameters(num_generations=2)
    assert {**changed.parameters, "num_generations": 1} == task.parameters
    assert json.loads(json.dumps(task.identity())) != json.loads(json.dumps(changed.identity()))
    assert "model_name" in task.output_columns


# --- TextGeneration ---------------------------------------------------------------------------------------------------


def test_a_rows_system_prompt_goes_before_the_tasks_and_that_before_the_models() -> None:
    llm = ScriptedLLM(system_prompt="model's")
    TextGeneration(llm=llm, system_prompt="task's").apply(
        [
            {"instruction": "a", "system_prompt": "row's"},
            {"instruction": "b"},
            {"instruction": "c", "system_prompt": None},
        ]
    )
    TextGeneration(llm=llm).apply([{"instruction": "d"}])
    assert [prompt(llm, at)[0] for at in range(4)] == [
        ("system", "row's"), ("system", "task's"), ("system", "task's"), ("system", "model's"),
    ]  # fmt: skip


def test_a_template_reads_columns() -> None:
    llm = ScriptedLLM()
    task = TextGeneration(
        llm=llm, template="{{ name }} is {% for x in traits %}{{ x }} {% endfor %}", input_mappings={"name": "n"}
    )
    assert task.required_columns == ("n", "traits")
    [good, bad] = task.apply([{"n": "Ann", "traits": ["tall", "kind"]}, {"n": "Bob"}])
    assert prompt(llm) == [("user", "Ann is tall kind ")]
    assert good["generation"] == "ok"
    assert failure(bad, task.name) == "InvalidRequest: a row must have 'traits', got the columns 'n'"


def test_an_instruction_that_is_no_text_fails_alone() -> None:
    task = TextGeneration(llm=ScriptedLLM())
    bad, good = task.apply([{"instruction": 1}, {"instruction": "x"}])
    assert (bad["generation"], good["generation"]) == (None, "ok")
    assert failure(bad, task.name) == "InvalidRequest: an instruction must be a non-empty string, got 1"


@pytest.mark.parametrize("source", ["{{ a", "no column", 3])
def test_a_malformed_template_is_refused(source: Any) -> None:
    with pytest.raises(ParameterError, match="template must"):
        TextGeneration(llm=ScriptedLLM(), template=source)


def test_a_template_cannot_reach_into_python() -> None:
    task = TextGeneration(llm=ScriptedLLM(), template="{{ x.__class__.__mro__ }}")
    [row] = task.apply([{"x": "a"}])
    assert row["generation"] is None
    assert "unsafe" in str(failure(row, task.name))


# --- ChatGeneration ---------------------------------------------------------------------------------------------------


def test_chat_generation_answers_a_conversation(tiny: BackendLLM) -> None:
    conversation = [
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "The capital of Italy is Rome."},
        {"role": "user", "content": "What is the capital of Japan?"},
    ]
    [row] = ChatGeneration(llm=tiny).apply([{"messages": conversation}])
    assert "Tokyo" in row["generation"]


@pytest.mark.parametrize("messages", [[], "x" * 0, [{"role": "assistant", "content": "x"}], [{"role": "king"}], 3])
def test_what_is_no_conversation_fails_with_its_reason(messages: Any) -> None:
    task = ChatGeneration(llm=ScriptedLLM())
    bad, good = task.apply([{"messages": messages}, {"messages": [{"role": "user", "content": "x"}]}])
    assert (bad["generation"], good["generation"]) == (None, "ok")
    assert str(failure(bad, task.name)).startswith("InvalidRequest")


# --- Summarization ----------------------------------------------------------------------------------------------------


def test_a_short_text_takes_one_call_in_the_trained_form(tiny: BackendLLM) -> None:
    text = "Yesterday Tom cooked a soup at the school. It was a long day, and the sun was out."
    [row] = Summarization(llm=tiny).apply([{"text": text}])
    assert "Tom" in row["summary"]
    llm = ScriptedLLM("short")
    Summarization(llm=llm).apply([{"text": text}])
    assert [request.prompt for request in llm.requests] == [f"## Main Text\n\n{text}\n\n## Summary\n\n"]


def test_passages_are_token_exact_mapped_and_reduced_only_when_there_are_several() -> None:
    llm = ScriptedLLM(lambda asked: f"s{asked.count('w')}")
    task = Summarization(llm=llm, max_passage_tokens=10)
    texts = ["w " * 5, "w " * 25, "w " * 200]
    new_rows = task.apply([{"text": text.strip()} for text in texts])
    assert [row["summary"] for row in new_rows] == ["s5", "s0", "s0"]
    passages = [str(request.prompt).split("\n\n")[1] for request in llm.requests]
    assert max(llm._num_tokens(passage) for passage in passages) == 10
    assert sum(passage.count("w") for passage in passages) == 230, "no word is lost or read twice"
    assert passages.count("w w w w w") == 2, "the short text once, and the rest of the second; neither again"


def test_all_rows_of_a_round_run_as_one_batch() -> None:
    llm = ScriptedLLM("s")
    sizes: list[int] = []
    complete_batch = llm.complete_batch
    llm.complete_batch = lambda requests: sizes.append(len(requests)) or complete_batch(requests)  # type: ignore[method-assign]
    Summarization(llm=llm, max_passage_tokens=10).apply([{"text": "w " * 20}, {"text": "w " * 30}, {"text": "w"}])
    assert sizes == [2 + 3 + 1, 1 + 1]


def test_generations_are_of_the_last_round() -> None:
    llm = ScriptedLLM("s")
    task = Summarization(llm=llm, max_passage_tokens=10, num_generations=2)
    assert [row["summary"] for row in task.apply([{"text": "w " * 20}])] == ["s", "s"]
    assert [request.params.n for request in llm.requests] == [1, 1, 2]


def test_a_chat_model_is_told_what_to_do() -> None:
    llm = ScriptedLLM("s")
    Summarization(llm=llm, prompt_style=None, instruction="Summarize this.").apply([{"text": "A long day."}])
    assert prompt(llm) == [("user", "Summarize this.\n\nA long day.")]
    with pytest.raises(ParameterError, match="instruction must ask for a summary"):
        Summarization(llm=llm, prompt_style=None)


def test_summaries_that_do_not_shrink_fail_their_row_alone() -> None:
    llm = ScriptedLLM("w " * 20)
    task = Summarization(llm=llm, max_passage_tokens=10)
    bad, good = task.apply([{"text": "w " * 25}, {"text": "w"}])
    assert (bad["summary"], failure(good, task.name)) == (None, None)
    assert "summaries must be shorter than their text" in str(failure(bad, task.name))


def test_a_passage_leaves_the_window_room_for_the_summary() -> None:
    llm = ScriptedLLM("s", context_length=100)
    Summarization(llm=llm, params={"max_tokens": 20}).apply([{"text": "w " * 500}])
    assert all(len(request.prompt_ids or ()) <= 80 for request in llm.requests)


# --- QuestionAnswering, Translation -----------------------------------------------------------------------------------


def test_questions_are_answered(tiny: BackendLLM) -> None:
    new_rows = QuestionAnswering(llm=tiny).apply(
        [{"question": f"What is the capital of {name}?"} for name, _ in CAPITALS]
    )
    for row, (_, city) in zip(new_rows, CAPITALS, strict=True):
        assert city in row["answer"]


def test_a_context_is_put_before_the_question() -> None:
    llm = ScriptedLLM()
    QuestionAnswering(llm=llm, instruction="Read.").apply([{"question": "Who?", "context": "Ann came."}])
    assert prompt(llm) == [("system", "Read."), ("user", "Text: Ann came.\n\nQuestion: Who?")]


def test_phrases_are_translated(tiny: BackendLLM) -> None:
    new_rows = Translation(llm=tiny, target="French").apply([{"text": "Good morning"}, {"text": "Thank you"}])
    assert [row["translation"] for row in new_rows] == ["Bonjour", "Merci"]
    llm = ScriptedLLM()
    Translation(llm=llm, source="English", target="German").apply([{"text": "Hello"}])
    assert prompt(llm) == [("user", "Translate from English to German: Hello")]
    with pytest.raises(ParameterError, match="target must be the name of a language, got ''"):
        Translation(llm=llm, target="")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_enforced_where_the_backend_can(tiny: BackendLLM) -> None:
    labels = ["sports", "politics", "weather"]
    new_rows = TextClassification(llm=tiny, labels=labels).apply([{"text": f"Text {n}"} for n in range(6)])
    assert {row["label"] for row in new_rows} <= set(labels)
    assert all(failure(row, "text_classification_0") is None for row in new_rows)


def test_enforced_choices_reach_the_model_and_the_labels_come_before_the_text() -> None:
    llm = ScriptedLLM("spam")
    TextClassification(llm=llm, labels=["spam", "ham"], instruction="Spam or not?").apply([{"text": "Buy!"}])
    constraint = llm.requests[0].constraint
    assert constraint is not None
    assert constraint.choices == ("spam", "ham")
    assert prompt(llm) == [("user", "Spam or not? Answer with one of: spam, ham.\n\nText: Buy!\n\nLabel:")]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        ("  Positive.\n\nBecause it is nice", "positive"),
        ('"very positive" it is', "very positive"),
        ("The label is negative.", "negative"),
        ("positive or negative", "positive"),
        ("It could be positive or negative", None),
        ("positively", None),
        ("", None),
    ],
)
def test_elsewhere_a_label_is_looked_for_in_what_the_model_says(text: str, label: str | None) -> None:
    llm = Unconstrained(lambda prompt: text)
    task = TextClassification(llm=llm, labels=["positive", "negative", "very positive"])
    [row] = task.apply([{"text": "x"}])
    assert row["label"] == label
    assert llm.requests[0].constraint is None
    assert (failure(row, task.name) is None) == (label is not None)


def test_a_bare_model_classifies_too() -> None:
    class Bare(BaseLLM):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            return "ham, I think"

    assert TextClassification(llm=Bare(), labels=["spam", "ham"]).apply([{"text": "x"}])[0]["label"] == "ham"


@pytest.mark.parametrize("labels", [[], ["one"], "ab", ["a", ""], ["a", "A"], ["a", 3]])
def test_malformed_labels_are_refused(labels: Any) -> None:
    with pytest.raises(ParameterError, match="labels must"):
        TextClassification(llm=ScriptedLLM(), labels=labels)


def test_entailment_in_the_trained_form(tiny: BackendLLM) -> None:
    pairs = [
        {"premise": "Anna is cooking in the kitchen.", "hypothesis": "Anna is in the kitchen."},
        {"premise": "Anna is cooking in the kitchen.", "hypothesis": "Anna is sleeping in the garden."},
    ]
    new_rows = Entailment(llm=tiny, form="mnli").apply(pairs)
    assert new_rows[0]["label"] == "entailment"
    assert {row["label"] for row in new_rows} <= {"entailment", "neutral", "contradiction"}


def test_the_forms_of_entailment() -> None:
    llm = ScriptedLLM("neutral")
    pair = {"premise": "P.", "hypothesis": "H."}
    Entailment(llm=llm, form="mnli").apply([pair])
    assert (llm.requests[-1].prompt, llm.requests[-1].raw) == ("mnli hypothesis: H. premise: P. target: ", True)
    Entailment(llm=llm).apply([pair])
    assert "Premise: P.\nHypothesis: H.\nAnswer:" in prompt(llm)[0][1]
    unsure = Entailment(llm=Unconstrained("entailmentfoo"))
    [row] = unsure.apply([pair])
    assert row["label"] is None
    for arguments in ({"form": "xnli"}, {"form": "mnli", "prompt_style": "llama2"}):
        with pytest.raises(ParameterError, match="form"):
            Entailment(llm=llm, **arguments)  # type: ignore[arg-type]


# --- StructuredGeneration ---------------------------------------------------------------------------------------------

DIGIT = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


class Point(pydantic.BaseModel):
    x: int
    label: str = ""


def test_json_is_enforced_where_the_backend_can(tiny: BackendLLM) -> None:
    [row] = StructuredGeneration(llm=tiny, schema=DIGIT).apply([{"instruction": "Give a digit."}])
    assert row["generation"]["n"] in range(10)


def test_elsewhere_the_schema_is_asked_for_and_checked() -> None:
    answers = {"plain": '{"n": 3}', "fenced": '```json\n{"n": 4}\n```', "words": "three", "wrong": '{"n": 30}'}
    llm = Unconstrained(lambda prompt: answers[prompt.split("\n")[0]])
    task = StructuredGeneration(llm=llm, schema=DIGIT)
    new_rows = task.apply([{"instruction": name} for name in answers])
    assert [row["generation"] for row in new_rows] == [{"n": 3}, {"n": 4}, None, None]
    assert '"maximum":9' in prompt(llm)[0][1].replace(" ", "")
    assert "StructuredOutputInvalid" in str(failure(new_rows[3], task.name))


def test_a_type_gives_the_schema_and_rows_hold_plain_values() -> None:
    llm = ScriptedLLM('{"x": 3, "label": "a"}')
    [row] = StructuredGeneration(llm=llm, schema=Point, system_prompt="JSON.").apply([{"instruction": "a point"}])
    assert row["generation"] == {"x": 3, "label": "a"}
    assert prompt(llm) == [("system", "JSON."), ("user", "a point")]


@pytest.mark.parametrize("schema", [{"type": "nosuch"}, "{", None])
def test_a_malformed_schema_is_refused(schema: Any) -> None:
    with pytest.raises((InvalidConstraint, ValueError)):
        StructuredGeneration(llm=ScriptedLLM(), schema=schema)


# --- FewShot ----------------------------------------------------------------------------------------------------------


def test_examples_teach_the_form(tiny: BackendLLM) -> None:
    asked = [{"question": f"What is the capital of {name}?"} for name in ("Norway", "Egypt")]
    new_rows = FewShot(llm=tiny, examples=SOLVED, n_examples=2, prompt_style=QA_STYLE).apply(asked)
    assert [row["answer"] for row in new_rows] == ["Oslo", "Cairo"]


def test_the_trained_form_is_written_by_a_style() -> None:
    llm = ScriptedLLM(" Oslo\nQuestion: more")
    task = FewShot(llm=llm, examples=SOLVED[:1], prompt_style=QA_STYLE, num_generations=1)
    [row] = task.apply([{"question": "What is the capital of Norway?"}])
    assert row["answer"] == "Oslo"
    assert llm.requests[0].prompt == (
        "Question: What is the capital of France?\nAnswer: Paris\nQuestion: What is the capital of Norway?\nAnswer:"
    )


def test_seeded_examples_are_the_same_for_all_rows_and_never_the_row_itself() -> None:
    def shown(seed: int) -> list[list[str]]:
        llm = ScriptedLLM()
        FewShot(llm=llm, examples=SOLVED, n_examples=3, seed=seed).apply(
            [{"question": "Why?"}, SOLVED_QUESTION, {"question": "How?"}]
        )
        return [[text for role, text in prompt(llm, at) if role == "assistant"] for at in range(3)]

    first, own, last = shown(1)
    assert first == last
    assert len(first) == 3
    assert "Paris" not in own
    assert shown(1) == [first, own, last]
    assert {tuple(shown(seed)[0]) for seed in range(6)} != {tuple(first)}


SOLVED_QUESTION = {"question": SOLVED[0]["question"]}


def test_a_rule_of_ones_own_chooses() -> None:
    def same_letter(row: Row, examples: Sequence[Row]) -> Sequence[Row]:
        return [e for e in examples if e["text"][0] == row["text"][0]]

    examples = [
        {"text": "apple", "kind": "fruit"},
        {"text": "ant", "kind": "animal"},
        {"text": "bee", "kind": "animal"},
    ]
    llm = ScriptedLLM("animal")
    task = FewShot(
        llm=llm, examples=examples, question="{{ text }}?", answer="{{ kind }}", choose=same_letter,
        labels=["fruit", "animal"], instruction="Sort.",
    )  # fmt: skip
    [row] = task.apply([{"text": "auk"}])
    assert row["answer"] == "animal"
    assert prompt(llm) == [
        ("system", "Sort."), ("user", "apple?"), ("assistant", "fruit"), ("user", "ant?"), ("assistant", "animal"),
        ("user", "auk?"),
    ]  # fmt: skip


def test_labels_are_enforced_as_the_style_lets_the_model_write_them() -> None:
    llm = ScriptedLLM(" Paris")
    FewShot(llm=llm, examples=SOLVED, labels=["Paris", "Rome"], prompt_style=QA_STYLE).apply([{"question": "Where?"}])
    constraint = llm.requests[0].constraint
    assert constraint is not None
    assert constraint.choices == (" Paris", " Rome")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": []}, "at least one example"),
        ({"n_examples": 0}, "at least one example"),
        ({"examples": [{"question": "x"}]}, "example 0 must have 'answer', got the columns question"),
        ({"question": "none"}, "question must read at least one column"),
    ],
)
def test_examples_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        FewShot(**{"llm": ScriptedLLM(), "examples": SOLVED, **arguments})


# --- PairwiseJudge ----------------------------------------------------------------------------------------------------

PAIR = {"instruction": "Greet.", "response_a": "Hello!", "response_b": "Go away."}


def judge(first: str, swapped: str) -> ScriptedLLM:
    return ScriptedLLM(lambda asked: first if "Response A: Hello!" in asked else swapped)


@pytest.mark.parametrize(
    ("first", "swapped", "winner"),
    [
        ("A", "B", "A"),
        ("B", "A", "B"),
        ("A", "A", "tie"),
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "A", "tie"),
    ],
)
def test_a_pair_is_judged_in_both_orders(first: str, swapped: str, winner: str) -> None:
    llm = judge(first, swapped)
    [row] = PairwiseJudge(llm=llm).apply([PAIR])
    assert row["winner"] == winner
    assert len(llm.requests) == 2
    assert set(row) == {*PAIR, "winner", "llmkit_metadata", "model_name"}


def test_one_order_is_asked_on_request_and_a_verdict_is_found_in_words() -> None:
    llm = Unconstrained("B is better, since A is short.")
    [row] = PairwiseJudge(llm=llm, both_orders=False, criteria="Judge.").apply([PAIR])
    assert (row["winner"], len(llm.requests)) == ("B", 1)
    assert prompt(llm)[0] == ("system", "Judge.")


def test_the_embedded_model_can_judge_only_with_a_verdict(tiny: BackendLLM) -> None:
    [row] = PairwiseJudge(llm=tiny).apply([PAIR])
    assert row["winner"] in ("A", "B", "tie")
