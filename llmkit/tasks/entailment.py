"""Entailment: a premise and a hypothesis in, and out whether the one follows from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmkit.errors import ParameterError
from llmkit.tasks.messages import checked_text, find_label, user_message
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Task

LABELS = ("entailment", "neutral", "contradiction")


class Entailment(Task):
    """Whether a hypothesis follows from a premise: `entailment`, `neutral` or `contradiction`.

    Reads `premise` and `hypothesis`, writes `label`, enforced as for `TextClassification`.

    Attributes:
        form: `chat` asks in words; `mnli` is the bare form that models fine-tuned on MNLI read, which takes no chat
            template.
    """

    form: Literal["chat", "mnli"] = "chat"

    @property
    def inputs(self) -> Sequence[str]:
        """`premise` and `hypothesis`."""
        return ["premise", "hypothesis"]

    @property
    def outputs(self) -> Sequence[str]:
        """`label`."""
        return ["label", "model_name"]

    def check(self) -> None:
        """The form must be known, and `mnli` is one of its own.

        Raises:
            ParameterError: it is not, or a prompt style is set besides.
        """
        if self.form not in ("chat", "mnli"):
            raise ParameterError(f"form must be chat or mnli, got {self.form!r}")
        if self.form == "mnli" and self.prompt_style is not None:
            raise ParameterError(
                f"the mnli form is a style of its own: prompt_style must be None, got {self.prompt_style!r}"
            )

    def format_input(self, input: Row) -> ChatType:
        """The pair in the form that was chosen."""
        premise, hypothesis = (checked_text(input[name], name) for name in self.inputs)
        if self.form == "mnli":
            return [user_message(f"mnli hypothesis: {hypothesis} premise: {premise} target: ")]
        asked = f"Does the hypothesis follow from the premise? Answer with one of: {', '.join(LABELS)}."
        return [user_message(f"{asked}\n\nPremise: {premise}\nHypothesis: {hypothesis}\nAnswer:")]

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """The labels as choices, where the backend can keep to them; the bare form is taken as it is."""
        bare = {"prompt_style": "plain"} if self.form == "mnli" else {}
        return {**self.constraint("choice", list(LABELS)), **bare}

    def format_output(self, output: str | None, input: Row) -> Row:
        """The label that the text names.

        Raises:
            InvalidRequest: none, or several.
        """
        return {"label": find_label(output or "", LABELS)}
