"""The local runner: batch after batch goes through all steps in this process, in order.

It knows when a model is needed first and last, and that a result is recorded before it moves on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from llmkit.pipeline.flow import Batch, Flow
from llmkit.pipeline.graph import Graph
from llmkit.pipeline.journal import Journal
from llmkit.pipeline.keys import Row
from llmkit.pipeline.progress import Progress
from llmkit.pipeline.stage import Item, Stage


class LocalRunner:
    """Runs steps one after the other. A batch as large as the source keeps one model in memory at a time."""

    def run(
        self,
        graph: Graph,
        batches: Iterable[tuple[Sequence[Row], Sequence[bytes]]],
        journal: Journal | None,
        progress: Progress,
    ) -> Iterator[list[Row]]:
        """The rows that come out of each batch of rows and keys, in order."""
        code = b"" if journal is None else None
        flow, stages = Flow(graph), [Stage(name, step, code=code) for name, step in graph.steps()]
        try:
            for (rows, keys), is_last in _with_last(batches):
                batch = flow.enter(rows, keys)
                for stage in stages:
                    _advance(flow, batch, stage, journal, progress)
                    if is_last:
                        stage.unload()
                progress.failed += batch.n_failed
                done = batch.rows()
                progress.batch_done(len(rows), len(done))
                yield done
        finally:
            for stage in stages:
                stage.unload()


def _advance(flow: Flow, batch: Batch, stage: Stage, journal: Journal | None, progress: Progress) -> None:
    """Give the items at a step to it, or take what the journal has of them, and move on what came of it."""
    items = batch.take(stage.name)
    if not items:
        return
    origins = stage.origins(items)
    ids = stage.ids(items, origins)
    results = journal.find(ids) if journal is not None and not journal.was_empty else {}
    progress.reused += len(results)
    missing = [(item, id) for item, id in zip(items, ids, strict=True) if id not in results]
    for some in _sliced(missing, stage.step.input_batch_size):
        results.update(_made(stage, some, journal, progress))
    flow.give(batch, stage.name, items, origins, [results[id] for id in ids])


def _made(
    stage: Stage, missing: Sequence[tuple[Item, bytes]], journal: Journal | None, progress: Progress
) -> dict[bytes, str]:
    before = stage.tokens
    items, ids = zip(*missing, strict=True)
    made = stage.make(items, ids)
    progress.tokens += stage.tokens - before
    progress.computed += len(made)
    progress.failed += sum(result.failed for result in made)
    if journal is not None:
        # Before they move on: what a later step makes of them is worth nothing without them.
        journal.record([(result.id, result.rows) for result in made if not result.failed])
    return {result.id: result.rows for result in made}


def _sliced(missing: Sequence[tuple[Item, bytes]], size: int) -> Iterator[Sequence[tuple[Item, bytes]]]:
    return (missing[at : at + size] for at in range(0, len(missing), size))


def _with_last(
    batches: Iterable[tuple[Sequence[Row], Sequence[bytes]]],
) -> Iterator[tuple[tuple[Sequence[Row], Sequence[bytes]], bool]]:
    """Each batch, and whether no other follows."""
    ahead = itertools.chain(((batch, False) for batch in batches), [None])
    previous = next(ahead)
    for following in ahead:
        if previous is not None:
            yield previous[0], following is None
        previous = following
