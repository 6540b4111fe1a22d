"""The pipelines of texts: on a counting model where every token is known, and on the embedded one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

import llmkit
from llmkit import BackendLLM
from llmkit.errors import ContextLengthExceeded, InvalidRequest, ModelClosed, ParameterError
from llmkit.testing import ScriptedLLM
from llmkit.text_pipelines import (
    EntailmentPipeline,
    GPTJEntailmentPipeline,
    GPTJPipeline,
    PipelineConfig,
    TextGenerationPipeline,
    entailment_prompt,
    extract_label,
)
from llmkit.types import Chunk, Request

FEW_SHOT = "Question: What is the capital of China?\nAnswer: Beijing\nQuestion: What is the capital of {}?\nAnswer:"


def count_to_nine(prompt: str) -> str:
    """The numbers after the prompt's last one."""
    return "".join(f" {n}" for n in range(int(prompt.split()[-1]) + 1, 10))


@pytest.fixture(scope="module")
def tiny() -> Iterator[TextGenerationPipeline]:
    pipeline = TextGenerationPipeline(PipelineConfig.preset("tiny"), output_length=10)
    yield pipeline
    pipeline.detach()


def counting(**settings: int) -> TextGenerationPipeline:
    return TextGenerationPipeline(model=ScriptedLLM(count_to_nine), **settings)


def test_a_list_of_any_length_gives_new_texts_in_order() -> None:
    pipeline = counting()
    assert pipeline(["1", "5", "7 8", "3"]) == [" 2 3 4 5 6 7 8 9", " 6 7 8 9", " 9", " 4 5 6 7 8 9"]
    assert pipeline([]) == []


def test_one_string_gives_a_list_of_one() -> None:
    assert counting()("7") == [" 8 9"]


