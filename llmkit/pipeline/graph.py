"""The graph of a pipeline: its steps by name, how they follow each other, and what must hold before anything loads.

Values only: joining gives a new graph and leaves the old one. It runs nothing and reads no rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llmkit.errors import PipelineError
from llmkit.pipeline.drawing import as_text
from llmkit.pipeline.functions import FunctionStep, Route
from llmkit.tasks.step import Step
from llmkit.tasks.task import Task

Node: TypeAlias = "Step | Route"

SOURCE = ""
"""The node that every row comes from; no step can have this name."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps and routes by name, and the edges between them in the order in which they were joined.

    Attributes:
        nodes: every step and route by its name.
        edges: (from, to) by name; `SOURCE` is where rows enter.
        ends: nodes that the next join continues; the graph's rows leave at every node that nothing follows.
    """

    nodes: Mapping[str, Node] = field(default_factory=dict[str, Node])
    edges: tuple[tuple[str, str], ...] = ()
    ends: tuple[str, ...] = (SOURCE,)

    def joined(self, others: Sequence[Graph]) -> Graph:
        """This graph, with each of the others beginning where this one ends.

        Raises:
            PipelineError: a name is there twice, or the steps would follow each other in a circle.
        """
        nodes, edges, ends = dict(self.nodes), list(self.edges), list[str]()
        for other in others:
            for name, node in other.nodes.items():
                if nodes.setdefault(name, node) is not node:
                    self._refuse(f"two steps are named {name!r}; give each a name of its own", edges)
            for begin, end in other.edges:
                begins = self.ends if begin == SOURCE else (begin,)
                edges += [(b, end) for b in begins if (b, end) not in edges]
            ends += [end for e in other.ends for end in (self.ends if e == SOURCE else (e,)) if end not in ends]
        graph = Graph(nodes, tuple(edges), tuple(ends))
        graph.order()
        return graph

    def after(self, name: str) -> tuple[str, ...]:
        """The nodes that follow this one."""
        return tuple(end for begin, end in self.edges if begin == name)

    def before(self, name: str) -> tuple[str, ...]:
        """The nodes that this one follows."""
        return tuple(begin for begin, end in self.edges if end == name)

    def order(self) -> tuple[str, ...]:
        """All names, each after those that it follows.

        Raises:
            PipelineError: there is a circle.
        """
        ordered: list[str] = []
        waiting = list(self.nodes)
        while waiting:
            ready = [name for name in waiting if not set(self.before(name)) & set(waiting)]
            if not ready:
                self._refuse(f"the steps {', '.join(waiting)} follow each other in a circle", self.edges)
            ordered += ready
            waiting = [name for name in waiting if name not in ready]
        return tuple(ordered)

    def steps(self) -> Iterator[tuple[str, Step]]:
        """The steps by name, in order, without the routes."""
        for name in self.order():
            node = self.nodes[name]
            if isinstance(node, Step):
                yield name, node

    def check(self, columns: Iterable[str] | None) -> None:
        """Whether each step finds its columns.

        Args:
            columns: those of the source; None where they are not known, which leaves nothing to compare with.

        Raises:
            PipelineError: a column is missing, or a route leads nowhere.
        """
        found: dict[str, frozenset[str] | None] = {SOURCE: None if columns is None else frozenset(columns)}
        for name in self.order():
            incoming = [found[before] for before in self.before(name)]
            known = [some for some in incoming if some is not None]
            there = functools.reduce(frozenset[str].intersection, known) if len(known) == len(incoming) else None
            found[name] = self._columns_after(name, there)

    def _columns_after(self, name: str, there: frozenset[str] | None) -> frozenset[str] | None:
        node = self.nodes[name]
        if isinstance(node, Route):
            if not self.after(name):
                self._refuse(f"nothing follows the route {name!r}", self.edges)
            return there
        missing = [column for column in node.required_columns if there is not None and column not in there]
        if there is not None and missing:
            has = ", ".join(sorted(there)) or "none"
            self._refuse(f"{name!r} needs the column {missing[0]!r}, the columns there are: {has}", self.edges)
        # Tasks refuse this at their first row; the name of the model is one that they share.
        own = [c for c in node.output_columns if isinstance(node, Task) and c != "model_name"]
        twice = [column for column in own if there is not None and column in there]
        if twice:
            problem = f"{name!r} would write over the column {twice[0]!r}; give its output another name"
            self._refuse(f"{problem}, output_mappings={{...: ...}}", self.edges)
        if there is None or (isinstance(node, FunctionStep) and node.writes is None):
            return None
        return there | {*node.output_columns}

    def _refuse(self, problem: str, edges: Iterable[tuple[str, str]]) -> None:
        raise PipelineError(f"{problem}\n{as_text(edges)}")
