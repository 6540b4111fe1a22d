"""What a task notes beside its outputs: raw texts, token counts, and why a row failed; notes of several tasks merge.

The notes of one row are a dictionary, or a list of them where a task groups generations. Every key ends in the name of
its task, so nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from llmkit.errors import InvalidRequest

Notes: TypeAlias = "dict[str, Any]"

METADATA = "llmkit_metadata"
"""The column of the notes, unless a task says otherwise."""


def error_key(task: str) -> str:
    """The key under which the task of this name notes why a row failed."""
    return f"error_{task}"


def failure(row: Mapping[str, Any], task: str, column: str = METADATA) -> str | None:
    """Why the task of this name failed on a row: the first reason noted, or None where all went well."""
    key, metadata = error_key(task), row.get(column)
    if isinstance(metadata, dict):
        return cast("Notes", metadata).get(key)
    return next((entry[key] for entry in _entries(metadata) if key in entry), None)


def merged(earlier: object, own: Sequence[Notes], *, grouped: bool) -> Notes | list[Notes]:
    """The notes that a row has already, and a task's own: one for each text that the new row holds.

    Args:
        earlier: the row's metadata: a dictionary, a list of dictionaries, or None.
        own: the task's notes; a single one unless `grouped`.
        grouped: the new row holds several texts, so its metadata is a list.

    Raises:
        InvalidRequest: the row's metadata is something else, or the two have a key in common.
    """
    before = _entries(earlier)
    was_list = isinstance(earlier, list)
    if not before:
        return list(own) if grouped or was_list else own[0]
    if len(before) > 1 and len(own) > 1:
        # Two groups have no pairs: the whole of ours goes with each of theirs.
        own = [{key: [notes.get(key) for notes in own] for key in _keys(own)}]
    pairs = [(b, o) for b in before for o in own]
    together = [_union(b, o) for b, o in pairs]
    return together if grouped or was_list else together[0]


def _entries(metadata: object) -> list[Notes]:
    if not metadata and (metadata is None or isinstance(metadata, dict)):
        return []
    entries = cast("list[object]", metadata if isinstance(metadata, list) else [metadata])
    if not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f"a row's metadata must be a dictionary or a list of them, got {metadata!r}")
    return cast("list[Notes]", entries)


def _keys(own: Sequence[Notes]) -> list[str]:
    return list(dict.fromkeys(key for notes in own for key in notes))


def _union(earlier: Notes, own: Notes) -> Notes:
    if not earlier.keys().isdisjoint(own):
        raise InvalidRequest(
            f"the metadata has {min(earlier.keys() & own)!r} already; give each task a name of its own"
        )
    return {**earlier, **own}
