"""The plot of `docs/benchmarks.md`: how much faster than each peer, and how a step's time grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from benchmarks.steps import BATCH_GROWTH, HISTORY_GROWTH

_SIZE_INCHES, _DOTS_PER_INCH = (10, 8), 110


def write_plot(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG of the ratios that have a limit and of a step's growth; what was not measured is left blank."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2)
    _ratios(figure.add_subplot(grid[0, :]), [row for row in rows if row.unit == "x" and row.limit is not None])
    _growth(figure.add_subplot(grid[1, 0]), BATCH_GROWTH, "sequences", rows)
    _growth(figure.add_subplot(grid[1, 1]), HISTORY_GROWTH, "tokens before", rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _ratios(axes: Any, rows: Sequence[Row]) -> None:
    """Bars of llmkit's time over the other side's, with a mark at the limit."""
    names = [f"{row.workload}: {row.what}" for row in rows]
    axes.barh(names, [row.median for row in rows], color="#5470c6", height=0.6)
    axes.scatter([row.limit for row in rows], names, marker="|", s=160, color="#c0392b", label="limit", zorder=3)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("time over the other side's (below 1 is faster)")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="lower right") if rows else axes.set_visible(False)


def _growth(axes: Any, workload: str, label: str, rows: Sequence[Row]) -> None:
    """Lines of milliseconds over a number; a row's name is that number, and what else tells its line."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.workload == workload:
            number, _, line = row.what.partition(" ")
            lines.setdefault(line, []).append((int(number), 1000 * row.median))
    for line, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=line)
    axes.set(title=workload, xlabel=label, ylabel="ms")
    if lines:
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
