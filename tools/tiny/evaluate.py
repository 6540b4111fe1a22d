"""Owns the accuracy table: the committed files, greedy decoding by plain transformers, on the held-out items only.

Run it as `python -m tools.tiny.evaluate [--json]`. It does not import llmkit, and never looks at what training drew,
save for the labels of the hypothesis-only baseline.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tools.tiny.build import FOLDER
from tools.tiny.data import Example, normalise
from tools.tiny.mixture import held_out_examples, training_examples

MAX_NEW_TOKENS = 40
BATCH_SIZE = 64
TARGETS = {
    "capitals, chat": 97.0,
    "capitals, few-shot": 97.0,
    "entailment": 85.0,
    "summaries, trained names": 95.0,
    "phrases": 95.0,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracies in percent. `exact` asks for the whole reply, `correct` for what matters."""

    task: str
    n_items: int
    correct: float
    exact: float
    target: float | None


def complete(prompts: Sequence[str], folder: Path = FOLDER) -> list[str]:
    """Completes each prompt greedily up to the end marker; special tokens in the prompts are read as such."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: dict[int, str] = {}
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        texts = _complete_batch(model, tokenizer, [prompts[i] for i in chosen])
        completions.update(zip(chosen, texts, strict=True))
    return [completions[i] for i in range(len(prompts))]


@torch.inference_mode()
def _complete_batch(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def is_correct(example: Example, completion: str) -> bool:
    """Judges what matters: the capital or the name occurs; anything else is the whole reply."""
    if example.task.startswith(("capitals", "summaries")):
        return example.expected in completion.split("\nQuestion:")[0]
    return completion.strip() == example.answer


def table(examples: Sequence[Example], completions: Sequence[str]) -> list[Row]:
    """Counts, task by task, in the order of first appearance."""
    by_task: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for example, completion in zip(examples, completions, strict=True):
        judged = (is_correct(example, completion), completion.strip() == example.answer)
        by_task[example.task].append(judged)
    return [_row(task, judged) for task, judged in by_task.items()]


def _row(task: str, judged: Sequence[tuple[bool, bool]]) -> Row:
    percent = 100.0 / len(judged)
    correct, exact = sum(one for one, _ in judged), sum(one for _, one in judged)
    return Row(task, len(judged), round(correct * percent, 1), round(exact * percent, 1), TARGETS.get(task))


def hypothesis_only_baseline(held_out: Sequence[Example], trained: Sequence[Example]) -> float:
    """The percentage right when guessing each held-out label as its hypothesis' most frequent label in training."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in trained:
        if example.label:
            counts[hypothesis_of(example)][example.label] += 1
    pairs = [example for example in held_out if example.label]
    right = sum(_majority(counts[hypothesis_of(one)]) == one.label for one in pairs)
    return round(100.0 * right / len(pairs), 1)


def hypothesis_of(example: Example) -> str:
    """The normalised hypothesis of an entailment pair."""
    return normalise(example.items[0].split(" / ")[0])


def _majority(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0] if counts else "entailment"


def main() -> None:
    """Prints the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--misses", type=int, default=0, help="also show so many wrong completions of each task")
    options = parser.parse_args()
    examples = held_out_examples()
    completions = complete([example.prompt for example in examples], options.folder)
    rows = table(examples, completions)
    baseline = hypothesis_only_baseline(examples, training_examples())
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "hypothesis_only_baseline": baseline}, indent=2))
    else:
        _print_table(rows, baseline)
    _print_misses(examples, completions, options.misses)


def _print_table(rows: Sequence[Row], baseline: float) -> None:
    print(f"{'held-out items of':<28}{'items':>6}{'correct %':>11}{'exact %':>9}{'target %':>10}")
    for row in rows:
        target = "" if row.target is None else f"{row.target:.0f}"
        print(f"{row.task:<28}{row.n_items:>6}{row.correct:>11.1f}{row.exact:>9.1f}{target:>10}")
    print(f"entailment guessed from the hypothesis alone: {baseline:.1f} %")


def _print_misses(examples: Sequence[Example], completions: Sequence[str], limit: int) -> None:
    shown: Counter[str] = Counter()
    for example, completion in zip(examples, completions, strict=True):
        if not is_correct(example, completion) and shown[example.task] < limit:
            shown[example.task] += 1
            print(f"{example.task}: {example.prompt!r}\n  said {completion!r}, expected {example.expected!r}")


if __name__ == "__main__":
    main()
