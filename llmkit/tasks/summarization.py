"""Summarization: a text of any length in, a summary out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkit.backend import BackendLLM
from llmkit.errors import GenerationError, ParameterError
from llmkit.prompts import PromptStyle
from llmkit.summarize import reduced
from llmkit.tasks.messages import checked_text, user_message
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Rounds, Task

_NEW_TOKENS = 256


class Summarization(Task):
    """A summary of a text of any length.

    Reads `text`, writes `summary`. A text that does not fit one passage is cut at ends of paragraphs, sentences or
    words; the passages are summarised, then their summaries together. Passages of all rows run as one batch.

    Attributes:
        instruction: written before the text, for models that need to be told; by default the style alone asks.
        max_passage_tokens: the most tokens of a passage, as the model counts them; by default three quarters of what
            its window leaves beside the summary.
    """

    prompt_style: str | PromptStyle | Mapping[str, object] | None = "summarize"
    instruction: str = ""
    max_passage_tokens: int | None = None

    @property
    def inputs(self) -> Sequence[str]:
        """`text`."""
        return ["text"]

    @property
    def outputs(self) -> Sequence[str]:
        """`summary`."""
        return ["summary", "model_name"]

    def check(self) -> None:
        """Something must ask for a summary.

        Raises:
            ParameterError: nothing does, or a passage is to have no tokens.
        """
        if self.prompt_style is None and not self.instruction:
            raise ParameterError("without a prompt_style, instruction must ask for a summary")
        if self.max_passage_tokens is not None and self.max_passage_tokens < 1:
            raise ParameterError(f"max_passage_tokens must be at least 1, got {self.max_passage_tokens!r}")

    def rounds_before(self, input: Row) -> Rounds:
        """Summaries of passages, until one passage is left.

        Raises:
            GenerationError: nothing is left, or the summaries are no shorter than the text.
        """
        text = checked_text(input["text"], "text")
        rounds = reduced(text, count_tokens=self._tokens_of, max_passage_tokens=self._passage_tokens())
        summaries: list[str] | None = None
        while True:
            try:
                passages = next(rounds) if summaries is None else rounds.send(summaries)
            except StopIteration as finished:
                if not finished.value:
                    raise GenerationError("the summaries of all passages are empty") from None
                return {**input, "text": finished.value}
            asked = [self.request(self.format_input({"text": passage})) for passage in passages]
            completions = yield asked
            summaries = [completion.text for completion in completions]

    def format_input(self, input: Row) -> ChatType:
        """The passage under the instruction."""
        passage = checked_text(input["text"], "text")
        return [user_message(f"{self.instruction}\n\n{passage}" if self.instruction else passage)]

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text without the whitespace around it."""
        return {"summary": (output or "").strip()}

    def _tokens_of(self, text: str) -> int:
        return self.model._num_tokens(text)  # pyright: ignore[reportPrivateUsage]  # the contract's own name

    def _passage_tokens(self) -> int:
        if self.max_passage_tokens is not None:
            return self.max_passage_tokens
        model = self.model
        if not isinstance(model, BackendLLM) or model.context_length is None:
            return model._passage_tokens()  # pyright: ignore[reportPrivateUsage]  # the model's own choice
        n_asked: int = self._params(None, 1).max_tokens or model.max_tokens or _NEW_TOKENS
        n_new = min(n_asked, model.context_length // 2)
        return max(1, (model.context_length - n_new) * 3 // 4)
