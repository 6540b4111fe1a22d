"""`llmkit pipeline`: running, checking and drawing a pipeline that a YAML file describes.

It knows options and words; the file's form is `llmkit.pipeline.config`'s matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.batch import leave_with, run_pipeline
from llmkit.cli.terminal import emit

if TYPE_CHECKING:
    from llmkit.pipeline.config import PipelineConfig

File = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline's YAML.", show_default=False)]
In = Annotated[Path | None, typer.Option("--input", "-i", metavar="IN", help="Read this instead of the file's source.")]
Out = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Write this instead of the file's sink.")
]


def run(
    file: File,
    source: In = None,
    output: Out = None,
    runner: Annotated[str | None, typer.Option(metavar="NAME", help="local or ray, whatever the file says.")] = None,
) -> None:
    """Run a pipeline; run it again to go on where it was interrupted."""
    from llmkit.pipeline import open_source

    config = _config(file)
    origin = source or config.source
    if origin is None:
        raise typer.BadParameter(f"{file} names no source", param_hint="'--input'")
    settings = dict(config.settings) | ({"runner": runner} if runner else {})
    leave_with(run_pipeline(config.pipeline, open_source(origin), output or config.sink, settings))


def check(file: File, source: In = None) -> None:
    """Check that steps, columns and files fit together, without loading a model."""
    config = _config(file)
    config.pipeline.check(source or config.source)


def draw(file: File) -> None:
    """Print the graph as a Mermaid flowchart."""
    emit(_config(file).pipeline.draw())


def _config(file: Path) -> PipelineConfig:
    from llmkit.pipeline.config import load_config

    return load_config(file)


def pipeline_commands() -> typer.Typer:
    """The commands about pipelines."""
    commands = typer.Typer(no_args_is_help=True, help="Run, check and draw pipelines of YAML files.")
    for command in (run, check, draw):
        commands.command()(command)
    return commands
