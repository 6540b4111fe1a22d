"""`llmkit backends`: what is installed, how to install the rest, and whether one keeps llmkit's contract.

The list imports no backend: everything in it comes from package metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from llmkit.cli.terminal import emit, emit_json
from llmkit.registry import available_backends, backend_class


def backends(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    check: Annotated[
        str | None,
        typer.Option(metavar="NAME[:MODEL]", help="Run the conformance kit on a backend instead; it needs pytest."),
    ] = None,
) -> None:
    """List the backends, or check one."""
    if check is not None:
        raise typer.Exit(_checked(check))
    infos = available_backends().values()
    if as_json:
        emit_json([{**asdict(info), "available": info.available} for info in infos])
        return
    rows = [(info.name, info.distribution, "available" if info.available else info.install) for info in infos]
    emit(aligned([("NAME", "PACKAGE", "STATUS"), *rows]))


def _checked(name: str) -> int:
    """The exit code of the conformance kit.

    Raises:
        UnknownBackend: no such backend is installed.
        BackendUnavailable: something it needs is not installed.
    """
    from llmkit.testing.check import check

    backend, _, model = name.partition(":")
    backend_class(backend)
    return 0 if check(f"{backend}:{model}") else 1


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of text whose columns begin at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
