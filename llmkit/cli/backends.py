"""`llmkit backends`: what is installed, and how to install the rest.

It imports no backend: everything it prints comes from package metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from llmkit.cli.terminal import emit, emit_json
from llmkit.registry import available_backends


def backends(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the backends."""
    infos = available_backends().values()
    if as_json:
        emit_json([{**asdict(info), "available": info.available} for info in infos])
        return
    rows = [(info.name, info.distribution, "available" if info.available else info.install) for info in infos]
    emit(aligned([("NAME", "PACKAGE", "STATUS"), *rows]))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of text whose columns begin at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
