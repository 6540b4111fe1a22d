"""The names of rows: what a row's key is, and the seed that comes from it.

A key depends on a row's content and on how often this content came before, never on batches, workers or time. Keys of
rows that steps make follow from the row that they were made of. It knows neither steps nor files.
"""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from llmkit.errors import PipelineError
from llmkit.pipeline.json_rows import RowEncoder

Row: TypeAlias = dict[str, Any]

KEY_BYTES = 16
_ENCODER = RowEncoder(sort_keys=True, separators=(",", ":"))
_MOST_IN_MEMORY = 50_000  # contents, some 7 MB
_SEED_BYTES = 6  # 48 bits: exact in every JSON reader, and enough that rows hardly ever share one


def content_keys(rows: Sequence[Row]) -> list[bytes]:
    """The hash of each row's content; the order of its columns does not matter.

    Raises:
        PipelineError: a value is not of those that JSON holds.
    """
    try:
        texts = _ENCODER.each(rows)
    except (TypeError, ValueError):
        texts = [_canonical(row) for row in rows]
    return [digest(text.encode()) for text in texts]


def occurrence_key(content: bytes, occurrence: int) -> bytes:
    """The key of the row that has this content for the n-th time, from 0: equal rows stay different rows."""
    return content if occurrence == 0 else digest(content + occurrence.to_bytes(8))


def child_key(key: bytes, step: str, index: int) -> bytes:
    """The key of the index-th row that a step makes of the row with this key."""
    return digest(key + _suffix(index.to_bytes(8), step))


def row_seed(key: bytes, step: str, seed: int) -> int:
    """The seed of a row in a step: an integer in [0, 2**48) that follows from its key, and from the run's seed."""
    return int.from_bytes(digest(key + _suffix(seed.to_bytes(16, signed=True), step))[:_SEED_BYTES])


@functools.lru_cache
def _suffix(number: bytes, step: str) -> bytes:
    return number + step.encode()


def digest(data: bytes) -> bytes:
    """16 bytes that stand for the data."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def _canonical(row: Row) -> str:
    try:
        return _ENCODER.one(row)
    except (TypeError, ValueError) as error:
        what = "a row must hold what JSON holds (text, numbers, lists, mappings)"
        raise PipelineError(f"{what}, got {row!r}: {error}") from error


class Occurrences:
    """Counts how often each content came, exactly; many contents are counted on disk, so that memory stays bounded.

    The table is a temporary file that vanishes with the object. Not for several threads.
    """

    def __init__(self) -> None:
        self._in_memory = Counter[bytes]()
        self._database: sqlite3.Connection | None = None

    def keys(self, rows: Sequence[Row]) -> list[bytes]:
        """The keys of the next rows, in their order."""
        contents = content_keys(rows)
        before = self._in_memory if self._database is None else _seen(self._database, contents)
        keys: list[bytes] = []
        for content in contents:
            n = before.get(content, 0)
            keys.append(occurrence_key(content, n))
            before[content] = n + 1
        if self._database is not None:
            _add(self._database, Counter(contents))
        elif len(self._in_memory) > _MOST_IN_MEMORY:
            self._move_to_disk()
        return keys

    def close(self) -> None:
        """Delete the table."""
        if self._database is not None:
            self._database.close()

    def _move_to_disk(self) -> None:
        # The empty name is SQLite's for a private file that it deletes itself.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("CREATE TABLE seen (content BLOB PRIMARY KEY, n INTEGER) WITHOUT ROWID")
        _add(self._database, self._in_memory)
        self._in_memory.clear()


def _seen(database: sqlite3.Connection, contents: list[bytes]) -> dict[bytes, int]:
    query = f"SELECT content, n FROM seen WHERE content IN ({','.join('?' * len(contents))})"
    return dict(database.execute(query, contents))


def _add(database: sqlite3.Connection, counts: Counter[bytes]) -> None:
    upsert = "INSERT INTO seen VALUES (?, ?) ON CONFLICT (content) DO UPDATE SET n = n + excluded.n"
    database.execute("BEGIN")
    database.executemany(upsert, counts.items())
    database.execute("COMMIT")
