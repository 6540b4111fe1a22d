"""`llmkit prepare`: records in, token ids with labels out, for transformers' Trainer.

It knows files and options; what becomes of a record is `llmkit.training_data`'s matter.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmkit.cli.terminal import say, working
from llmkit.registry import EMBEDDED_MODEL

if TYPE_CHECKING:
    from llmkit.prompts import PromptStyle


def prepare(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A .json, .jsonl, .csv or .parquet file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A .jsonl or .parquet file, or a folder to save to.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Whose tokenizer; the demo model's if left out."),
    ] = None,
    prompt_type: Annotated[
        str, typer.Option(metavar="STYLE", help="A prompt style, its JSON, or auto, for records that name none.")
    ] = "plain",
    data_col_dict: Annotated[
        str | None, typer.Option(metavar="JSON", help='Renames columns: {"A": "input", "B": "output"}.')
    ] = None,
    cutoff_len: Annotated[int, typer.Option(metavar="N", help="Most tokens of an example.")] = 512,
    train_on_inputs: Annotated[
        bool, typer.Option("--train-on-inputs/--train-on-outputs", help="Learn the whole text, or the output alone.")
    ] = True,
    drop_truncations: Annotated[bool, typer.Option("--drop-truncations", help="Leave out what would be cut.")] = False,
    add_eos_token: Annotated[
        bool, typer.Option("--add-eos-token/--no-eos-token", help="End complete texts with the EOS token.")
    ] = True,
    pad: Annotated[bool, typer.Option("--pad/--no-pad", help="Lengthen all examples to the longest.")] = True,
) -> None:
    """Prepare records for fine-tuning."""
    # Imported when it is used: it needs pydantic, and `llmkit --help` does not.
    from llmkit.training_data import load_tokenizer, prepare_dataset

    check_output(output)
    style, names = _style(prompt_type, model), _object(data_col_dict, "--data-col-dict")
    with working("Preparing ..."):
        try:
            dataset = prepare_dataset(
                data,
                load_tokenizer(model),
                data_col_dict=names,
                pad=pad,
                prompt_type=style,
                cutoff_len=cutoff_len,
                train_on_inputs=train_on_inputs,
                drop_truncations=drop_truncations,
                add_eos_token=add_eos_token,
            )
        except OSError as error:
            raise typer.BadParameter(f"cannot read {str(data)!r}: {error.strerror}", param_hint="'DATA'") from error
    if not sys.stderr.isatty():
        cast("Any", import_module("datasets")).disable_progress_bars()
    save(dataset, output)
    say(f"{len(dataset)} examples in {output}")


def save(dataset: Any, output: Path) -> None:
    """Write a data set in the form that the ending of the name says; without one, as a folder of `datasets`."""
    if output.suffix == ".jsonl":
        output.write_text("".join(f"{json.dumps(row)}\n" for row in dataset), encoding="utf-8")
    elif output.suffix == ".parquet":
        dataset.to_parquet(output)
    else:
        dataset.save_to_disk(output)


def check_output(output: Path) -> None:
    """Refuse a name whose ending says no known form.

    Raises:
        typer.BadParameter: it has another ending, or no folder to be in.
    """
    if output.suffix not in ("", ".jsonl", ".parquet"):
        raise typer.BadParameter(
            f"must end in .jsonl or .parquet, or be a folder, got {output.name!r}", param_hint="'-o'"
        )
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"its folder does not exist: {str(output)!r}", param_hint="'-o'")


def _style(text: str, model: str | None) -> PromptStyle:
    from llmkit.prompts import as_style

    named = _object(text, "--prompt-type") if text.lstrip().startswith("{") else text
    return as_style(named, model or EMBEDDED_MODEL)


def _object(text: str | None, option: str) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a JSON object, got {text!r}", param_hint=f"'{option}'") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"must be a JSON object, got {text!r}", param_hint=f"'{option}'")
    return cast("dict[str, str]", value)
