"""FewShot: a few solved examples, then a row to solve in the same way."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmkit.errors import ParameterError
from llmkit.tasks.messages import checked_labels, find_label, system_message, user_message
from llmkit.tasks.step import Columns, Row
from llmkit.tasks.task import ChatType, Task
from llmkit.tasks.template import template


class FewShot(Task):
    """An answer in the way of examples.

    Reads the columns of the `question` template, writes `answer`. Examples become past turns of the conversation; with
    a `prompt_style` they are written in it. By default all rows get the same examples in the same order, so a model
    that keeps prefixes reads them once.

    Attributes:
        examples: solved rows: they have the columns of both templates.
        n_examples: how many a row gets, fewer where there are not so many.
        question: a Jinja template of a question, over the columns of a row.
        answer: a Jinja template of an example's answer, over the columns of an example.
        instruction: the system prompt.
        seed: shuffles the examples before the first ones are taken.
        choose: a rule that takes a row and all examples, and gives the row's own, in order; `n_examples` and `seed` do
            not apply then.
        labels: the answers that are possible, if they are few; enforced as for `TextClassification`.
    """

    examples: Sequence[Row]
    n_examples: int = 4
    question: str = "{{ question }}"
    answer: str = "{{ answer }}"
    instruction: str | None = None
    seed: int = 0
    choose: Callable[[Row, Sequence[Row]], Sequence[Row]] | None = None
    labels: Sequence[str] = ()

    @property
    def inputs(self) -> Columns:
        """The columns of the question."""
        return template(self.question).columns

    @property
    def outputs(self) -> Columns:
        """`answer`."""
        return ["answer", "model_name"]

    def check(self) -> None:
        """Every example must fill both templates, and every row some column.

        Raises:
            ParameterError: one does not, there are none, or the labels are malformed.
        """
        if not self.examples or self.n_examples < 1:
            raise ParameterError(
                f"there must be at least one example, got {len(self.examples)}, {self.n_examples} a row"
            )
        if not self.inputs:
            raise ParameterError(f"question must read at least one column, got {self.question!r}")
        for at, example in enumerate(self.examples):
            for column in (*template(self.question).columns, *template(self.answer).columns):
                if column not in example:
                    raise ParameterError(f"example {at} must have {column!r}, got the columns {', '.join(example)}")
        if self.labels:
            checked_labels(self.labels)
        self._shuffled = list(self.examples)
        random.Random(self.seed).shuffle(self._shuffled)

    def format_input(self, input: Row) -> ChatType:
        """The examples as past turns, then the row's own question."""
        asked = template(self.question).render(input)
        turns = system_message(self.instruction)
        for example in self._chosen(input, asked):
            turns.append(user_message(template(self.question).render(example)))
            turns.append({"role": "assistant", "content": template(self.answer).render(example)})
        return [*turns, user_message(asked)]

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """The labels as choices, where there are some and the backend can keep to them."""
        return self.constraint("choice", list(self.labels)) if self.labels else {}

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text without the whitespace around it, or the label that it names.

        Raises:
            InvalidRequest: there are labels, and it names none, or several.
        """
        text = (output or "").strip()
        return {"answer": find_label(text, self.labels) if self.labels else text}

    def _chosen(self, input: Row, asked: str) -> Sequence[Row]:
        """The row's examples; by the seeded rule never one that would give its own answer away."""
        if self.choose is not None:
            return self.choose(input, self.examples)
        others = (example for example in self._shuffled if template(self.question).render(example) != asked)
        return [example for _, example in zip(range(self.n_examples), others, strict=False)]
