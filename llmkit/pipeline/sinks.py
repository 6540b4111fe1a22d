"""Where finished rows go: files of JSONL, CSV or Parquet, and folders of `datasets`.

While a run goes on, rows are lines of JSON in `<file>.partial`; the file itself appears at the end, whole, in one
rename. A run that goes on after a crash writes the partial file anew. It knows no steps.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llmkit.errors import PipelineError
from llmkit.pipeline.json_rows import RowEncoder
from llmkit.pipeline.keys import Row
from llmkit.pipeline.sources import batches, optional

RowSink: TypeAlias = "str | os.PathLike[str]"
"""A file by its suffix (.jsonl, .ndjson, .csv, .parquet), or a folder (no suffix) for a `datasets` dataset."""

_BATCH_ROWS = 1000
_ENCODER = RowEncoder(ensure_ascii=False)


class Sink:
    """Collects rows, and makes the file of them. Not for several threads.

    Args:
        path: where to; as described at `RowSink`.

    Raises:
        PipelineError: the kind of the file is not known, or what it needs is not installed.
    """

    def __init__(self, path: RowSink) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._convert = _converter(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.partial.open("wb")

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        lines = _ENCODER.each(rows)
        try:
            data = "\n".join([*lines, ""]).encode()
        except UnicodeEncodeError:
            data = b"".join(map(_line, rows))
        self._file.write(data)
        self._file.flush()

    def finish(self) -> None:
        """Make the file; one that was there before is replaced.

        Raises:
            PipelineError: the rows do not fit into a file of this kind; they stay in the partial file.
        """
        os.fsync(self._file.fileno())
        self._file.close()
        if self._convert is None:
            os.replace(self.partial, self.path)
            return
        made = self.path.with_name(self.path.name + ".tmp")
        _remove(made)
        self._convert(self.partial, made)
        # A folder cannot replace one that has files in it.
        if made.is_dir():
            _remove(self.path)
        else:
            _sync(made)
        os.replace(made, self.path)
        self.partial.unlink()

    def close(self) -> None:
        """Leave the partial file as it is. Safe after `finish`."""
        self._file.close()


def _converter(path: Path) -> Callable[[Path, Path], None] | None:
    """Makes the file of lines of JSON; None where these lines are the file."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return None
    if suffix == ".csv":
        return _write_csv
    if suffix == ".parquet":
        optional("pyarrow.parquet", "writing Parquet")
        return _write_parquet
    if not suffix and not path.is_file():
        optional("datasets", "writing a dataset")
        return _write_dataset
    raise PipelineError(
        f"a result must be a file that ends in .jsonl, .ndjson, .csv or .parquet, or a folder, got {path.name!r}"
    )


def _line(row: Row) -> bytes:
    try:
        return (_ENCODER.one(row) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only hold escaped
        return (json.dumps(row, allow_nan=False) + "\n").encode()


def _rows(lines: Path) -> Iterator[Row]:
    with lines.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _columns(lines: Path) -> list[str]:
    """All columns, in the order in which they first appear."""
    columns: dict[str, None] = {}
    for row in _rows(lines):
        columns.update(dict.fromkeys(row))
    return list(columns)


def _write_csv(lines: Path, made: Path) -> None:
    """Text as it is, None as an empty cell, and everything else as JSON."""
    columns = _columns(lines)
    with made.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in _rows(lines):
            writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _write_parquet(lines: Path, made: Path) -> None:
    parquet = optional("pyarrow.parquet", "writing Parquet")
    with parquet.ParquetWriter(made, schema := _schema(lines)) as writer:
        for table in _tables(lines, schema):
            writer.write_table(table)


def _write_dataset(lines: Path, made: Path) -> None:
    """As `Dataset.save_to_disk` does: the rows as an Arrow stream, and what describes them."""
    arrow = optional("pyarrow", "writing a dataset")
    datasets = optional("datasets", "writing a dataset")
    stream = made.with_name(made.name + ".arrow")
    try:
        with arrow.ipc.new_stream(stream, schema := _schema(lines)) as writer:
            for table in _tables(lines, schema):
                writer.write_table(table)
        dataset = datasets.Dataset.from_file(str(stream))
        dataset.save_to_disk(str(made))
    finally:
        stream.unlink(missing_ok=True)


def _schema(lines: Path) -> Any:
    """The types that fit all rows; a column that is always None has the type null."""
    arrow = optional("pyarrow", "writing Parquet")
    try:
        schemas = [arrow.Table.from_pylist(_same_columns(rows)).schema for rows in batches(_rows(lines), _BATCH_ROWS)]
        return arrow.unify_schemas(schemas, promote_options="permissive") if schemas else arrow.schema([])
    except arrow.ArrowException as error:
        raise PipelineError(f"a column must have one type in all rows, which stay in {lines}: {error}") from error


def _tables(lines: Path, schema: Any) -> Iterator[Any]:
    arrow = optional("pyarrow", "writing Parquet")
    for rows in batches(_rows(lines), _BATCH_ROWS):
        yield arrow.Table.from_pylist(rows, schema=schema)


def _same_columns(rows: list[Row]) -> list[Row]:
    """Arrow takes the columns of the first row for all."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{**columns, **row} for row in rows]


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
