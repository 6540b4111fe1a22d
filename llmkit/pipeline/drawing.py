"""A graph in words: the lines of an error message, and Mermaid for documents.

It knows names and edges alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SOURCE_LABEL = "rows"


def as_text(edges: Iterable[tuple[str, str]]) -> str:
    """One line a node: what follows it."""
    following: dict[str, list[str]] = {}
    for begin, end in edges:
        following.setdefault(begin or SOURCE_LABEL, []).append(end)
    return "\n".join(f"  {begin} >> {', '.join(ends)}" for begin, ends in following.items())


def as_mermaid(labels: Mapping[str, str], edges: Sequence[tuple[str, str]], routes: Iterable[str]) -> str:
    """A Mermaid flowchart; routes are diamonds, the two ends are round.

    Args:
        labels: a text for each node by name.
        edges: (from, to) by name; the empty name is the source.
        routes: names of the nodes that are routes.
    """
    ids = {name: f"n{at}" for at, name in enumerate(labels)}
    lines = ["flowchart LR", f"  source([{SOURCE_LABEL}])"]
    for name, label in labels.items():
        left, right = ("{", "}") if name in routes else ("[", "]")
        lines.append(f'  {ids[name]}{left}"{label}"{right}')
    lines.append("  result([results])")
    lines += [f"  {ids.get(begin, 'source')} --> {ids[end]}" for begin, end in edges]
    followed = {begin for begin, _ in edges}
    lines += [f"  {ids[name]} --> result" for name in labels if name not in followed]
    return "\n".join(lines) + "\n"
