"""What runs on Ray: the pools of a graph as one streaming `ray.data` execution, fed by the driver and read by it.

A block has one row: a number and the packed envelope of a batch. Blocks finish in any order. It knows no journal and no
order of results.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from llmkit.errors import LLMKitError, PipelineError
from llmkit.pipeline.envelope import Envelope
from llmkit.pipeline.flow import Flow
from llmkit.pipeline.graph import Graph
from llmkit.pipeline.ray import Pool
from llmkit.pipeline.signature import code_signature, model_signature
from llmkit.pipeline.stage import Stage
from llmkit.tasks.step import Step
from llmkit.tasks.task import Task

# Their annotations leave much open.
pyarrow: Any = importlib.import_module("pyarrow")
ray: Any = importlib.import_module("ray")
ray_data: Any = importlib.import_module("ray.data")


def model_signatures(pools: Sequence[Pool]) -> dict[str, bytes]:
    """The signature of each step's model by the step's name, as the workers see it: they load it once more for that."""
    asked = {pool.name: _signature_on_worker(pool) for pool in pools}
    return {name: answer if isinstance(answer, bytes) else ray.get(answer) for name, answer in asked.items()}


def _signature_on_worker(pool: Pool) -> Any:
    if not isinstance(pool.step, Task):
        return model_signature(pool.step)

    def answer(step: Step) -> bytes:
        try:
            return model_signature(step)
        finally:
            step.unload()

    remote = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, max_calls=1)(answer)
    return remote.remote(pool.step)


class Cluster:
    """The pools of a graph at work. Actors start when the first batch is sent.

    Args:
        graph: tells where new rows go.
        pools: the steps in order, with what their actors need.
        keeps: results are kept, so they must have names.
    """

    def __init__(self, graph: Graph, pools: Sequence[Pool], *, keeps: bool) -> None:
        self._graph, self._pools, self._keeps = graph, pools, keeps
        self._feed: Any = None
        self._results: Iterator[Any] = iter(())
        self._sent: list[int] = []
        self._closing = contextlib.ExitStack()

    def send(self, at: int, envelope: bytes) -> None:
        """Hand a batch to the pools; `at` comes back with it."""
        self._feed = self._feed or self._started()
        ray.get(self._feed.put.remote(len(self._sent), envelope))
        self._sent.append(at)

    def receive(self) -> tuple[int, Envelope]:
        """A finished batch, whichever comes first; waits for it.

        Raises:
            PipelineError: the cluster failed.
        """
        try:
            block = next(block for block in self._results if len(block["envelope"][0]))
        except StopIteration as error:
            raise PipelineError("Ray ended before all rows were done; run again to go on") from error
        except ray.exceptions.RayError as error:
            raise PipelineError(f"Ray failed: {error}") from error
        n = int(block["n"][0])
        self._feed.drop.remote(n)
        return self._sent[n], Envelope.unpack(block["envelope"][0])

    def close(self) -> None:
        """Stop the actors; a batch that an actor works on comes to its end, and those that wait are left undone."""
        if self._feed is None:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._feed.end.remote())
            for _ in self._results:
                pass
        ray.kill(self._feed)
        self._feed = None
        self._closing.close()

    def _started(self) -> Any:
        """The feed of the pools, which begin to read it."""
        self._closing.enter_context(_quiet())
        feed = ray.remote(num_cpus=0)(Feed).remote()
        dataset = ray_data.read_datasource(_source(feed), override_num_blocks=1, num_cpus=0)
        for pool in self._pools:
            dataset = dataset.map_batches(
                Worker,
                fn_constructor_args=(
                    feed,
                    self._graph,
                    pool.name,
                    pool.step,
                    code_signature(pool.step) if self._keeps else b"",
                ),
                batch_size=1,
                batch_format="numpy",
                compute=ray_data.ActorPoolStrategy(size=pool.n_actors),
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
            )
        # A block of its own for each batch, passed on as soon as it is there.
        dataset.context.target_max_block_size = dataset.context.target_min_block_size = 1
        dataset.context.enable_progress_bars = False
        self._results = iter(dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0))
        return feed


class Worker:
    """An actor of one step's pool: does what waits at its step, and passes the rest on."""

    def __init__(self, feed: Any, graph: Graph, name: str, step: Step, code: bytes) -> None:
        self._feed, self._flow, self._stage = feed, Flow(graph), Stage(name, step, code=code)

    def __call__(self, block: Mapping[str, Any]) -> Mapping[str, Any]:
        """The block with this step's work done."""
        data = bytes(block["envelope"][0])
        if not data:  # one that came back already, read again after a reader died
            return {"n": block["n"], "envelope": [data]}
        envelope = Envelope.unpack(data)
        nothing_to_do = envelope.error or self._stage.name not in envelope.batch.waiting
        if nothing_to_do or ray.get(self._feed.has_ended.remote()):
            return {"n": block["n"], "envelope": [data]}
        try:
            self._work(envelope)
        except LLMKitError as error:
            # As text: an error of any class may not survive the way to the driver.
            envelope = Envelope(envelope.batch, error=f"{self._stage.name}: {type(error).__name__}: {error}")
        return {"n": block["n"], "envelope": [envelope.pack()]}

    def _work(self, envelope: Envelope) -> None:
        stage, batch = self._stage, envelope.batch
        items = batch.take(stage.name)
        before = stage.tokens
        origins = stage.origins(items)
        made = stage.make(items, stage.ids(items, origins))
        self._flow.give(batch, stage.name, items, origins, [one.rows for one in made])
        envelope.made += made
        envelope.tokens += stage.tokens - before


class Feed:
    """An actor that holds what was sent and did not come back: a reader that dies can be followed by another."""

    def __init__(self) -> None:
        self._held: dict[int, bytes] = {}
        self._n_put = 0
        self._has_ended = False
        self._changed = asyncio.Condition()

    async def put(self, n: int, envelope: bytes) -> None:
        """Hold one more."""
        async with self._changed:
            self._held[n], self._n_put = envelope, n + 1
            self._changed.notify_all()

    async def get(self, n: int) -> bytes | None:
        """The n-th, as soon as it is there, or an empty one where it came back already; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: n < self._n_put or self._has_ended)
            return None if self._has_ended else self._held.get(n, b"")

    async def drop(self, n: int) -> None:
        """Hold it no longer."""
        self._held.pop(n, None)

    async def end(self) -> None:
        """Let readers and workers know that nobody waits for more."""
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def has_ended(self) -> bool:
        """Whether nobody waits for more."""
        return self._has_ended


def _source(feed: Any) -> Any:
    """A `ray.data` source that reads what the feed gets, for ever."""

    class FeedSource(ray_data.Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[Any]:
            facts = ray_data.block.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ray_data.ReadTask(lambda: _blocks(feed), facts)]

    return FeedSource()


def _blocks(feed: Any) -> Iterator[Any]:
    for n in itertools.count():
        envelope = ray.get(feed.get.remote(n))
        if envelope is None:
            return
        yield pyarrow.table({"n": [n], "envelope": [envelope]})


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Ray Data tells of each execution in several lines; a run has a bar of its own."""
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray.data._internal.execution.streaming_executor")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
