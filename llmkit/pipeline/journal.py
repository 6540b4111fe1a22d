"""The journal: what each step made of each row, on disk, so that a killed run goes on where it was.

Owns the file and what survives what. It does not know what an id means (`flow` makes it of a step's signature and a
row's key), nor the steps.

The file is a SQLite database with the tables `about(format, version)` and `results(id BLOB, rows TEXT)`, `rows` being a
JSON list; of an id that is there twice, the first counts. The index of ids is made by the first run that looks for one:
ids are random, so keeping it up to date costs three times as much as writing the rows down, and a run that began with
an empty journal looks for nothing. A killed process loses nothing that was written; a power cut may take the latest
writes, and they are computed again. One run at a time may have a journal open. Lookups read pages as they need them, so
that memory does not grow with the rows.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from llmkit.errors import PipelineError

FORMAT = "llmkit-journal"
VERSION = 1
_MAX_IDS = 500
"""Ids in one query; SQLite allows 32,766 parameters, and a query's text should stay short."""


class Journal:
    """The results of finished rows by id. Not for several threads.

    Args:
        path: the file; made where it is missing, with its folder.

    Attributes:
        was_empty: nothing had been recorded when it was opened, so a run need not look for what it has not made itself.

    Raises:
        PipelineError: the file is no journal, is damaged, is of a newer version, or another run has it open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened and refused at once rather than after a wait: a run holds its journal for hours.
        self._database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        self._is_indexed = False
        try:
            self._open()
            self.was_empty = self._database.execute("SELECT 1 FROM results LIMIT 1").fetchone() is None
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise PipelineError(_reason(self.path, error)) from error
        except PipelineError:
            self._database.close()
            raise

    def find(self, ids: Sequence[bytes]) -> dict[bytes, str]:
        """The recorded rows of those ids that are known, as JSON lists.

        Raises:
            PipelineError: the disk is full or failed, or the file is damaged.
        """
        found: dict[bytes, str] = {}
        try:
            self._index()
            for at in range(0, len(ids), _MAX_IDS):
                some = ids[at : at + _MAX_IDS]
                query = f"SELECT id, rows FROM results WHERE id IN ({','.join('?' * len(some))}) ORDER BY rowid DESC"
                found.update(self._database.execute(query, some))
        except sqlite3.Error as error:
            raise PipelineError(f"cannot read the journal {self.path}: {error}") from error
        return found

    def record(self, results: Sequence[tuple[bytes, str]]) -> None:
        """Write results down, all or none of them; what was there before stays.

        Raises:
            PipelineError: the disk is full or failed.
        """
        try:
            self._database.execute("BEGIN")
            for at in range(0, len(results), _MAX_IDS):
                some = results[at : at + _MAX_IDS]
                query = f"INSERT INTO results VALUES {','.join(['(?, ?)'] * len(some))}"
                self._database.execute(query, [value for result in some for value in result])
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise PipelineError(f"cannot write the journal {self.path}: {error}") from error

    def close(self) -> None:
        """Fold what was written into the one file. Safe twice."""
        self._database.close()

    def _index(self) -> None:
        if not self._is_indexed:
            self._database.execute("CREATE INDEX IF NOT EXISTS results_by_id ON results (id)")
            self._is_indexed = True

    def _open(self) -> None:
        # Exclusive: a second run is refused, and the write-ahead log needs no shared memory, which network disks lack.
        self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("BEGIN EXCLUSIVE")
        tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            self._database.execute("CREATE TABLE about (format TEXT, version INTEGER)")
            self._database.execute("INSERT INTO about VALUES (?, ?)", (FORMAT, VERSION))
            self._database.execute("CREATE TABLE results (id BLOB NOT NULL, rows TEXT NOT NULL)")
        elif tables != {"about", "results"}:
            raise PipelineError(f"{self.path} is no llmkit journal: it has the tables {', '.join(sorted(tables))}")
        self._check_version()
        self._database.execute("COMMIT")

    def _check_version(self) -> None:
        format_, version = self._database.execute("SELECT format, version FROM about").fetchone() or (None, None)
        if format_ != FORMAT or type(version) is not int:
            raise PipelineError(f"{self.path} is no llmkit journal: its format is {format_!r}")
        if version > VERSION:
            raise PipelineError(
                f"{self.path} was written by a newer llmkit: its version is {version}, this one reads {VERSION}"
            )


def _reason(path: Path, error: sqlite3.DatabaseError) -> str:
    if "locked" in str(error):
        return f"another run has the journal {path} open; wait for it, or give this run a journal of its own"
    return f"{path} is damaged or no llmkit journal: {error}"
