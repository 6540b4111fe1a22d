"""Plain map-reduce summarising: cut a long text into passages, summarise each, then the summaries, until one is left.

Owns where a text is cut and when the rounds end. It knows no model or tokenizer: the caller counts tokens, renders the
prompt and runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator

from llmkit.characters import characters_problem
from llmkit.errors import GenerationError, InvalidRequest

CountTokens = Callable[[str], int]

# A unit is what is never cut unless it is too long alone: a word, or in scripts without spaces a run up to a full stop
# (the ideographic one, or a full-width exclamation or question mark).
_UNIT = re.compile(r"[^\s\u3002\uff01\uff1f]*[\u3002\uff01\uff1f]+|\S+")
_SENTENCE_END = re.compile(r"""[.!?\u2026\u3002\uff01\uff1f]["'\u201d\u2019\u00bb)\]]*\Z""")
_PARAGRAPH_GAP = re.compile(r"\n[^\S\n]*\n")


def summarize(
    text: str,
    *,
    run: Callable[[list[str]], list[str]],
    count_tokens: CountTokens,
    max_passage_tokens: int,
    render: Callable[[str], str],
) -> str:
    """Summarise a text of any length; one that fits a single passage takes a single call.

    Each round is one batch: `run` gets the rendered passages and gives as many summaries. While there was more than one
    passage, the summaries joined are the next round's text. It keeps no state.

    Args:
        text: At least one visible character.
        run: Prompts in, generated texts out, in order.
        count_tokens: Tokens of a bare passage, without what `render` adds.
        max_passage_tokens: The most tokens of one passage.
        render: The prompt that asks for the summary of a passage.

    Raises:
        InvalidRequest: The text is empty, or has half of a surrogate pair.
        ValueError: `max_passage_tokens` is too small, or `run` gave another number of texts.
        GenerationError: A round's summaries have no fewer tokens than its text, so rounds would never end.
    """
    rounds = reduced(text, count_tokens=count_tokens, max_passage_tokens=max_passage_tokens)
    summaries: list[str] | None = None
    while True:
        try:
            passages = next(rounds) if summaries is None else rounds.send(summaries)
        except StopIteration as finished:
            passage: str = finished.value
            break
        summaries = _all_of(run, [render(passage) for passage in passages])
    return _all_of(run, [render(passage)])[0] if passage else ""


def reduced(text: str, *, count_tokens: CountTokens, max_passage_tokens: int) -> Generator[list[str], list[str], str]:
    """Bring a text down to one passage: yields the passages of a round, and is sent a summary of each.

    A text that fits a single passage is returned at once, so that nothing is summarised twice without need.

    Returns:
        The one passage that is left to summarise; empty where all summaries were.

    Raises:
        InvalidRequest, ValueError, GenerationError: as `summarize`.
    """
    if not text.strip():
        raise InvalidRequest(f"text must contain something to summarize, got {text!r}")
    if (problem := characters_problem(text)) is not None:
        raise InvalidRequest(f"text {problem}")
    while True:
        passages = split_passages(text, count_tokens=count_tokens, max_passage_tokens=max_passage_tokens)
        if len(passages) == 1:
            return passages[0]
        summaries = yield passages
        joined = "\n\n".join(summary.strip() for summary in summaries if summary.strip())
        if not joined:
            return ""
        n_before, n_after = count_tokens(text), count_tokens(joined)
        if n_after >= n_before:
            raise GenerationError(
                f"summaries must be shorter than their text: {len(passages)} passages of together {n_before} tokens "
                f"gave summaries of {n_after}; ask for fewer tokens a summary"
            )
        text = joined


def _all_of(run: Callable[[list[str]], list[str]], prompts: list[str]) -> list[str]:
    texts = run(prompts)
    if len(texts) != len(prompts):
        raise ValueError(f"run must give one text a prompt: {len(prompts)} prompts gave {len(texts)} texts")
    return texts


