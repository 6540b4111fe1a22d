"""The steps of `notebooks/text_generation.ipynb` on GPT-J and its checkpoint for MNLI, for those who have the weights.

They must be safetensors: docs/guides/text-pipelines.md says how to make them of a pytorch_model.bin.
"""

import argparse
import sys

from llmkit.errors import LLMKitError
from llmkit.text_pipelines import LABELS, EntailmentPipeline, PipelineConfig, TextGenerationPipeline

QUESTION = "Question: What is the capital of China?\nAnswer: Beijing\nQuestion: What is the capital of {}?\nAnswer:"
COUNTRIES = "List countries in Europe, America, Asia and Africa: France,"
MNLI = {"path": "glue", "name": "mnli", "split": "validation_mismatched"}
N_PAIRS = 200


def ask_capitals(name: str | None, dtype: str) -> None:
    """Let the general model list countries, and ask it for their capitals in one batch."""
    model = TextGenerationPipeline(PipelineConfig.preset("gpt-j"), name, sequence_length=512, dtype=dtype)
    model("What is the capital of France?", print_live=True)
    [listed] = model(COUNTRIES, output_length=120)
    countries = ["France", *(word.strip() for word in listed.split(",") if word.strip())]
    answers = model([QUESTION.format(country) for country in countries], output_length=10)
    for country, answer in zip(countries, answers, strict=True):
        print(country, "->", answer.strip().partition("\n")[0])
    model.detach()


def judge_entailment(name: str | None, dtype: str, data: str | None) -> None:
    """Measure the other model on pairs that it was not trained on."""
    from datasets import load_dataset

    which = {"path": "json", "data_files": data, "split": "train"} if data else MNLI
    rows = load_dataset(**which)
    rows = rows.select(range(min(N_PAIRS, len(rows))))
    model = EntailmentPipeline(PipelineConfig.preset("gpt-j-mnli"), name, dtype=dtype)
    said = model(premise=rows["premise"], hypothesis=rows["hypothesis"])
    right = sum(LABELS[label] == answer for label, answer in zip(rows["label"], said, strict=True))
    print(f"{right} of {len(said)} pairs right")
    model.detach()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpt-j", help="EleutherAI/gpt-j-6b, or its folder")
    parser.add_argument("--mnli", help="Graphcore/gptj-mnli, or its folder")
    parser.add_argument("--dtype", default="bfloat16", help="float32 takes 24 GB a model")
    parser.add_argument("--data", help="JSON lines with premise, hypothesis and label, instead of MNLI")
    given = parser.parse_args(arguments)
    try:
        ask_capitals(given.gpt_j, given.dtype)
        judge_entailment(given.mnli, given.dtype, given.data)
    except (LLMKitError, ImportError, ConnectionError) as error:
        sys.exit(f"cannot run: {error}")


if __name__ == "__main__":
    main()
