"""How far a run is: the counts of its report, and a bar with rows/s, tokens/s and failures where a terminal shows it.

It counts what runners tell it and times it; it knows no steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmkit.progress import is_terminal, new_bar


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    Attributes:
        rows_in: rows read from the source.
        rows_out: rows that came out.
        failed: results that hold a reason instead, counted in every step. They are tried again by the next run.
        reused: results of single steps that an earlier run had recorded.
        computed: results of single steps that this run made.
        tokens: tokens that this run generated, as far as models count them.
        elapsed_s: seconds from the first row read to the last row written.
    """

    rows_in: int = 0
    rows_out: int = 0
    failed: int = 0
    reused: int = 0
    computed: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0


class Progress:
    """Counts a run and shows it. Not for several threads.

    Args:
        label: written before the bar.
        n_rows: rows that will come; None where that is not known.
        show: whether there is a bar; None shows it where stderr is a terminal.
    """

    def __init__(self, label: str, n_rows: int | None = None, *, show: bool | None = None) -> None:
        self.rows_in = self.rows_out = self.failed = self.reused = self.computed = self.tokens = 0
        self._started_s = time.monotonic()
        shown = is_terminal() if show is None else show
        self._bar = new_bar(desc=label, total=n_rows, unit="rows") if shown else None

    def batch_done(self, rows_in: int, rows_out: int) -> None:
        """Rows that went in have come out."""
        self.rows_in += rows_in
        self.rows_out += rows_out
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.update(rows_in)

    def report(self) -> Report:
        """The counts as they are now."""
        counts = (self.rows_in, self.rows_out, self.failed, self.reused, self.computed, self.tokens)
        return Report(*counts, elapsed_s=time.monotonic() - self._started_s)

    def close(self) -> None:
        """Take the bar's line to its end. Safe twice."""
        if self._bar is not None:
            self._bar.close()

    def _postfix(self) -> str:
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        return f"{self.tokens / elapsed_s:.1f} tokens/s, {self.failed} failed"
