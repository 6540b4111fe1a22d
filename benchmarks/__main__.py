"""Runs the workloads and reports them.

    python -m benchmarks                    all of them: a table, and build/bench/results.json
    python -m benchmarks startup            one of them
    python -m benchmarks --page             also write the table, the JSON and the plot of docs/benchmarks.md

A workload is a function that returns rows; adding one here is all that it takes. Timings mean something on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.batches import batches
from benchmarks.company import concurrency, reproducible
from benchmarks.llama_cpp import llama_cpp_loop
from benchmarks.measure import Row
from benchmarks.openai_overhead import openai_overhead
from benchmarks.overhead import overhead
from benchmarks.pipeline import pipeline
from benchmarks.plot import write_plot
from benchmarks.report import machine, print_table, write_json, write_page
from benchmarks.reuse import chat, choices
from benchmarks.startup import startup
from benchmarks.steps import growth, shares
from benchmarks.structured import structured

ROOT = Path(__file__).parent.parent
WORKLOADS: Mapping[str, Callable[[], list[Row]]] = {
    "startup": startup,
    "overhead": overhead,
    "batches": batches,
    "choices": choices,
    "chat": chat,
    "concurrency": concurrency,
    "reproducible": reproducible,
    "growth": growth,
    "shares": shares,
    "structured": structured,
    "llama_cpp": llama_cpp_loop,
    "openai": openai_overhead,
    "pipeline": pipeline,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="llmkit against what it wraps.")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "results.json", metavar="FILE")
    parser.add_argument("--page", action="store_true", help="write what docs/benchmarks.md shows")
    options = parser.parse_args()
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    facts = machine()
    rows = [row for name in options.workloads or WORKLOADS for row in WORKLOADS[name]()]
    print_table(rows, facts)
    write_json(options.json, rows, facts)
    write_plot(options.json.with_suffix(".png"), rows)
    if options.page:
        docs = ROOT / "docs"
        write_page(docs / "benchmarks.md", rows, facts)
        write_json(docs / "assets" / "benchmarks.json", rows, facts)
        write_plot(docs / "assets" / "benchmarks.png", rows)


if __name__ == "__main__":
    main()
