"""Translation: a text in, the same in another language out."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import ParameterError
from llmkit.tasks.messages import checked_text, user_message
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Task


class Translation(Task):
    """A text in another language.

    Reads `text`, writes `translation`.

    Attributes:
        target: the language to translate to, in English: `French`.
        source: the language to translate from, where it helps to say so.
    """

    target: str
    source: str = ""

    @property
    def inputs(self) -> Sequence[str]:
        """`text`."""
        return ["text"]

    @property
    def outputs(self) -> Sequence[str]:
        """`translation`."""
        return ["translation", "model_name"]

    def check(self) -> None:
        """There must be a language.

        Raises:
            ParameterError: there is none.
        """
        if not isinstance(self.target, str) or not self.target.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"target must be the name of a language, got {self.target!r}")

    def format_input(self, input: Row) -> ChatType:
        """What to do, and the text."""
        languages = f"from {self.source} to {self.target}" if self.source else f"to {self.target}"
        return [user_message(f"Translate {languages}: {checked_text(input['text'], 'text')}")]

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text without the whitespace around it."""
        return {"translation": (output or "").strip()}
