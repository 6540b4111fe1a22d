"""Columns under a step's own names, and back under the data's.

It knows names alone. What a step does to a row in between is its own matter: it may drop, add and reorder rows, so
columns that its own names hide travel in their row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias, cast

from llmkit.errors import InvalidRequest

Row: TypeAlias = dict[str, Any]

_HIDDEN = "__llmkit_hidden__"


class ColumnNames:
    """The two names of each column that a step maps. Immutable.

    Args:
        inputs: the column to read for an input, where it is not named like the input.
        outputs: the column to write for an output, where it is not to be named like the output.
        written: all outputs, by the step's names.
    """

    def __init__(self, inputs: Mapping[str, str], outputs: Mapping[str, str], written: Collection[str]) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._is_mapped = bool(inputs or outputs)
        self._read = {column: name for name, column in inputs.items()}
        self._new = [column for column in outputs.values() if column not in self._read]
        self._own = {*inputs, *outputs} - self._read.keys()
        self._hidden = self._own | {column for column, name in self._read.items() if name in written}
        self._shown = {**inputs, **{name: outputs.get(name, name) for name in written}}

    def read_for(self, name: str) -> str:
        """The column that is read for an input."""
        return self._inputs.get(name, name)

    def maps_output(self, name: str) -> bool:
        """Whether an output is written to a column of another name."""
        return name in self._outputs

    def seen(self, row: Row) -> Row:
        """A copy of a row under the step's own names; what they hide is restored by `shown`.

        Raises:
            InvalidRequest: the row has a column that an output is to be written to.
        """
        if not self._is_mapped:
            return dict(row)
        for column in self._new:
            if column in row:
                raise InvalidRequest(f"output_mappings must name a new column, got {column!r}, which the row has")
        read, own = self._read, self._own
        seen = {read.get(column, column): value for column, value in row.items() if column not in own}
        if not self._hidden.isdisjoint(row):
            seen[_HIDDEN] = {column: value for column, value in row.items() if column in self._hidden}
        return seen

    def shown(self, row: Row) -> Row:
        """A new row under the data's names."""
        if not self._is_mapped:
            return row
        shown = self._shown
        if _HIDDEN not in row:
            return {shown.get(name, name): value for name, value in row.items()}
        hidden = cast("Row", row[_HIDDEN])
        return hidden | {shown.get(name, name): value for name, value in row.items() if name != _HIDDEN}
