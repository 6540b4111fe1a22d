"""Plain functions as steps, and functions that choose where a row goes.

It knows what such a function may return. Where rows come from and go is the graph's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from llmkit.errors import InvalidRequest, PipelineError, did_you_mean
from llmkit.tasks.step import Row, Step

RowFunction: TypeAlias = "Callable[[Row], Row | Sequence[Row] | None]"


class FunctionStep(Step):
    """A step that calls a function with each row.

    The function returns the new row, a list of new rows, or None to leave the row out. It gets a dict of its own and
    may change it, but not what its values hold. What it returns must follow from the row alone: a resumed run would
    differ from an undisturbed one otherwise.

    Attributes:
        function: from a row to rows.
        reads: columns that it needs.
        writes: columns that it adds to the row's; None where it may do anything to the columns, which leaves those of
            later steps unchecked.
    """

    function: RowFunction
    reads: Sequence[str] = ()
    writes: Sequence[str] | None = None

    @property
    def inputs(self) -> Sequence[str]:
        """The columns that it said it reads."""
        return self.reads

    @property
    def outputs(self) -> Sequence[str]:
        """The columns that it said it writes."""
        return self.writes or ()

    def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Call the function with each row; each list has the new rows of one."""
        for row in rows:
            yield self._rows(self.function(row))

    def _rows(self, made: object) -> list[Row]:
        rows = cast("list[object]", [] if made is None else made if isinstance(made, list) else [made])
        if not all(isinstance(row, dict) for row in rows):
            raise InvalidRequest(f"{self.name} must return a row (a dict), a list of rows or None, got {made!r}")
        return cast("list[Row]", rows)


def step(
    function: RowFunction, *, name: str = "", reads: Sequence[str] = (), writes: Sequence[str] | None = None
) -> FunctionStep:
    """A step of a function; a function that is joined by `>>` becomes one by itself, with its own name."""
    return FunctionStep(name=name or _name_of(function), function=function, reads=reads, writes=writes)


@dataclass(frozen=True, slots=True)
class Route:
    """A place where a function chooses the steps that a row goes on to.

    Attributes:
        name: as it appears in the graph.
        function: from a row to the name of a following step, a list of names, or None to leave the row out.
    """

    name: str
    function: Callable[[Row], str | Sequence[str] | None]

    def targets(self, row: Row, known: Sequence[str]) -> list[str]:
        """The chosen steps, in the order in which they were joined.

        Raises:
            PipelineError: a chosen name is no following step.
        """
        chosen = self.function(dict(row))
        names = [chosen] if isinstance(chosen, str) else list(chosen or ())
        for name in names:
            if name not in known:
                raise PipelineError(
                    f"{self.name} must choose among {', '.join(known)}, got {name!r}{did_you_mean(str(name), known)}"
                )
        return [name for name in known if name in names]


def route(function: Callable[[Row], str | Sequence[str] | None], *, name: str = "") -> Route:
    """A fork in the graph: the function names the steps that a row goes on to."""
    return Route(name or _name_of(function), function)


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "function" if name == "<lambda>" else name
