"""QuestionAnswering: a question in, with a text to answer it from where there is one, and an answer out."""

from __future__ import annotations

from llmkit.tasks.messages import checked_text, system_message, user_message
from llmkit.tasks.step import Columns, Row
from llmkit.tasks.task import ChatType, Task


class QuestionAnswering(Task):
    """The answer to a question.

    Reads `question` and, where a row has it, `context`: the text that holds the answer. Writes `answer`.

    Attributes:
        instruction: the system prompt of questions with a context.
    """

    instruction: str = "Answer the question from the text alone. If the text does not tell, say so."

    @property
    def inputs(self) -> Columns:
        """`question`; `context` is optional."""
        return {"question": True, "context": False}

    @property
    def outputs(self) -> Columns:
        """`answer`."""
        return ["answer", "model_name"]

    def format_input(self, input: Row) -> ChatType:
        """The question as it is, or behind the text that it is about."""
        question = checked_text(input["question"], "question")
        if not input.get("context"):
            return [user_message(question)]
        text = checked_text(input["context"], "context")
        return [*system_message(self.instruction), user_message(f"Text: {text}\n\nQuestion: {question}")]

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text without the whitespace around it."""
        return {"answer": (output or "").strip()}
