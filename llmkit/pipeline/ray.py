"""The Ray runner: each step is a pool of actors of `ray.data`, and batches stream through the pools.

The driver, this process, reads the source, has the journal, and puts results in order. It owns what a cluster needs to
know of the steps; what runs on the workers is in `ray_workers`, and keys, seeds and results are those of the local
runner.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from llmkit.base import BaseLLM
from llmkit.errors import ParameterError, PipelineError
from llmkit.pipeline.envelope import Envelope
from llmkit.pipeline.flow import Batch, Flow
from llmkit.pipeline.functions import FunctionStep
from llmkit.pipeline.graph import Graph
from llmkit.pipeline.journal import Journal
from llmkit.pipeline.keys import Row
from llmkit.pipeline.progress import Progress
from llmkit.pipeline.stage import Stage
from llmkit.tasks.step import Step
from llmkit.tasks.task import Task

PerStep: TypeAlias = "float | Mapping[str, float]"
"""One number for all steps, or numbers by the name of the step."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of one step: its name, the step, how many there are, and the CPUs and GPUs of each."""

    name: str
    step: Step
    n_actors: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs the steps on Ray: the one that runs already, or a local one for the time of the run.

    A task must get its model as a name or as a function, since a loaded model cannot be sent. Each actor loads it once.
    A killed actor is replaced, and what it worked on is done again.

    Attributes:
        concurrency: actors of each step; by default 1.
        num_cpus: CPUs of each actor; by default 1, and 0 for a plain function.
        num_gpus: GPUs of each actor; by default 0. A fraction lets actors share one.
        in_flight: batches on their way for each actor: more keep actors busy, and take memory.

    Raises:
        ParameterError: a value is out of its range.
    """

    concurrency: PerStep | None = None
    num_cpus: PerStep | None = None
    num_gpus: PerStep | None = None
    in_flight: int = 3

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("num_cpus", 0), ("num_gpus", 0), ("in_flight", 1)):
            for value in _values(getattr(self, name)):
                whole = isinstance(value, int) or name.startswith("num_")
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least or not whole:
                    raise ParameterError(f"{name} must be a number >= {least}, got {value!r}")

    def run(
        self,
        graph: Graph,
        batches: Iterable[tuple[Sequence[Row], Sequence[bytes]]],
        journal: Journal | None,
        progress: Progress,
    ) -> Iterator[list[Row]]:
        """The rows that come out of each batch of rows and keys, in order.

        Raises:
            PipelineError: Ray is not installed or has not enough CPUs or GPUs; a model is a loaded object.
        """
        pools = self._pools(graph)
        with _running_ray() as ray:
            _check_resources(ray, pools)
            workers = importlib.import_module("llmkit.pipeline.ray_workers")
            # Workers load models, so they say what the models' signatures are; needed only to find earlier results.
            models = workers.model_signatures(pools) if journal is not None and not journal.was_empty else None
            window = self.in_flight * sum(pool.n_actors for pool in pools)
            with contextlib.closing(workers.Cluster(graph, pools, keeps=journal is not None)) as cluster:
                drive = _Drive(graph, models, journal, progress)
                yield from drive.run(batches, cluster, window)

    def _pools(self, graph: Graph) -> list[Pool]:
        for given in (self.concurrency, self.num_cpus, self.num_gpus):
            for name in given if isinstance(given, Mapping) else ():
                if name not in graph.nodes:
                    raise PipelineError(f"there is no step {name!r}, the steps are: {', '.join(graph.nodes)}")
        return [self._pool(name, step) for name, step in graph.steps()]

    def _pool(self, name: str, step: Step) -> Pool:
        if isinstance(step, Task) and isinstance(step.llm, BaseLLM):
            raise PipelineError(
                f"the step {name!r} has a loaded model, which cannot be sent to workers; "
                "give it the model's name, or a function that loads it"
            )
        n_actors = int(_of(self.concurrency, name, 1))
        num_cpus = _of(self.num_cpus, name, 0 if isinstance(step, FunctionStep) else 1)
        return Pool(name, step, n_actors, num_cpus, _of(self.num_gpus, name, 0))


class _Drive:
    """The driver's part of a run: what is known already, what is sent, and in which order it comes out.

    Args:
        graph: the steps.
        models: the signatures of the steps' models by name; None where nothing can be known already.
        journal: where results are kept.
        progress: told of everything.
    """

    def __init__(
        self, graph: Graph, models: Mapping[str, bytes] | None, journal: Journal | None, progress: Progress
    ) -> None:
        self._flow, self._journal, self._progress = Flow(graph), journal, progress
        known = dict[str, bytes](models or {})
        self._stages = [Stage(name, step, model=known[name]) for name, step in graph.steps() if name in known]

    def run(
        self, batches: Iterable[tuple[Sequence[Row], Sequence[bytes]]], cluster: Any, window: int
    ) -> Generator[list[Row]]:
        """The rows of each batch; at most `window` batches are on their way or wait for their turn."""
        remaining: Iterator[tuple[Sequence[Row], Sequence[bytes]] | None] = iter(batches)
        n_rows: list[int] = []
        finished: dict[int, Envelope] = {}
        n_read = n_done = 0
        is_over = False
        while not is_over or n_done < n_read:
            while not is_over and n_read - n_done < window:
                following = next(remaining, None)
                is_over = following is None
                if following is not None:
                    n_rows.append(len(following[0]))
                    self._begin(n_read, self._flow.enter(*following), cluster, finished)
                    n_read += 1
            if n_done not in finished and n_done < n_read:
                at, envelope = cluster.receive()
                self._record(envelope)
                finished[at] = envelope
            while n_done in finished:
                yield self._rows(n_rows.pop(0), finished.pop(n_done).batch)
                n_done += 1

    def _begin(self, at: int, batch: Batch, cluster: Any, finished: dict[int, Envelope]) -> None:
        """Go as far as the journal does, and send what is left to do."""
        for stage in self._stages:
            self._take_known(batch, stage)
        if batch.waiting:
            cluster.send(at, Envelope(batch).pack())
        else:
            finished[at] = Envelope(batch)

    def _take_known(self, batch: Batch, stage: Stage) -> None:
        items = batch.take(stage.name)
        if not items or self._journal is None:
            return
        origins = stage.origins(items)
        ids = stage.ids(items, origins)
        found = self._journal.find(ids)
        self._progress.reused += len(found)
        known = [(item, origin, found[id]) for item, origin, id in zip(items, origins, ids, strict=True) if id in found]
        unknown = [item for item, id in zip(items, ids, strict=True) if id not in found]
        if unknown:
            batch.waiting[stage.name] = unknown
        if known:
            some_items, some_origins, rows = zip(*known, strict=True)
            self._flow.give(batch, stage.name, some_items, some_origins, rows)

    def _record(self, envelope: Envelope) -> None:
        if envelope.error:
            raise PipelineError(envelope.error)
        self._progress.tokens += envelope.tokens
        self._progress.computed += len(envelope.made)
        self._progress.failed += sum(made.failed for made in envelope.made)
        if self._journal is not None:
            self._journal.record([(made.id, made.rows) for made in envelope.made if not made.failed])

    def _rows(self, n_rows: int, batch: Batch) -> list[Row]:
        rows = batch.rows()
        self._progress.failed += batch.n_failed
        self._progress.batch_done(n_rows, len(rows))
        return rows


def _values(given: PerStep | None) -> list[object]:
    if given is None:
        return []
    return list(given.values()) if isinstance(given, Mapping) else [given]


def _of(given: PerStep | None, name: str, default: float) -> float:
    if given is None:
        return default
    return given.get(name, default) if isinstance(given, Mapping) else given


@contextlib.contextmanager
def _running_ray() -> Generator[Any]:
    """Ray: as it runs, or a local one that is stopped afterwards."""
    try:
        ray = cast("Any", importlib.import_module("ray"))
    except ModuleNotFoundError as error:
        raise PipelineError('the ray runner needs ray: pip install "llmkit[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _check_resources(ray: Any, pools: Sequence[Pool]) -> None:
    """Refuse what would wait for ever.

    Raises:
        PipelineError: the cluster has not enough of something.
    """
    there = cast("Mapping[str, float]", ray.cluster_resources())
    for resource, needed in (
        ("CPU", sum(pool.n_actors * pool.num_cpus for pool in pools)),
        ("GPU", sum(pool.n_actors * pool.num_gpus for pool in pools)),
    ):
        if needed > there.get(resource, 0):
            raise PipelineError(
                f"the workers of all steps need {needed:g} {resource}s together, Ray has {there.get(resource, 0):g}; "
                "lower concurrency or the share of each, or start Ray with more"
            )
