"""Rows as JSON, many at once: a call of the encoder costs as much as a small row.

It knows the texts alone, not what they are for.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

# Stands between the values in the one text that is made of all. It is drawn anew in each process, so no row holds it.
_MARK = secrets.token_hex(16)


class RowEncoder:
    """JSON of values, as `json.dumps` makes it; NaN and infinities are refused. Safe to use from many threads.

    Args:
        separators: between items, and between key and value.
        sort_keys: keys in their order rather than as they come.
        ensure_ascii: other characters escaped.
    """

    def __init__(
        self, *, separators: tuple[str, str] = (", ", ": "), sort_keys: bool = False, ensure_ascii: bool = True
    ) -> None:
        self._encoder = json.JSONEncoder(
            separators=separators, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False
        )
        self._between = f'{separators[0]}"{_MARK}"{separators[0]}'

    def each(self, values: Sequence[object]) -> list[str]:
        """The text of each value.

        Raises:
            TypeError: a value is not of those that JSON holds.
            ValueError: a number is not finite, or a value holds itself.
        """
        if not values:
            return []
        marked: list[object] = [_MARK] * (2 * len(values) - 1)
        marked[::2] = values
        return self.one(marked)[1:-1].split(self._between)

    def one(self, value: object) -> str:
        """The text of a value; errors are those of `each`."""
        return self._encoder.encode(value)
