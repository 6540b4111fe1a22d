"""Runs the notebooks and stores them with what they show, so that they can be read where nothing runs.

    python -m tools.notebooks    run examples/notebooks/*.ipynb in place, and write their plots to docs/assets/notebooks

What a notebook computes depends on the embedded model: run this after `make tiny`. It knows no notebook in particular.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "examples" / "notebooks"
PLOTS = ROOT / "docs" / "assets" / "notebooks"
CELL_TIMEOUT_S = 200


def executed(path: Path, *, more: str = "") -> NotebookNode:
    """The notebook as it is after a run in its own folder, its outputs included.

    Args:
        path: the notebook; the file is not changed.
        more: code for a last cell, which the notebook then has.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources=resources,
    )
    # tqdm would rather have Jupyter's widgets; nothing here shows a bar.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    # The version of the interpreter that happened to run it.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def plots(notebook: NotebookNode) -> dict[str, bytes]:
    """The PNGs that the cells show, each under its cell's id."""
    return {
        cell.id: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    }


def main() -> None:
    PLOTS.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = executed(path)
        nbformat.write(notebook, path)
        for name, png in plots(notebook).items():
            (PLOTS / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main()