def split_passages(text: str, *, count_tokens: CountTokens, max_passage_tokens: int) -> list[str]:
    """Cut a text into passages of at most `max_passage_tokens` tokens, as `count_tokens` counts each of them.

    Cuts fall at the end of a paragraph where one ends in the second half of what fits, else of a sentence there, else
    of a word; inside a word only when it is too long alone. Passages carry no whitespace at their ends; nothing else is
    lost, and the order stays. Each character is counted some ten times, so the cost grows in proportion to the text.

    Raises:
        ValueError: `max_passage_tokens` is below 1, or less than a single character needs.
    """
    if max_passage_tokens < 1:
        raise ValueError(f"max_passage_tokens must be at least 1, got {max_passage_tokens}")
    return list(_Splitter(text, count_tokens, max_passage_tokens).passages())


class _Splitter:
    """One pass over one text. A passage is a run of units; `start` is the offset where the next one begins."""

    def __init__(self, text: str, count_tokens: CountTokens, max_tokens: int) -> None:
        spans = [match.span() for match in _UNIT.finditer(text)]
        self._text = text
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens

    def passages(self) -> Iterator[str]:
        unit, n_units, hint = 0, len(self._ends), self._max_tokens
        start = self._starts[0] if n_units else 0
        while unit < n_units:
            n_fit = self._longest_fit(start, self._unit_end_from(unit), n_units - unit, hint)
            if n_fit == 0:
                for end in self._cuts_inside(start, self._ends[unit]):
                    yield self._text[start:end]
                    start = end
                hint = 1
                continue
            n_taken = self._best_cut(start, unit, n_fit)
            yield self._text[start : self._ends[unit + n_taken - 1]]
            unit, hint = unit + n_taken, n_fit
            start = self._starts[unit] if unit < n_units else len(self._text)

    def _unit_end_from(self, unit: int) -> Callable[[int], int]:
        return lambda n: self._ends[unit + n - 1]

    def _fits(self, start: int, end: int) -> bool:
        return self._count_tokens(self._text[start:end]) <= self._max_tokens

    def _longest_fit(self, start: int, end_of: Callable[[int], int], n_available: int, hint: int) -> int:
        """How many pieces from `start` fit, to within 3 %; `end_of(n)` is where n of them end. 0: not even one.

        Gallops from the passage before's length and bisects, so that it never counts much more than it takes.
        """
        low, high = 0, min(hint, n_available)
        while self._fits(start, end_of(high)):
            low, high = high, min(2 * high, n_available)
            if low == n_available:
                return low
        while high - low > 1 + low // 32:
            middle = (low + high) // 2
            if self._fits(start, end_of(middle)):
                low = middle
            else:
                high = middle
        return low

    def _cuts_inside(self, start: int, end: int) -> Iterator[int]:
        """Offsets that cut an over-long unit, until what is left of it fits."""
        hint = self._max_tokens
        while True:
            n_fit = self._longest_fit(start, start.__add__, end - start, hint)
            if n_fit == 0:
                raise ValueError(
                    f"max_passage_tokens must leave room for any single character, got {self._max_tokens}, "
                    f"but {self._text[start]!r} takes {self._count_tokens(self._text[start])} tokens"
                )
            if n_fit == end - start:
                return
            start, hint = start + n_fit, n_fit
            yield start

    def _best_cut(self, start: int, unit: int, n_fit: int) -> int:
        """How many of the fitting units to take: up to the last paragraph's end, or sentence's, in the second half."""
        if unit + n_fit == len(self._ends):
            return n_fit
        half = (start + self._ends[unit + n_fit - 1]) // 2
        second_half = [n for n in range(n_fit, 0, -1) if self._ends[unit + n - 1] >= half]
        for is_end in (self._ends_paragraph, self._ends_sentence):
            n_taken = next((n for n in second_half if is_end(unit + n - 1)), 0)
            if n_taken:
                # Asked again because a tokenizer may need more tokens for less text.
                return n_taken if self._fits(start, self._ends[unit + n_taken - 1]) else n_fit
        return n_fit

    def _ends_paragraph(self, unit: int) -> bool:
        return _PARAGRAPH_GAP.search(self._text, self._ends[unit], self._starts[unit + 1]) is not None

    def _ends_sentence(self, unit: int) -> bool:
        # A full stop and the quotes that may follow it are found in the last few characters, however long the unit.
        tail_start = max(self._starts[unit], self._ends[unit] - 8)
        return _SENTENCE_END.search(self._text[tail_start : self._ends[unit]]) is not None
