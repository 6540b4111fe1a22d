"""From records to token ids with labels, no longer than a cutoff.

Owns what of a text is learned, and what goes where it is too long. It knows a fast tokenizer of transformers by its
call alone, and neither files nor data sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

from llmkit.errors import InvalidRequest, ParameterError, UnsupportedFeature
from llmkit.prompts import Piece, PromptStyle, as_style, get_style
from llmkit.training_data.records import PARTS, Record

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How records become examples.

    Attributes:
        prompt_type: the style of records that name none: a name, a dictionary, or a `PromptStyle`.
        cutoff_len: the most tokens of an example, its EOS included; None for no limit.
        train_on_inputs: learn the whole text; otherwise the output alone, all before it labelled -100.
        drop_truncations: leave out records that would have to be cut.
        add_eos_token: end an example whose text is complete with the tokenizer's EOS.

    Raises:
        ParameterError: the cutoff is below 1.
        PromptStyleError: no such prompt style, or a malformed one.
    """

    prompt_type: str | PromptStyle | Mapping[str, object] = "plain"
    cutoff_len: int | None = 512
    train_on_inputs: bool = True
    drop_truncations: bool = False
    add_eos_token: bool = True

    def __post_init__(self) -> None:
        if self.cutoff_len is not None and self.cutoff_len < 1:
            raise ParameterError(f"cutoff_len must be at least 1, got {self.cutoff_len}")
        as_style(self.prompt_type)


@dataclass(frozen=True, slots=True)
class Example:
    """What a model learns from.

    Attributes:
        input_ids: the text's tokens.
        labels: the same, or -100 where nothing is learned.
        truncated: the record was cut to fit.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False


def encode_records(records: Iterable[Record], tokenizer: Any, options: EncodingOptions) -> Iterator[Example]:
    """An example for each record, in order; fewer where `drop_truncations` leaves some out.

    A text that is too long loses the ends of its longest parts, the longest first; the style's own text, such as the
    tags of the roles, always stays whole. An output that was cut does not end with EOS.

    Args:
        records: what to learn.
        tokenizer: a fast tokenizer of transformers; with `add_eos_token` it must have an EOS.
        options: see there.

    Raises:
        UnsupportedFeature: the tokenizer does not tell which token stands for which text.
        InvalidRequest: the message has the number of the record.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedFeature(f"preparing data needs a fast tokenizer, got {type(tokenizer).__name__}")
    if options.add_eos_token and tokenizer.eos_token_id is None:
        raise InvalidRequest("add_eos_token needs a tokenizer with an EOS token, and this one has none")
    for at, record in enumerate(records):
        try:
            example = _Encoder(record, tokenizer, options).example()
        except (InvalidRequest, ParameterError) as error:
            raise type(error)(f"record {at}: {error}") from error
        if not (example.truncated and options.drop_truncations):
            yield example


class _Encoder:
    """One record on its way."""

    def __init__(self, record: Record, tokenizer: Any, options: EncodingOptions) -> None:
        self._style = as_style(record.prompt_type or options.prompt_type)
        self._parts = {part: cast("str", getattr(record, part)) for part in PARTS}
        self._tokenizer, self._options = tokenizer, options
        if not any(self._parts.values()):
            raise InvalidRequest("instruction, input and output must not all be empty")
        if not options.train_on_inputs and not record.output:
            raise InvalidRequest("with train_on_inputs=False there must be an output, or nothing is learned")

    def example(self) -> Example:
        """The example; without its tokens, where it would have to be cut and is to be dropped."""
        ids, labels = self._encoded(self._parts)
        kept, cutoff = self._parts, self._options.cutoff_len
        while cutoff is not None and len(ids) > cutoff:
            if self._options.drop_truncations:
                return Example([], [], truncated=True)
            if not any(kept.values()):
                raise ParameterError(f"cutoff_len must leave room for the {len(ids)} tokens of the style, got {cutoff}")
            kept = self._shorter(kept, len(ids) - cutoff)
            ids, labels = self._encoded(kept)
        if kept != self._parts and set(labels) <= {IGNORED}:
            raise ParameterError(f"cutoff_len must leave room for something to learn, got {cutoff}")
        return Example(ids, labels, truncated=kept != self._parts)

    def _encoded(self, parts: Mapping[str, str]) -> tuple[list[int], list[int]]:
        pieces = self._style.pieces(**parts, begin=False)
        ids, offsets = self._tokens(pieces)
        learned_from = 0 if self._options.train_on_inputs else _start_of_output(pieces)
        labels = [
            token if end > learned_from or learned_from == 0 else IGNORED
            for token, (_, end) in zip(ids, offsets, strict=True)
        ]
        eos = self._tokenizer.eos_token_id
        if self._options.add_eos_token and self._is_complete(parts) and ids[-1:] != [eos]:
            return [*ids, eos], [*labels, eos]
        return ids, labels

    def _tokens(self, pieces: list[Piece]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and where in the text each begins and ends."""
        text = "".join(piece.text for piece in pieces)
        encoded = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _is_complete(self, parts: Mapping[str, str]) -> bool:
        """Whether the text ends where its author ended it, rather than at a cut or before a response."""
        last = next(part for part in reversed(PARTS) if self._parts[part])
        return parts[last] == self._parts[last] and (last == "output" or not self._style.response_prefix)

    def _shorter(self, parts: Mapping[str, str], n_excess: int) -> dict[str, str]:
        """The parts without `n_excess` tokens, or a few more, at the ends of the longest ones."""
        pieces = self._style.pieces(**parts, begin=False)
        _, offsets = self._tokens(pieces)
        spans = _spans(pieces)
        # A token that begins in the text before a part counts as that text's.
        starts = {
            part: [begin - first for begin, end in offsets if first <= begin < min(end, last)]
            for part, first, last in spans
        }
        shorter = dict(parts)
        for part, n_kept in _levelled({part: len(found) for part, found in starts.items()}, n_excess).items():
            if n_kept < len(starts[part]):
                shorter[part] = self._cut(parts[part], starts[part][n_kept])
        if shorter == parts:
            longest = max(parts, key=lambda part: len(parts[part]))
            shorter[longest] = parts[longest][:-1]
        return shorter

    def _cut(self, text: str, at: int) -> str:
        """The text up to a place, or up to a role's tag that the place would split."""
        tags = self._style.stop or get_style("human_bot").stop
        for tag in tags:
            begin = text.rfind(tag, 0, at + len(tag) - 1)
            if begin >= 0 and begin < at < begin + len(tag):
                return text[:begin]
        return text[:at]


def _spans(pieces: list[Piece]) -> list[tuple[str, int, int]]:
    """(part, begin, end) in the rendered text."""
    ends = list(accumulate(len(piece.text) for piece in pieces))
    return [(p.part, end - len(p.text), end) for p, end in zip(pieces, ends, strict=True) if p.part and p.text]


def _start_of_output(pieces: list[Piece]) -> int:
    """Where what the model is to write begins: the output, and what the style leaves to the model before it."""
    at = next((n for n, piece in enumerate(pieces) if piece.part == "output"), len(pieces) + 1)
    return sum(len(piece.text) for piece in pieces[: at - 1])


def _levelled(n_tokens: Mapping[str, int], n_excess: int) -> dict[str, int]:
    """How many tokens each part keeps when `n_excess` go, always from the longest."""
    kept = dict(n_tokens)
    for _ in range(min(n_excess, sum(kept.values()))):
        kept[max(kept, key=lambda part: kept[part])] -= 1
    return kept