def test_overrides_of_a_call_do_not_stick(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = counting(output_length=5)
    assert pipeline(["1", "7 8"], output_length=3, print_live=True) == [" 2 3 4", " 9"]
    assert capsys.readouterr().out
    assert pipeline("1") == [" 2 3 4 5 6"]
    assert not capsys.readouterr().out
    assert pipeline.config.inference.output_length == 5


def test_the_callers_config_is_not_changed() -> None:
    config = PipelineConfig()
    pipeline = TextGenerationPipeline(config, ScriptedLLM(count_to_nine), output_length=3, sequence_length=100)
    assert config == PipelineConfig()
    assert (pipeline.config.inference.output_length, pipeline.config.model.sequence_length) == (3, 100)


def test_the_configs_output_length_holds_where_none_is_passed() -> None:
    config = PipelineConfig()
    config.inference.output_length = 2
    assert TextGenerationPipeline(config, ScriptedLLM(count_to_nine))("1") == [" 2 3"]


def test_prompt_and_text_share_the_sequence_length() -> None:
    pipeline = counting(sequence_length=4)
    assert pipeline("0 1") == [" 2 3"]
    with pytest.raises(ContextLengthExceeded):
        pipeline("0 1 2 3")


@pytest.mark.parametrize("bad", ["", ["1", ""], ["1", 2]])
def test_prompts_are_non_empty_strings(bad: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="non-empty strings"):
        counting()(bad)


@pytest.mark.parametrize("name", ["sequence_length", "output_length"])
@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_lengths_are_positive_integers(name: str, bad: int) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be an integer of at least 1, got {bad}"):
        counting(**{name: bad})


def test_what_is_settled_at_loading_is_refused_with_a_loaded_model() -> None:
    with pytest.raises(ParameterError, match="dtype: settled when a model is loaded"):
        TextGenerationPipeline(model=ScriptedLLM(count_to_nine), dtype="float16")


class Noting(ScriptedLLM):
    """Counts, and notes the prompts of each batch that it gets."""

    def __init__(self) -> None:
        super().__init__(count_to_nine)
        self.batches: list[list[str]] = []

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        self.batches.append([str(request.prompt) for request in requests])
        return super()._generate(requests)


def test_a_model_without_slots_gets_one_micro_batch_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    llm = Noting()
    pipeline = TextGenerationPipeline(model=llm, micro_batch_size=2)
    assert pipeline(["8", "7", "6"], print_live=True) == [" 9", " 8 9", " 7 8 9"]
    assert llm.batches == [["8", "7"], ["6"]]
    assert capsys.readouterr().out.splitlines() == ["[1/3] 9", "[2/3] 8 9", "[3/3] 7 8 9"]


def test_a_prompt_that_is_too_long_is_refused_before_any_other_runs() -> None:
    llm = Noting()
    with pytest.raises(ContextLengthExceeded):
        TextGenerationPipeline(model=llm, micro_batch_size=1, sequence_length=4)(["0 1", "0 1 2 3"])
    assert llm.batches == []


def test_prompts_may_come_from_a_generator() -> None:
    assert counting()(str(n) for n in (7, 8)) == [" 8 9", " 9"]


def test_a_model_object_of_transformers_is_refused_with_what_to_do(tiny: TextGenerationPipeline) -> None:
    with pytest.raises(ParameterError, match=r"got LlamaForCausalLM; .* save_pretrained"):
        TextGenerationPipeline(model=tiny.pretrained)


def test_a_call_may_not_ask_for_no_token() -> None:
    with pytest.raises(ParameterError, match="max_tokens"):
        counting()("1", output_length=0)


def test_a_lone_text_is_shown_piece_by_piece(capsys: pytest.CaptureFixture[str]) -> None:
    counting()("7", print_live=True)
    assert capsys.readouterr().out == " 8 9\n"


def test_several_texts_are_shown_whole_under_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    counting()(["5", "7"], print_live=True)
    assert capsys.readouterr().out.splitlines() == ["[2/2] 8 9", "[1/2] 6 7 8 9"]


def test_a_detached_pipeline_refuses_calls_and_may_be_detached_again() -> None:
    llm = ScriptedLLM(count_to_nine)
    pipeline = TextGenerationPipeline(model=llm)
    for _ in range(2):
        pipeline.detach()
    with pytest.raises(ModelClosed):
        pipeline("1")
    with pytest.raises(ModelClosed):
        _ = pipeline.tokenizer
    assert llm.run("7") == " 8 9", "a model that was passed in stays its owner's"


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_capitals_do_not_depend_on_the_batch(batch_size: int) -> None:
    countries = ["France", "Japan", "Italy", "Spain", "Peru"]
    pipeline = TextGenerationPipeline(
        PipelineConfig.preset("tiny"), micro_batch_size=batch_size, sequence_length=256, output_length=10
    )
    texts = pipeline([FEW_SHOT.format(country) for country in countries])
    pipeline.detach()
    assert [text.splitlines()[0].strip() for text in texts] == ["Paris", "Tokyo", "Rome", "Madrid", "Lima"]


def test_the_micro_batch_size_is_what_runs_at_once() -> None:
    prompts = [FEW_SHOT.format(country) for country in ("France", "Japan", "Italy", "Spain")]
    steps: dict[int, int] = {}
    for size in (1, 4):
        pipeline = TextGenerationPipeline(PipelineConfig.preset("tiny"), micro_batch_size=size, output_length=4)
        pipeline(prompts)
        assert pipeline.llm is not None
        steps[size] = pipeline.llm._routes.figures.steps  # pyright: ignore
        pipeline.detach()
    assert steps[1] >= 3 * steps[4]


def test_the_attributes_are_the_librarys_own(tiny: TextGenerationPipeline) -> None:
    assert type(tiny.pretrained).__name__ == "LlamaForCausalLM"
    assert tiny.tokenizer.decode(tiny.tokenizer("Paris", add_special_tokens=False)["input_ids"]) == "Paris"
    assert tiny.config.model.name == "llmkit-tiny"


def test_a_pipeline_from_another_shares_its_weights(tiny: TextGenerationPipeline) -> None:
    before = psutil.Process().memory_info().rss
    entailment = EntailmentPipeline.from_pipeline(tiny)
    assert entailment.pretrained is tiny.pretrained
    assert psutil.Process().memory_info().rss - before < 2**20
    assert entailment("Goodbye.", "The person is leaving.", output_length=5) == ["entailment"]


def test_detaching_one_of_two_that_share_a_model_ends_both() -> None:
    first = TextGenerationPipeline(PipelineConfig.preset("tiny"))
    second = EntailmentPipeline.from_pipeline(first)
    second.detach()
    with pytest.raises(ModelClosed):
        first("Hello")
    with pytest.raises(ModelClosed):
        EntailmentPipeline.from_pipeline(second)
    first.detach()


def test_the_notebooks_own_names_do_the_same(tiny: TextGenerationPipeline) -> None:
    assert issubclass(GPTJPipeline, TextGenerationPipeline)
    assert GPTJEntailmentPipeline.from_gptj_pipeline(tiny)("Goodbye.", "The person is leaving.") == ["entailment"]


def test_detaching_gives_the_memory_back() -> None:
    pipeline = TextGenerationPipeline(PipelineConfig.preset("tiny"))
    pipeline("Hello")
    weights = [weakref.ref(parameter) for parameter in pipeline.pretrained.parameters()]
    pipeline.detach()
    gc.collect()
    assert weights
    assert not any(weight() is not None for weight in weights)


def test_entailment_takes_pairs_and_answers_labels() -> None:
    def answer(prompt: str) -> str:
        hypothesis, premise = prompt.removeprefix("mnli hypothesis: ").removesuffix(" target: ").split(" premise: ")
        return "entailment<|endoftext|>" if hypothesis == premise else " contradiction\nmnli"

    pipeline = EntailmentPipeline(model=ScriptedLLM(answer))
    assert pipeline("It rains.", "It rains.") == ["entailment"]
    assert pipeline(["It rains.", "It snows."], ["It rains.", "It rains."]) == ["entailment", "contradiction"]
    assert pipeline(premise=["a"], hypothesis=["b"]) == ["contradiction"]


@pytest.mark.parametrize(("premise", "hypothesis"), [(["a", "b"], ["a"]), ("a", ["a", "b"]), ("", "a"), ("a", " ")])
def test_entailment_refuses_what_is_no_pair(premise: str, hypothesis: str) -> None:
    with pytest.raises(InvalidRequest):
        EntailmentPipeline(model=ScriptedLLM("neutral"))(premise, hypothesis)


def test_the_prompt_is_the_notebooks() -> None:
    prompt = entailment_prompt("The person is leaving.", "Hello, welcome to the country.")
    assert prompt == "mnli hypothesis: The person is leaving. premise: Hello, welcome to the country. target: "
    assert entailment_prompt("A.", "B.", "neutral") == "mnli hypothesis: A. premise: B. target: neutral.\n"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("contradiction<|endoftext|>", "contradiction"),
        (" neutral", "neutral"),
        (" entailment.\nmnli", "entailment"),
        (" entailmentfoo", "unknown"),
        ("", "unknown"),
        ("\n", "unknown"),
    ],
)
def test_labels_are_read_from_the_first_line(text: str, label: str) -> None:
    assert extract_label(text) == label


