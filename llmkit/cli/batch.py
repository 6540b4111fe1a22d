"""`llmkit batch`: a file of prompts in, a file of answers out, gone on with where it was interrupted.

It knows options and words; what a run is, is `llmkit.pipeline`'s matter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmkit.cli.options import ModelOptions, open_model, takes_model_options
from llmkit.cli.terminal import emit_json, read_stdin, say

if TYPE_CHECKING:
    from llmkit.pipeline import Pipeline, Report, Source

PROMPT_COLUMNS = ("prompt", "instruction")
_SOURCE_HINT = "'IN'"


@takes_model_options
def batch(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .jsonl, .csv or .parquet file; - reads JSONL.", show_default=False)
    ],
    *,
    options: ModelOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="A .jsonl, .csv or .parquet file; stdout if left out."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column to ask; prompt or instruction if left out.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this, with columns as in 'Translate: {{ text }}'.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Rows that the model gets at once.")] = 50,
    journal: Annotated[
        bool, typer.Option("--journal/--no-journal", help="Keep results in OUT.journal, to go on after a crash.")
    ] = True,
) -> None:
    """Answer every row of a file; run it again to go on where it was interrupted."""
    from llmkit.pipeline import Pipeline
    from llmkit.tasks import TextGeneration

    rows = _source(source)
    values = options.values()
    asked = {} if template else {"instruction": _column(rows, column)}
    task = TextGeneration(
        name="batch",
        llm=lambda: open_model(options.model, values),
        template=template,
        input_mappings={name: mapped for name, mapped in asked.items() if name != mapped},
        input_batch_size=batch_size,
        add_raw_output=False,
    )
    leave_with(run_pipeline(Pipeline("batch") >> task, rows, output, {} if journal else {"journal": False}))


def run_pipeline(pipeline: Pipeline, source: Source, sink: Path | None, settings: dict[str, Any]) -> Report | int:
    """Run into a file, or onto stdout as JSON lines.

    Returns:
        The report; of a run onto stdout, the number of rows that failed.
    """
    if sink is not None:
        report = pipeline.run(source, sink, **settings)
        if sys.stderr.isatty():
            say(f"{report.rows_out} rows in {sink}: {report.computed} results new, {report.reused} from before")
        return report
    n_failed = 0
    for row in pipeline.stream(source, **{key: value for key, value in settings.items() if value is not False}):
        emit_json(row, compact=True)
        n_failed += _has_failed(row)
    return n_failed


def leave_with(result: Report | int) -> None:
    """End with 1 where rows failed, and say so."""
    n_failed = result if isinstance(result, int) else result.failed
    if n_failed:
        say(f"error: {n_failed} results failed; each row's llmkit_metadata has the reason, and a new run tries again")
        raise typer.Exit(1)


def _has_failed(row: dict[str, Any]) -> bool:
    notes: Any = row.get("llmkit_metadata") or {}
    entries = cast("list[dict[str, Any]]", notes if isinstance(notes, list) else [notes])
    return any(key.startswith("error_") for entry in entries for key in entry)


def _source(name: str) -> Source:
    """The rows of a file, or of stdin.

    Raises:
        typer.BadParameter: it cannot be read.
    """
    from llmkit.errors import PipelineError
    from llmkit.pipeline import jsonl_rows, open_source

    try:
        return open_source(jsonl_rows(read_stdin(_SOURCE_HINT), "stdin")) if name == "-" else open_source(name)
    except PipelineError as error:
        raise typer.BadParameter(str(error), param_hint=_SOURCE_HINT) from error


def _column(source: Source, column: str | None) -> str:
    """The column that holds the prompts.

    Raises:
        typer.BadParameter: it is not there.
    """
    there = source.columns or ()
    wanted = (column,) if column else PROMPT_COLUMNS
    found = next((name for name in wanted if name in there), None)
    if found is None and there:
        raise typer.BadParameter(
            f"there is no column {' or '.join(wanted)}, the columns are: {', '.join(there)}", param_hint="'--column'"
        )
    return found or wanted[0]
