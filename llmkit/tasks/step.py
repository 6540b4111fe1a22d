"""Step: one operation on rows, with named inputs and outputs that can be mapped to the columns of the data.

Owns a step's parameters and how rows are shown to it and back. It knows no models (`task.py`), and neither other steps
nor files (`llmkit.pipeline`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn, Self, TypeAlias, dataclass_transform

from llmkit.errors import InvalidRequest, ParameterError, UnknownParameter, did_you_mean
from llmkit.tasks.identity import code_digest, described
from llmkit.tasks.mapping import ColumnNames, Row

Columns: TypeAlias = "Sequence[str] | Mapping[str, bool]"
"""Names of columns; a mapping says of each whether a row must have it."""

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False, repr=False)
class Step(ABC):
    """One operation on rows. Subclasses define `inputs`, `outputs` and `transform`.

    A subclass is a dataclass without a decorator: its annotated class attributes are its parameters, given by keyword.
    An unknown keyword is refused with the nearest name.

    Attributes:
        name: letters, digits, `_` and `-`; by default made from the class's name, `text_generation_0`.
        input_mappings: the column to read for an input, where it is not named like the input.
        output_mappings: the column to write for an output, where it is not to be named like the output.
        input_batch_size: rows that a pipeline, and `apply`, give to `process` at once.

    Raises:
        ParameterError: a name is malformed, a mapping is of no input or output, or a parameter breaks its rule.
        UnknownParameter: a keyword is no parameter.
    """

    name: str = ""
    input_mappings: Mapping[str, str] = field(default_factory=dict[str, str])
    output_mappings: Mapping[str, str] = field(default_factory=dict[str, str])
    input_batch_size: int = 50

    FIXED: ClassVar[frozenset[str]] = frozenset({"name", "input_mappings", "output_mappings"})
    """Parameters that shape the graph of a pipeline, and so cannot be set at run time."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "process" in cls.__dict__ and cls.__module__ != "llmkit.tasks.task":
            raise TypeError(f"{cls.__name__} must define transform(rows); process applies the mappings around it")
        dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse keywords that are no parameters.

        Raises:
            UnknownParameter: the message has the nearest name.
        """
        known = inspect.signature(cls.__init__).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            for key in kwargs:
                if key not in known:
                    raise UnknownParameter(key, [name for name in known if name != "self"])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.name = self.name or f"{_WORD_BEGINS.sub('_', type(self).__name__).lower()}_0"
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"name must be letters, digits, _ and -, got {self.name!r}")
        if self.input_batch_size < 1:
            raise ParameterError(f"input_batch_size must be at least 1, got {self.input_batch_size!r}")
        self.check()
        self._check_mapping("input_mappings", self.input_mappings, _names(self.inputs))
        self._check_mapping("output_mappings", self.output_mappings, _names(self.outputs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    def __rshift__(self, following: object) -> NoReturn:
        """Say how steps are joined: a step alone knows no pipelines."""
        raise TypeError("a pipeline begins with Pipeline(): llmkit.pipeline.Pipeline() >> step >> step")

    # --- what a subclass defines ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def inputs(self) -> Columns:
        """Columns that it reads, by the names that `transform` uses."""

    @property
    @abstractmethod
    def outputs(self) -> Columns:
        """Columns that it writes, by the names that `transform` uses."""

    @abstractmethod
    def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
        """New rows for these; each `yield` is a list of them. A row's further columns are best carried along."""

    def check(self) -> None:  # noqa: B027
        """Check the parameters of the subclass.

        Raises:
            ParameterError: one of them breaks its rule.
        """

    def load(self) -> None:  # noqa: B027 - most steps need no more
        """Get ready: called before the first `process`, in the process that will call it. Safe to call twice."""

    def unload(self) -> None:  # noqa: B027
        """Free what `load` took; `load` may follow. Safe to call twice."""

    # --- working ----------------------------------------------------------------------------------------------------

    def process(self, rows: Sequence[Row], *, seeds: Sequence[int] | None = None) -> Iterator[list[Row]]:
        """New rows for these rows, in lists; the rows that are passed stay as they are.

        Args:
            rows: dictionaries with at least `required_columns`.
            seeds: one a row, for a step that draws; by default each step has a way of its own.
        """
        if seeds is not None and len(seeds) != len(rows):
            raise ParameterError(f"seeds must be one a row, got {len(seeds)} seeds for {len(rows)} rows")
        names = self._column_names()
        for batch in self._transformed([names.seen(row) for row in rows], seeds):
            yield [names.shown(row) for row in batch]

    def apply(self, rows: Sequence[Row]) -> list[Row]:
        """All new rows for all of these, `input_batch_size` at a time; loads what is needed and leaves it loaded."""
        self.load()
        size = self.input_batch_size
        batches = (rows[at : at + size] for at in range(0, len(rows), size))
        return [row for batch in batches for out in self.process(batch) for row in out]

    def _transformed(self, rows: list[Row], seeds: Sequence[int] | None) -> Iterator[list[Row]]:
        return self.transform(rows)

    # --- columns ----------------------------------------------------------------------------------------------------

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns that every row must have, mappings applied."""
        return tuple(self.input_mappings.get(name, name) for name in self._required_inputs)

    @property
    def output_columns(self) -> tuple[str, ...]:
        """Columns that the new rows have in addition, mappings applied."""
        return tuple(self.output_mappings.get(name, name) for name in _names(self.outputs))

    @property
    def _required_inputs(self) -> tuple[str, ...]:
        inputs = self.inputs
        return tuple(name for name in inputs if not isinstance(inputs, Mapping) or inputs[name])

    def _check_mapping(self, parameter: str, mapping: Mapping[str, str], known: tuple[str, ...]) -> None:
        for name in mapping:
            if name not in known:
                raise ParameterError(
                    f"{parameter} must map {', '.join(known) or 'nothing'}, got {name!r}{did_you_mean(name, known)}"
                )
        if len(set(mapping.values())) < len(mapping):
            raise ParameterError(f"{parameter} must map to different columns, got {dict(mapping)!r}")

    def _column_names(self) -> ColumnNames:
        return ColumnNames(self.input_mappings, self.output_mappings, _names(self.outputs))

    # --- parameters -------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter by name, as it stands."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def runtime_parameters(self) -> dict[str, Any]:
        """The parameters that may be set at run time."""
        return {name: value for name, value in self.parameters.items() if name not in self.FIXED}

    def with_runtime_parameters(self, **values: Any) -> Self:
        """A copy with these parameters; they go before those of the constructor, and this step stays as it is.

        Raises:
            UnknownParameter: no parameter that may be set at run time has this name.
            ParameterError: a value breaks its rule.
        """
        for name in values:
            if name not in self.runtime_parameters:
                raise UnknownParameter(name, self.runtime_parameters)
        return dataclasses.replace(self, **values)

    def identity(self) -> dict[str, Any]:
        """Everything that its results depend on besides the rows, as JSON holds it: class, code and parameters.

        The batch size is not part of it.

        Raises:
            ParameterError: a parameter is an object that cannot be described reliably.
        """
        return {
            "step": type(self).__qualname__,
            "code": code_digest(type(self)),
            "parameters": described(self._described_parameters()),
        }

    def _described_parameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.parameters.items() if name != "input_batch_size"}


def _names(columns: Columns) -> tuple[str, ...]:
    if isinstance(columns, str):
        raise InvalidRequest(f"columns must be a list of names, got the string {columns!r}")
    return tuple(columns)
