"""Where rows come from: files of JSONL, CSV or Parquet, `datasets`, and anything that gives dictionaries.

Rows are read as they are needed, so that a source may be endless. It knows no steps, and writes nothing.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from llmkit.errors import PipelineError
from llmkit.pipeline.keys import Row

RowSource: TypeAlias = "Source | str | os.PathLike[str] | Iterable[Row]"
"""A file by its suffix (.jsonl, .ndjson, .csv, .parquet), a `datasets` object, or rows."""

_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, and what is known of them before the first is read.

    Attributes:
        rows: gives the rows; called once a run.
        columns: columns that every row has; None where that is not known.
        n_rows: how many there are; None where that is not known.
    """

    rows: Callable[[], Iterator[Row]]
    columns: tuple[str, ...] | None = None
    n_rows: int | None = None


def open_source(source: RowSource, columns: Sequence[str] | None = None) -> Source:
    """A source of a path, of a `datasets` object or of rows.

    Args:
        source: as described at `RowSource`.
        columns: keep these columns alone.

    Raises:
        PipelineError: the file is missing or of no known kind, or a column is not there.
    """
    opened = source if isinstance(source, Source) else _opened(source)
    return opened if columns is None else _narrowed(opened, tuple(columns))


def _opened(source: str | os.PathLike[str] | Iterable[Row]) -> Source:
    if isinstance(source, (str, os.PathLike)):
        return _file(Path(source))
    if hasattr(source, "column_names"):
        return _dataset(cast("Any", source))
    if isinstance(cast("object", source), Mapping) or not isinstance(source, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PipelineError(f"a source must be a file, a dataset or rows, got {type(source).__name__}")
    if isinstance(source, Sequence):
        return Source(lambda: _checked(source), _first_columns(iter(source)), len(source))
    # An iterator can be read once: whoever runs the pipeline again passes a new one.
    return Source(lambda: _checked(source))


def _file(path: Path) -> Source:
    if not path.is_file():
        raise PipelineError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return Source(lambda: _jsonl(path), _first_columns(_jsonl(path)))
    if suffix == ".csv":
        return Source(lambda: _csv(path), _csv_columns(path))
    if suffix == ".parquet":
        return _parquet(path)
    raise PipelineError(f"a source file must end in .jsonl, .ndjson, .csv or .parquet, got {path.name!r}")


def jsonl_rows(text: str, name: str) -> list[Row]:
    """The rows of a text with one JSON object a line; empty lines count for nothing.

    Raises:
        PipelineError: a line is something else; the message has its number and the text's name.
    """
    lines = enumerate(text.splitlines(), start=1)
    return [_object(name, number, line) for number, line in lines if line.strip()]


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                # The mark that some editors begin a file with is no part of its first line.
                yield _object(path, number, line.removeprefix(codecs.BOM_UTF8))


def _object(name: object, number: int, line: str | bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PipelineError(f"line {number} of {name} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise PipelineError(f"line {number} of {name} must be an object, got {type(row).__name__}")
    return cast("Row", row)


def _csv(path: Path) -> Iterator[Row]:
    """Every value is text; a line with more or fewer cells than the header is an error."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, list[str]())
            for cells in reader:
                if len(cells) != len(header) and cells:
                    raise PipelineError(
                        f"line {reader.line_num} of {path} must have {len(header)} cells, got {len(cells)}"
                    )
                if cells:
                    yield dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise PipelineError(f"line {reader.line_num} of {path} is not CSV: {error}") from error


def _csv_columns(path: Path) -> tuple[str, ...]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), list[str]())
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise PipelineError(f"{path} has the column {twice!r} twice")
    return tuple(header)


def _parquet(path: Path) -> Source:
    parquet = optional("pyarrow.parquet", "reading Parquet")
    errors = optional("pyarrow", "reading Parquet").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            columns, n_rows = tuple(file.schema_arrow.names), file.metadata.num_rows
    except (errors, OSError) as error:
        raise PipelineError(f"{path} is damaged or no Parquet file: {error}") from error

    def rows() -> Iterator[Row]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()

    return Source(rows, columns, n_rows)


def _dataset(dataset: Any) -> Source:
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, cast("Mapping[str, Any]", dataset)))
        raise PipelineError(f"a source must be one split of the dataset, which has: {splits}")
    columns = dataset.column_names
    n_rows = len(dataset) if hasattr(dataset, "__len__") else None
    return Source(lambda: _checked(dataset), None if columns is None else tuple(columns), n_rows)


def _checked(rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if not isinstance(row, (dict, Mapping)):  # the built-in type is told much faster
            raise PipelineError(f"a row must be a dictionary, row {number} is {row!r}")
        yield dict(cast("Mapping[str, Any]", row))


def _first_columns(rows: Iterator[Any]) -> tuple[str, ...] | None:
    first = next(_checked(rows), None)
    return None if first is None else tuple(first)


def _narrowed(source: Source, columns: tuple[str, ...]) -> Source:
    missing = [name for name in columns if source.columns is not None and name not in source.columns]
    if missing:
        raise PipelineError(f"the source has no column {missing[0]!r}, it has: {', '.join(source.columns or ())}")

    def rows() -> Iterator[Row]:
        for row in source.rows():
            yield {name: row[name] for name in columns if name in row}

    return Source(rows, columns, source.n_rows)


def optional(module: str, purpose: str) -> Any:
    """A module of the extra `data`.

    Raises:
        PipelineError: it is not installed; the message has the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PipelineError(f'{purpose} needs {error.name}: pip install "llmkit[data]"') from error


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in lists of this size; the last may be shorter."""
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
