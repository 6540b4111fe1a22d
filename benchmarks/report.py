"""The figures as a table in the terminal, as JSON, and as the table of `docs/benchmarks.md`.

It measures nothing but the machine: processor, cores, load, versions; no host names.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import psutil
import rich
from rich.table import Table

from benchmarks.measure import Row

BEGIN, END = "<!-- figures: written by python -m benchmarks --page -->", "<!-- end of figures -->"
HEADER = ("workload", "figure", "median", "quartiles", "rounds", "limit", "")


def machine() -> dict[str, str | int | float]:
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or 0,
        "logical_cpus": psutil.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "llmkit": version("llmkit"),
    }


def print_table(rows: Sequence[Row], facts: dict[str, str | int | float]) -> None:
    table = Table(*HEADER)
    for cells in map(_cells, rows):
        table.add_row(*cells)
    rich.print(table)
    rich.print(", ".join(f"{name} {value}" for name, value in facts.items()))


def write_json(path: Path, rows: Sequence[Row], facts: dict[str, str | int | float]) -> None:
    document = {"machine": facts, "rows": [asdict(row) | {"keeps_limit": row.keeps_limit} for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_page(path: Path, rows: Sequence[Row], facts: dict[str, str | int | float]) -> None:
    """Replace the figures in a page that has the two markers."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    lines = [HEADER, ("---",) * len(HEADER), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    described = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{described}\n\n{END}{after}", encoding="utf-8")


def _cells(row: Row) -> tuple[str, ...]:
    kept = {None: "", True: "kept", False: "over"}[row.keeps_limit]
    limit = "" if row.limit is None else f"{row.limit:.3g} {row.unit}"
    median, quartiles = f"{_short(row.median)} {row.unit}", f"{_short(row.low)} to {_short(row.high)}"
    return row.workload, row.what, median, quartiles, str(row.n), limit, kept


def _short(value: float) -> str:
    """Three digits that count, at least."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
