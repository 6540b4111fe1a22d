"""A batch of rows on its way through a graph: where each row is, and in which order they come out.

It knows edges, routes and keys, and nothing of how a step gets its results: runners take the items that wait at a step,
and give back what was made of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from llmkit.errors import PipelineError
from llmkit.pipeline.functions import Route
from llmkit.pipeline.graph import SOURCE, Graph
from llmkit.pipeline.keys import Row, child_key
from llmkit.pipeline.stage import Item, noted


@dataclass(slots=True)
class Batch:
    """Items that wait at steps, and items that have left the graph.

    Attributes:
        waiting: items by the name of the step that they wait at.
        done: items that no step follows.
        n_failed: results that hold a reason instead.
    """

    waiting: dict[str, list[Item]] = field(default_factory=dict[str, list[Item]])
    done: list[Item] = field(default_factory=list[Item])
    n_failed: int = 0

    def take(self, name: str) -> list[Item]:
        """The items that wait at a step; they wait no longer."""
        return self.waiting.pop(name, [])

    def rows(self) -> list[Row]:
        """The rows that have left, in the order of the rows that they come from."""
        return [item.row for item in sorted(self.done, key=lambda item: item.path)]


class Flow:
    """Moves items along the edges of a graph. Immutable, and safe to use from many threads."""

    def __init__(self, graph: Graph) -> None:
        self._after = {name: graph.after(name) for name in (SOURCE, *graph.nodes)}
        self._routes = {name: node for name, node in graph.nodes.items() if isinstance(node, Route)}

    def enter(self, rows: Sequence[Row], keys: Sequence[bytes]) -> Batch:
        """A batch with new rows, moved on to the first steps."""
        batch = Batch()
        pairs = enumerate(zip(rows, keys, strict=True))
        self._move(batch, SOURCE, [Item(key, b"", row, (at,)) for at, (row, key) in pairs])
        return batch

    def give(
        self, batch: Batch, name: str, items: Sequence[Item], origins: Sequence[bytes], made: Sequence[str]
    ) -> None:
        """Move on what a step made: for each item a JSON list of rows, and what stands for the steps behind them."""
        groups = cast("list[list[Row]]", json.loads(f"[{','.join(made)}]"))
        new = [
            Item(child_key(item.key, name, n), origin, row, (*item.path, n))
            for item, origin, rows in zip(items, origins, groups, strict=True)
            for n, row in enumerate(rows)
        ]
        self._move(batch, name, new)

    def _move(self, batch: Batch, name: str, items: Sequence[Item]) -> None:
        after = self._after[name]
        if not after:
            batch.done += items
        elif len(after) == 1 and after[0] not in self._routes:
            batch.waiting.setdefault(after[0], []).extend(items)
        else:
            for item in items:
                for n, target in enumerate(after):
                    self._arrive(batch, target, Item(item.key, item.origin, item.row, (*item.path, n)))

    def _arrive(self, batch: Batch, name: str, item: Item) -> None:
        if name not in self._routes:
            batch.waiting.setdefault(name, []).append(item)
            return
        after = self._after[name]
        try:
            chosen = self._routes[name].targets(item.row, after)
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - a row that cannot be routed leaves with the reason
            batch.n_failed += 1
            batch.done.append(Item(item.key, item.origin, {**item.row, **noted(item.row, name, error)}, item.path))
            return
        for n, target in enumerate(after):
            if target in chosen:
                self._arrive(batch, target, Item(item.key, item.origin, item.row, (*item.path, n)))
