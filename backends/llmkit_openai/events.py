"""Server-sent events: bytes in whatever pieces they come, to the data of each event.

Lines are split as bytes: a character may come in two pieces, and only CR and LF end a line here, while Python's own
splitting would also break JSON at U+2028. It knows nothing of what the data says.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re

# A CR at the end of a piece may be the first half of a CR LF.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Reads one stream of events. Not thread-safe; one object per stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes."""
        text = self._rest + piece
        *lines, self._rest = _LINE_END.split(text) if b"\r" in text else text.split(b"\n")
        if lines and self._at_start:
            lines[0], self._at_start = lines[0].removeprefix(_BYTE_ORDER_MARK), False
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line:
                events += self.end()
        return events

    def end(self) -> list[bytes]:
        """The event whose lines are whole but not followed by an empty one, as some servers end their stream."""
        if not self._data:
            return []
        data, self._data = b"\n".join(self._data), []
        return [data]