def test_a_config_survives_its_yaml(tmp_path: Path) -> None:
    config = PipelineConfig.preset("gpt-j-mnli")
    config.execution.micro_batch_size = 3
    (tmp_path / "mine.yml").write_text(config.dumps_yaml())
    assert PipelineConfig.load(tmp_path / "mine.yml") == config
    (tmp_path / "presets.yml").write_text("small:\n  model: {sequence_length: 64}\n")
    assert PipelineConfig.load(tmp_path / "presets.yml", "small").model.sequence_length == 64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {sequence_length: 0}", "model.sequence_length"),
        ("modle: {}", "modle"),
        ("a: [", "is not YAML"),
        ("- 1", "must be a mapping"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=problem) as caught:
        PipelineConfig.load(path)
    assert "bad.yml" in str(caught.value)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ParameterError, match="no preset 'gptj'; it has tiny, gpt-j, gpt-j-mnli"):
        PipelineConfig.preset("gptj")


def test_a_bad_setting_changes_nothing() -> None:
    config = PipelineConfig()
    with pytest.raises(ValueError, match="greater than 0"):
        config.inference.output_length = 0
    assert config.inference.output_length == 20


def test_any_backend_will_do() -> None:
    llm: BackendLLM = llmkit.load(max_tokens=3)
    pipeline = TextGenerationPipeline(model=llm, output_length=10)
    assert pipeline(FEW_SHOT.format("France"))[0].splitlines()[0] == " Paris"
    llm.close()


@pytest.mark.llama_cpp
def test_a_gguf_file_is_loaded_by_its_path() -> None:
    path = Path(llmkit.__file__).parent / "tiny" / "model.gguf"
    pipeline = TextGenerationPipeline(model=path, micro_batch_size=2, output_length=10, n_threads=1)
    texts = pipeline([FEW_SHOT.format(country) for country in ("France", "Japan", "Italy")])
    pipeline.detach()
    assert [text.splitlines()[0].strip() for text in texts] == ["Paris", "Tokyo", "Rome"]
