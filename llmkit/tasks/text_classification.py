"""TextClassification: a text in, one of a few labels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.tasks.messages import checked_labels, checked_text, find_label, user_message
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Task


class TextClassification(Task):
    """The label that fits a text best.

    Reads `text`, writes `label`. Where the backend can keep a text to choices, the model can say nothing but a label;
    elsewhere the label is looked for in what it says, and a text that names none fails.

    Attributes:
        labels: at least two.
        instruction: what the labels are about.
    """

    labels: Sequence[str]
    instruction: str = "Classify the text."

    @property
    def inputs(self) -> Sequence[str]:
        """`text`."""
        return ["text"]

    @property
    def outputs(self) -> Sequence[str]:
        """`label`."""
        return ["label", "model_name"]

    def check(self) -> None:
        """The labels must be distinct texts.

        Raises:
            ParameterError: they are not.
        """
        checked_labels(self.labels)

    def format_input(self, input: Row) -> ChatType:
        """The instruction and the labels first, so that rows share them; then the text."""
        text = checked_text(input["text"], "text")
        asked = f"{self.instruction} Answer with one of: {', '.join(self.labels)}."
        return [user_message(f"{asked}\n\nText: {text}\n\nLabel:")]

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """The labels as choices, where the backend can keep to them."""
        return self.constraint("choice", list(self.labels))

    def format_output(self, output: str | None, input: Row) -> Row:
        """The label that the text names.

        Raises:
            InvalidRequest: none, or several.
        """
        return {"label": find_label(output or "", self.labels)}
