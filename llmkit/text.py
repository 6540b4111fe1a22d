"""From token ids to final text: an incremental detokenizer and a matcher for stop strings.

Both work one piece at a time and never take back what they gave out, so a stream joins to exactly the text that a
plain call returns. They know no tokenizer: decoding is a function that the backend passes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes of a UTF-8 character; a byte-level token holds at least one of them


class Detokenizer:
    """Turns one sequence's token ids into text as soon as the text is certain.

    Tokens are decoded together with their predecessors, because a tokenizer may join them (a leading space, a
    character spread over several tokens). Trailing replacement characters are held back until the character is whole,
    at most as long as a character can take. Not thread-safe; one object per sequence.

    Args:
        decode: token ids to text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context_start = 0
        self._pending_start = 0
        self._given = ""
        self._n_held = 0

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token; often one word, sometimes nothing."""
        self._ids.append(token_id)
        text = self._pending_text()
        self._n_held += 1
        if text.endswith(_UNFINISHED) and self._n_held <= _LONGEST_CHARACTER:
            piece = self._give(text.rstrip(_UNFINISHED))
            # A token may end one character and begin the next, whose own bytes are counted from here.
            self._n_held = 1 if piece else self._n_held
            return piece
        piece = self._give(text)
        # Tokens without text are no context: a tokenizer that joins by spaces would take what follows for a beginning.
        if text:
            self._context_start = self._pending_start
        self._pending_start, self._given, self._n_held = len(self._ids), "", 0
        return piece

    def flush(self) -> str:
        """What was held back, as it stands at the end of the sequence."""
        return self._give(self._pending_text())

    def _pending_text(self) -> str:
        context = self._decode(self._ids[self._context_start : self._pending_start])
        return self._decode(self._ids[self._context_start :])[len(context) :]

    def _give(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece


class StopMatcher:
    """Finds stop strings in a stream of text and lets none of them through, not even in part.

    The string that is complete first wins; of several that end together, the longest. The result does not depend on
    how the text is cut into pieces. Not thread-safe; one object per sequence.

    Args:
        stops: the stop strings, none of them empty.

    Attributes:
        matched: the stop string that was found, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """The part of the text so far that can no longer belong to a stop string, or ends before one."""
        if self.matched is not None or not self._stops:
            return piece if self.matched is None else ""
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        n_held = self._longest_beginning(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """What was held back because it might have become a stop string, at the end of the sequence."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of the text that is a proper beginning of a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for n in range(longest, 0, -1):
            if any(len(stop) > n and stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0


class OutputText:
    """The text of one choice while its tokens arrive, and the reason why it ends.

    Every route feeds its tokens here, so they all count, match and finish alike. Not thread-safe.

    Args:
        decode: token ids to text, special tokens left out.
        stops: stop strings.
        eos_ids: tokens that end the text; they count as generated and have no text.
        max_tokens: tokens after which the text ends, or None.
        is_whole: asked after each token whether the text is finished even without an EOS, as structured output may be.

    Attributes:
        token_ids: all tokens fed so far, the EOS included.
        finish_reason: `stop` or `length` once the text has ended.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        stops: Sequence[str] = (),
        eos_ids: Sequence[int] = (),
        max_tokens: int | None = None,
        is_whole: Callable[[], bool] | None = None,
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(stops)
        self._eos_ids = frozenset(eos_ids)
        self._max_tokens = max_tokens
        self._is_whole = is_whole
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None

    def feed(self, token_id: int) -> str:
        """The text that became final with this token; sets `finish_reason` where it is the last one."""
        self.token_ids.append(token_id)
        is_whole = self._is_whole is not None and self._is_whole()
        if token_id in self._eos_ids:
            return self.end("stop")
        piece = self._matcher.feed(self._detokenizer.feed(token_id))
        if self._matcher.matched is not None:
            self.finish_reason = "stop"
        elif is_whole:
            piece += self.end("stop")
        elif self._max_tokens is not None and len(self.token_ids) >= self._max_tokens:
            piece += self.end("length")
        return piece

    def end(self, reason: Literal["stop", "length"]) -> str:
        """End the text here, and return what was held back; a stop string in it still counts."""
        rest = self._matcher.feed(self._detokenizer.flush())
        if self._matcher.matched is not None:
            reason = "stop"
        self.finish_reason = reason
        return rest + self._matcher.flush()
