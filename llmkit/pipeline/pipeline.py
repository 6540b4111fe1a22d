"""Pipeline: steps joined by `>>`, and running them from a source to a sink.

Owns what a run consists of: checks, source, keys, journal, runner, sink, progress, in this order. Each of them is in a
file of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

from llmkit.errors import ParameterError, PipelineError
from llmkit.pipeline.drawing import as_mermaid, as_text
from llmkit.pipeline.functions import Route, step
from llmkit.pipeline.graph import SOURCE, Graph
from llmkit.pipeline.journal import Journal
from llmkit.pipeline.keys import Occurrences, Row
from llmkit.pipeline.local import LocalRunner
from llmkit.pipeline.progress import Progress, Report
from llmkit.pipeline.ray import RayRunner
from llmkit.pipeline.sinks import RowSink, Sink
from llmkit.pipeline.sources import RowSource, Source, batches, open_source
from llmkit.tasks.step import Step

Keyed: TypeAlias = "tuple[Sequence[Row], Sequence[bytes]]"
Joinable: TypeAlias = "Pipeline | Step | Route | Callable[..., Any] | Sequence[Joinable]"


class Runner(Protocol):
    """Takes batches of rows with their keys through a graph."""

    def run(
        self, graph: Graph, batches: Iterable[Keyed], journal: Journal | None, progress: Progress
    ) -> Iterator[list[Row]]:
        """The rows that come out of each batch, in the order of the batches."""
        ...


class Pipeline:
    """Steps joined by `>>`. A value: joining gives a new pipeline, and a pipeline can run many times.

    What may follow `>>`: a `Step` or `Task`; a function from a row to rows; another pipeline; a list of these, each of
    which gets every row; and `route(function)`, after which each row goes to the steps of the list that the function
    names. What follows a list gets the rows of all of them.

    Args:
        name: shown by the progress bar.
    """

    def __init__(self, name: str = "pipeline") -> None:
        self.name = name
        self.graph = Graph()

    def __rshift__(self, following: Joinable) -> Pipeline:
        """A pipeline that goes on with this.

        Raises:
            PipelineError: a name is there twice, or the steps would follow each other in a circle.
        """
        together = cast("Sequence[Joinable]", following if isinstance(following, (list, tuple)) else (following,))
        joined = Pipeline(self.name)
        joined.graph = self.graph.joined([_as_graph(one) for one in together])
        return joined

    def __repr__(self) -> str:
        return f"Pipeline {self.name}\n{as_text(self.graph.edges)}"

    @property
    def steps(self) -> dict[str, Step]:
        """The steps by name, each after those that it follows."""
        return dict(self.graph.steps())

    def draw(self) -> str:
        """The graph as a Mermaid flowchart."""
        kinds = {name: type(node).__name__ for name, node in self.graph.nodes.items()}
        routes = [name for name, kind in kinds.items() if kind == "Route"]
        labels = {n: n if kind in ("Route", "FunctionStep") else f"{n}<br>{kind}" for n, kind in kinds.items()}
        return as_mermaid(labels, self.graph.edges, routes)

    def check(self, source: RowSource | None = None) -> None:
        """Whether the steps fit together, and find their columns in the source. Loads nothing.

        Raises:
            PipelineError: the message has the reason and the graph.
        """
        self._check(None if source is None else open_source(source))

    def run(
        self,
        source: RowSource,
        sink: RowSink,
        *,
        journal: str | os.PathLike[str] | Literal[False] | None = None,
        batch_size: int | None = None,
        runner: Literal["local", "ray"] | Runner = "local",
        progress: bool | None = None,
    ) -> Report:
        """Write the rows that come out into a file, in the order of the source.

        A run that was killed is gone on with by running it again: what the journal has is not computed again, unless
        data, code, parameters or model changed. The file appears at the end, whole.

        Args:
            source: a file, a `datasets` object or rows.
            sink: a file, or a folder for a `datasets` dataset.
            journal: where results are kept for the next run; by default beside the sink, `<sink>.journal`. False keeps
                none.
            batch_size: rows of the source that go through the steps together; by default the largest
                `input_batch_size` of the steps. It changes no result.
            runner: `local` is this process; `ray`, or a `RayRunner` with its settings, a cluster.
            progress: whether there is a bar; by default where stderr is a terminal.

        Raises:
            PipelineError: the steps do not fit together, or a file cannot be read or written.
            LLMKitError: a model cannot be had, or cannot do what is asked.
        """
        if journal is None:
            journal = f"{os.fspath(sink)}.journal"
        opened = self._ready(source, batch_size)
        self._check_places(source, sink, journal)
        with contextlib.closing(Sink(sink)) as target:
            bar = Progress(self.name, opened.n_rows, show=progress)
            for rows in self._batches(opened, journal or None, batch_size, runner, bar):
                target.write(rows)
            target.finish()
        return bar.report()

    def stream(
        self,
        source: RowSource,
        *,
        journal: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        runner: Literal["local", "ray"] | Runner = "local",
        progress: bool | None = None,
    ) -> Iterator[Row]:
        """The rows that come out, as they come, in the order of the source, which may be endless.

        Args and errors are those of `run`; there is no journal unless it is given.
        """
        opened = self._ready(source, batch_size)
        bar = Progress(self.name, opened.n_rows, show=progress)
        return (row for rows in self._batches(opened, journal, batch_size, runner, bar) for row in rows)

    def _ready(self, source: RowSource, batch_size: int | None) -> Source:
        """The opened source, after everything that can be checked without a model."""
        if batch_size is not None and batch_size < 1:
            raise ParameterError(f"batch_size must be at least 1, got {batch_size!r}")
        opened = open_source(source)
        self._check(opened)
        return opened

    def _check(self, source: Source | None) -> None:
        self.graph.check(None if source is None else source.columns)

    def _check_places(self, *places: object) -> None:
        files = [Path(cast("str", place)).resolve() for place in places if isinstance(place, (str, os.PathLike))]
        if len(set(files)) < len(files):
            raise PipelineError(f"source, sink and journal must be different files, got {', '.join(map(str, files))}")

    def _batches(
        self,
        source: Source,
        journal: str | os.PathLike[str] | None,
        batch_size: int | None,
        runner: Literal["local", "ray"] | Runner,
        bar: Progress,
    ) -> Generator[list[Row]]:
        size = batch_size or max((s.input_batch_size for s in self.steps.values()), default=1000)
        with contextlib.ExitStack() as closed:
            closed.callback(bar.close)
            kept = None if journal is None else closed.enter_context(contextlib.closing(Journal(journal)))
            occurrences = closed.enter_context(contextlib.closing(Occurrences()))
            keyed = ((rows, occurrences.keys(rows)) for rows in batches(source.rows(), size))
            # Closed with its reader, so that models are freed when somebody stops reading.
            finished = closed.enter_context(
                contextlib.closing(cast("Generator[list[Row]]", _runner(runner).run(self.graph, keyed, kept, bar)))
            )
            yield from finished


def _as_graph(thing: Joinable) -> Graph:
    if isinstance(thing, Pipeline):
        return thing.graph
    if isinstance(thing, (list, tuple)):
        return Graph().joined([_as_graph(one) for one in cast("Sequence[Joinable]", thing)])
    if not isinstance(thing, (Step, Route)):
        if not callable(thing):
            raise PipelineError(f"a step must be a Step, a function, a route or a pipeline, got {thing!r}")
        thing = step(thing)
    return Graph({thing.name: thing}, ((SOURCE, thing.name),), (thing.name,))


def _runner(runner: Literal["local", "ray"] | Runner) -> Runner:
    if runner == "local":
        return LocalRunner()
    if runner == "ray":
        return RayRunner()
    if isinstance(runner, str):
        raise ParameterError(f'runner must be "local", "ray" or a RayRunner, got {runner!r}')
    return runner
