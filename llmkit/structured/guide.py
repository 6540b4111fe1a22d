"""Constraints compiled for one tokenizer: which tokens may come next, at every point of a text.

It knows tokens as bytes, through llguidance's view of a tokenizer; logits and how a token is chosen are the backend's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

from llmkit.errors import GenerationError
from llmkit.structured.constraint import Constraint
from llmkit.structured.fewest import Vocabulary, fewest_tokens
from llmkit.structured.grammars import matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GUIDES = 64
"""Compiled constraints that a model keeps, the least recently used going first."""


class Guides:
    """The compiled constraints of one tokenizer, each compiled once. Safe to use from many threads.

    Args:
        make_tokenizer: makes llguidance's view of the tokenizer; called once, when the first constraint comes. Its
            vocabulary must be as long as a row of logits.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._vocabulary: Vocabulary | None = None
        self._guides: OrderedDict[Constraint, Guide] = OrderedDict()
        self._lock = Lock()

    def get(self, constraint: Constraint) -> Guide:
        """The constraint, compiled.

        Raises:
            InvalidConstraint: it cannot be, with the reason.
            ExtraUnavailable: llguidance is not installed.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._make_tokenizer())
            guide = self._guides.pop(constraint, None) or Guide(constraint, self._vocabulary)
            self._guides[constraint] = guide
            if len(self._guides) > MAX_GUIDES:
                self._guides.popitem(last=False)
            return guide


class Guide:
    """A constraint compiled for one tokenizer. Immutable; safe to share between threads.

    Raises:
        InvalidConstraint: it cannot be compiled, with the reason.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.constraint, self._vocabulary = constraint, vocabulary
        self._start = matcher(vocabulary.tokenizer, constraint.kind, constraint.source)
        self._lock = Lock()

    @cached_property
    def fewest_tokens(self) -> int:
        """Tokens that even the shortest text needs: never too many, and seldom the exact number."""
        return fewest_tokens(self.constraint, self._vocabulary, self._start.compute_ff_bytes())

    def start(self, eos_ids: Sequence[int]) -> Matcher:
        """The state of a new text.

        Args:
            eos_ids: tokens that end it; allowed where the text may end, and nowhere else.
        """
        with self._lock:
            return Matcher(self._start.deep_copy(), self._vocabulary.tokenizer, frozenset(eos_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens as the constraint sees them: bytes joined, with nothing stripped or cleaned up."""
        return self._vocabulary.tokenizer.decode_str(list(token_ids))


@dataclass(slots=True)
class Matcher:
    """Where one text stands in its constraint. Not thread-safe; one object per choice.

    Before each token `mask` says which are allowed; after it `advance` takes the one that was chosen.

    Args:
        state: llguidance's matcher; owned by this object from now on.
        tokenizer: that it was compiled for.
        eos_ids: tokens that end the text.
    """

    state: LLMatcher
    tokenizer: LLTokenizer
    eos_ids: frozenset[int]
    _mask: bytes | None = field(default=None, init=False)
    _is_finished: bool = field(default=False, init=False)
    _problem: str | None = field(default=None, init=False)

    def mask(self) -> bytes:
        """One bit a token, the lowest bit of a byte first, 1 where it is allowed; at least the vocabulary long.

        All tokens are allowed once the text is over or has failed, so that the caller need not tell these apart.
        """
        if self._mask is None:
            self._look_ahead()
        return self._mask or b""

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen from the mask."""
        if self._is_finished or self._problem is not None:
            return
        if token_id in self.eos_ids:
            self._finish()
        elif self.state.consume_token(token_id):
            self._look_ahead()
        else:
            self._fail(self.state.get_error())

    @property
    def is_finished(self) -> bool:
        """Whether the text is whole and nothing more may come.

        Raises:
            GenerationError: the constraint cannot be followed any further.
        """
        if self._problem is not None:
            raise GenerationError(f"structured output failed: {self._problem}")
        return self._is_finished

    def _look_ahead(self) -> None:
        """Compute the next mask, which also tells whether anything may come."""
        mask = bytearray(self.state.compute_bitmask())
        if self.state.is_error():
            self._fail(self.state.get_error())
            return
        # llguidance marks the end of the text by a token of its own choice; ours are those of the request.
        may_end = _taken(mask, self.tokenizer.eos_token)
        for token_id in self.eos_ids:
            _taken(mask, token_id)
        if mask.count(0) < len(mask):
            self._mask = bytes(_with(mask, self.eos_ids if may_end else ()))
        elif may_end:
            self._finish()
        else:
            self._fail("the tokenizer has no token to go on with")

    def _finish(self) -> None:
        self._is_finished, self._mask = True, self._everything()

    def _fail(self, problem: str) -> None:
        self._problem, self._mask = problem.strip() or "the token was not allowed", self._everything()

    def _everything(self) -> bytes:
        return b"\xff" * (self.tokenizer.vocab_size // 8 + 4)


def _taken(mask: bytearray, token_id: int) -> bool:
    """Clear a token's bit, and say whether it was set."""
    index, bit = token_id // 8, 1 << token_id % 8
    if index >= len(mask) or not mask[index] & bit:
        return False
    mask[index] &= ~bit
    return True


def _with(mask: bytearray, token_ids: Sequence[int] | frozenset[int]) -> bytearray:
    for token_id in token_ids:
        if token_id // 8 < len(mask):
            mask[token_id // 8] |= 1 << token_id % 8
    return mask
