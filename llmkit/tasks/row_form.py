"""RowForm: what a task's rows look like, before and after: columns that must be there, new ones, and notes.

Worked out once for a batch, since a subclass may compute its columns. It knows neither requests nor completions; nor
a model, so that rows are refused before one is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmkit.errors import InvalidRequest
from llmkit.tasks.mapping import ColumnNames, Row
from llmkit.tasks.metadata import Notes, merged


@dataclass(frozen=True, slots=True)
class RowForm:
    """The form of the rows of one batch.

    Attributes:
        task: the task's name.
        required: inputs that a row must have.
        outputs: columns that the task writes, without `model_name`.
        names: under which the data knows them.
        metadata_column: the column of the notes.
        is_grouped: the texts of a row stay in one row.
    """

    task: str
    required: tuple[str, ...]
    outputs: tuple[str, ...]
    names: ColumnNames
    metadata_column: str
    is_grouped: bool

    def check_new(self, rows: Sequence[Row]) -> None:
        """Refuse to write over a column: it would be lost.

        Raises:
            InvalidRequest: a row has a column of an output's name.
        """
        for name in self.outputs:
            if not self.names.maps_output(name) and any(name in row for row in rows):
                raise InvalidRequest(
                    f"the rows have a column {name!r} already; give the task's another name, "
                    f"output_mappings={{{name!r}: ...}}"
                )

    def check_inputs(self, row: Row) -> None:
        """Refuse a row that lacks an input.

        Raises:
            InvalidRequest: the message has the columns that are there.
        """
        for name in self.required:
            if row.get(name) is None:
                found = ", ".join(map(repr, self.names.shown(row))) or "none"
                raise InvalidRequest(f"a row must have {self.names.read_for(name)!r}, got the columns {found}")

    def check_outputs(self, outputs: Row) -> None:
        """Refuse other outputs than those that were announced.

        Raises:
            InvalidRequest: some are missing, or are too many.
        """
        if not isinstance(outputs, (dict, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"format_output must give a dictionary of {sorted(self.outputs)}, got {outputs!r}")
        if outputs.keys() != set(self.outputs):
            raise InvalidRequest(f"format_output must give {sorted(self.outputs)}, got {sorted(outputs)}")

    def nothing(self) -> Row:
        """The outputs of a text that is not there."""
        return dict.fromkeys(self.outputs)

    def new_rows(self, row: Row, texts: Sequence[tuple[Row, Notes]], model: str) -> list[Row]:
        """The row with the outputs and notes of its texts, and the model's name: a row each, or one row of lists."""
        if not self.is_grouped:
            return [self._noted(row, outputs, [notes], model) for outputs, notes in texts]
        lists = {name: [outputs[name] for outputs, _ in texts] for name in self.outputs}
        return [self._noted(row, lists, [notes for _, notes in texts], model)]

    def _noted(self, row: Row, outputs: Row, notes: list[Notes], model: str) -> Row:
        """A new row with metadata and the model's name; a name that an earlier task wrote stays, and ours is noted."""
        name = row.get("model_name", model)
        if name != model:
            notes = [{**own, f"model_name_{self.task}": model} for own in notes]
        metadata = merged(row.get(self.metadata_column), notes, grouped=self.is_grouped)
        new_row = {**row, **outputs}
        if metadata if isinstance(metadata, dict) else any(metadata):
            new_row[self.metadata_column] = metadata
        new_row["model_name"] = name
        return new_row
