"""PairwiseJudge: two responses to one instruction in, the better one out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.tasks.messages import checked_text, find_label, system_message, user_message
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Rounds, Task

VERDICTS = ("A", "B", "tie")
_SWAPPED = {"A": "B", "B": "A", "tie": "tie"}
_INSTRUCTION = (
    "You compare two responses to an instruction. Say which is more helpful, correct and to the point, whatever their "
    "order and length. Answer with A, B or tie."
)


class PairwiseJudge(Task):
    """Which of two responses is better.

    Reads `instruction`, `response_a` and `response_b`; writes `winner`: `A`, `B` or `tie`, enforced as for
    `TextClassification`. Models prefer a place: each pair is asked in both orders, and is a tie where they disagree.

    Attributes:
        criteria: the system prompt: what better means.
        both_orders: ask twice; otherwise as the row has them, once.
    """

    criteria: str = _INSTRUCTION
    both_orders: bool = True

    @property
    def inputs(self) -> Sequence[str]:
        """`instruction`, `response_a` and `response_b`."""
        return ["instruction", "response_a", "response_b"]

    @property
    def outputs(self) -> Sequence[str]:
        """`winner`."""
        return ["winner", "model_name"]

    def rounds_before(self, input: Row) -> Rounds:
        """The verdict on the swapped pair, told in the places of the row."""
        if not self.both_orders:
            return input
        swapped = {**input, "response_a": input["response_b"], "response_b": input["response_a"]}
        [completion] = yield [self.request(self.format_input(swapped), **self.request_fields(swapped))]
        return {**input, "swapped": _SWAPPED[find_label(completion.text, VERDICTS)]}

    def format_input(self, input: Row) -> ChatType:
        """The instruction and both responses."""
        asked, first, second = (checked_text(input[name], name) for name in self.inputs)
        pair = f"Instruction: {asked}\n\nResponse A: {first}\n\nResponse B: {second}\n\nBetter:"
        return [*system_message(self.criteria), user_message(pair)]

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """The verdicts as choices, where the backend can keep to them."""
        return self.constraint("choice", list(VERDICTS))

    def format_output(self, output: str | None, input: Row) -> Row:
        """The verdict, if both orders agree.

        Raises:
            InvalidRequest: the text names none, or several.
        """
        verdict = find_label(output or "", VERDICTS)
        return {"winner": verdict if input.get("swapped", verdict) == verdict else "tie"}
