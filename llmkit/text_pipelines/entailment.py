"""EntailmentPipeline: pairs of statements in, how they relate out.

It owns the form of the prompt and the reading of the answer; generating is `TextGenerationPipeline`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmkit.errors import InvalidRequest
from llmkit.text_pipelines.generation import TextGenerationPipeline

LABELS = ("entailment", "neutral", "contradiction", "unknown")
"""What the pipeline answers; the position of each of the first three is its number in the MNLI data."""

_END_OF_TEXT = "<|endoftext|>"


def entailment_prompt(hypothesis: str, premise: str, target: str = "") -> str:
    """The prompt that asks for a label, or an example that has one, ready to stand before another prompt."""
    return f"mnli hypothesis: {hypothesis} premise: {premise} target: {target}" + (".\n" if target else "")


def extract_label(text: str) -> str:
    """The label that a generated text says: its first line up to an end marker; `unknown` where that is no label."""
    first_line = (text.strip().splitlines() or [""])[0]
    word = first_line.split(_END_OF_TEXT)[0].strip().removesuffix(".")
    return word if word in LABELS else "unknown"


class EntailmentPipeline(TextGenerationPipeline):
    """Says whether a premise entails a hypothesis, contradicts it, or neither.

    The arguments are those of `TextGenerationPipeline`; `from_pipeline` shares the model of another pipeline.
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  pairs rather than prompts
        self,
        premise: str | Iterable[str],
        hypothesis: str | Iterable[str],
        *,
        output_length: int | None = None,
        print_live: bool | None = None,
    ) -> list[str]:
        """A label for each pair, in their order: `entailment`, `neutral`, `contradiction`, or `unknown`.

        Args:
            premise: what is taken as true; one or several.
            hypothesis: what is asked of it, as many.
            output_length: tokens to generate at most, in this call.
            print_live: show the texts while they are generated, in this call.

        Raises:
            InvalidRequest: there are not as many premises as hypotheses, or one is empty.
            ModelClosed: the pipeline was detached.
        """
        pairs = _pairs(premise, hypothesis)
        prompts = [entailment_prompt(one, of) for of, one in pairs]
        return [
            extract_label(text)
            for text in super().__call__(prompts, output_length=output_length, print_live=print_live)
        ]


GPTJEntailmentPipeline = EntailmentPipeline


def _pairs(premise: str | Iterable[str], hypothesis: str | Iterable[str]) -> list[tuple[str, str]]:
    premises = [premise] if isinstance(premise, str) else list(premise)
    hypotheses = [hypothesis] if isinstance(hypothesis, str) else list(hypothesis)
    if len(premises) != len(hypotheses):
        raise InvalidRequest(f"each premise needs a hypothesis, got {len(premises)} and {len(hypotheses)}")
    for name, values in (("premise", premises), ("hypothesis", hypotheses)):
        if not all(value.strip() for value in values):
            raise InvalidRequest(f"a {name} must not be empty")
    return list(zip(premises, hypotheses, strict=True))
