"""Records: rows of a file, or of a program, as instruction, input and output.

Owns which columns mean what. It knows no tokenizer, and of a prompt style no more than its name.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

from llmkit.errors import ExtraUnavailable, InvalidRequest, did_you_mean

PARTS = ("instruction", "input", "output")
COLUMNS = (*PARTS, "prompt_type")

Rows: TypeAlias = "Iterable[Mapping[str, Any]]"


@dataclass(frozen=True, slots=True)
class Record:
    """One example to learn from; parts that its row does not have are empty.

    Attributes:
        instruction: what to do.
        input: what to do it with.
        output: the response.
        prompt_type: name of the prompt style; None leaves it to the caller.
    """

    instruction: str = ""
    input: str = ""
    output: str = ""
    prompt_type: str | None = None


def parse_record(row: Mapping[str, Any], data_col_dict: Mapping[str, str] | None = None, *, at: int = 0) -> Record:
    """The record of a row.

    Args:
        row: at least one of its columns must be `instruction`, `input` or `output`, perhaps after renaming.
        data_col_dict: renames columns, from the row's names to those above or to `prompt_type`.
        at: the row's number from 0, for messages.

    Raises:
        InvalidRequest: none of the three is there, a renamed column is not, or a value is not text.
    """
    renamed = _renamed(row, data_col_dict or {}, at)
    if not any(part in renamed for part in PARTS):
        found = ", ".join(map(repr, row)) or "none"
        raise InvalidRequest(f"row {at} must have a column instruction, input or output; found are {found}")
    return Record(**{name: _text(renamed[name], name, at) for name in COLUMNS if renamed.get(name) is not None})


def _renamed(row: Mapping[str, Any], names: Mapping[str, str], at: int) -> dict[str, Any]:
    for column, name in names.items():
        if name not in COLUMNS:
            raise InvalidRequest(
                f"data_col_dict must map to {', '.join(COLUMNS)}, got {name!r}{did_you_mean(name, COLUMNS)}"
            )
        if column not in row:
            raise InvalidRequest(f"data_col_dict names the column {column!r}; row {at} has {', '.join(map(repr, row))}")
        if name in row and name not in names and column != name:
            raise InvalidRequest(f"data_col_dict maps {column!r} to {name!r}, which row {at} has already")
    if len(set(names.values())) < len(names):
        raise InvalidRequest(f"data_col_dict must map to different columns, got {dict(names)!r}")
    return {names.get(column, column): value for column, value in row.items()}


def _text(value: Any, name: str, at: int) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, got {value!r} in row {at}")
    return value


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file; its ending says which kind it is: .json, .jsonl, .csv or .parquet.

    A `.json` file holds a list of objects, or an object a line.

    Raises:
        InvalidRequest: the ending is another one, or the file is malformed.
        OSError: it cannot be read.
    """
    path = Path(path)
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidRequest(f"a data file must end in {', '.join(readers)}, got {path.name!r}")
    return reader(path)


def _json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        rows: list[Any] = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{path.name} is not JSON: {error}") from error
    for at, row in enumerate(rows):
        yield _object(row, f"{path.name}, row {at}")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path.name}, line {number}"
                try:
                    row: Any = json.loads(line)
                except ValueError as error:
                    raise InvalidRequest(f"{where} is not JSON: {error}") from error
                yield _object(row, where)


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InvalidRequest(f"{where} must be an object, got {row!r}")
    return cast("dict[str, Any]", row)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for at, row in enumerate(csv.DictReader(lines, strict=True)):
            if None in row or None in row.values():
                raise InvalidRequest(f"{path.name}, row {at} has more or fewer cells than the heading")
            yield dict(row)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ExtraUnavailable("reading Parquet", "pyarrow", "data") from error
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
