"""TextGeneration: an instruction in, a text out."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import ParameterError
from llmkit.tasks.messages import system_message, user_message
from llmkit.tasks.step import Columns, Row
from llmkit.tasks.task import ChatType, Task
from llmkit.tasks.template import template


class TextGeneration(Task):
    """The model's answer to an instruction.

    Reads `instruction` and, where a row has it, `system_prompt`; with a template, its columns instead of
    `instruction`. Writes `generation`.

    Attributes:
        system_prompt: for rows that have none of their own; the model's own comes last.
        template: a Jinja template that makes the instruction of a row's columns; a variable is a column.
    """

    system_prompt: str | None = None
    template: str | None = None

    @property
    def inputs(self) -> Columns:
        """`instruction`, or the columns of the template; `system_prompt` is optional."""
        read = ("instruction",) if self.template is None else template(self.template).columns
        return {**dict.fromkeys(read, True), "system_prompt": "system_prompt" in read}

    @property
    def outputs(self) -> Sequence[str]:
        """`generation`."""
        return ["generation", "model_name"]

    def check(self) -> None:
        """The template must be one, and read a column.

        Raises:
            ParameterError: it is not.
        """
        if self.template is not None and not template(self.template).columns:
            raise ParameterError(
                f"template must read at least one column, as in {{{{ instruction }}}}, got {self.template!r}"
            )

    def format_input(self, input: Row) -> ChatType:
        """The system prompt, if there is one, and the instruction."""
        return [
            *system_message(input.get("system_prompt") or self.system_prompt),
            user_message(self._instruction(input)),
        ]

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text as it is."""
        return {"generation": output}

    def _instruction(self, input: Row) -> object:
        return input["instruction"] if self.template is None else template(self.template).render(input)
