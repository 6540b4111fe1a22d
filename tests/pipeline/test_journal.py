"""The journal: what survives a crash, and which files are refused."""

import os
import shutil
import sqlite3
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import PipelineError
from llmkit.pipeline import keys as keys_of_rows
from llmkit.pipeline.journal import Journal
from llmkit.pipeline.keys import Occurrences, child_key, content_keys, occurrence_key, row_seed

IDS = [bytes([n]) * 16 for n in range(200)]


def test_what_was_recorded_is_found_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal")
    assert journal.was_empty
    journal.record([(id, f"[{n}]") for n, id in enumerate(IDS[:150])])
    assert journal.find(IDS) == {id: f"[{n}]" for n, id in enumerate(IDS[:150])}
    journal.close()
    journal = Journal(tmp_path / "deep" / "journal")
    assert not journal.was_empty
    assert len(journal.find(IDS * 10)) == 150
    journal.record([(IDS[0], "[999]")])
    assert journal.find(IDS[:1]) == {IDS[0]: "[0]"}
    journal.close()


def test_a_torn_end_loses_the_last_write_and_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for n in range(3):
        journal.record([(IDS[n], f"[{n}]")])
    # As a crash leaves the files, with the last bytes missing.
    torn = tmp_path / "torn"
    for suffix in ("", "-wal"):
        shutil.copy(f"{tmp_path / 'journal'}{suffix}", f"{torn}{suffix}")
    journal.close()
    os.truncate(f"{torn}-wal", os.path.getsize(f"{torn}-wal") - 100)
    again = Journal(torn)
    assert again.find(IDS) == {IDS[0]: "[0]", IDS[1]: "[1]"}
    again.record([(IDS[2], "[2]")])
    assert len(again.find(IDS)) == 3
    again.close()


def test_foreign_damaged_and_newer_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(PipelineError, match="is damaged or no llmkit journal"):
        Journal(text)
    assert text.read_text().startswith("not a database")
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE people (name TEXT)")
    database.close()
    with pytest.raises(PipelineError, match="is no llmkit journal: it has the tables people"):
        Journal(foreign)
    newer = tmp_path / "newer"
    Journal(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("UPDATE about SET version = 2")
    database.close()
    with pytest.raises(PipelineError, match="its version is 2, this one reads 1"):
        Journal(newer)


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 7), st.sampled_from([0, 1, 2, 50_000]))
def test_keys_depend_on_content_and_occurrence_alone(texts: list[str], size: int, most_in_memory: int) -> None:
    occurrences = Occurrences()
    rows = [{"text": text} for text in texts]
    with mock.patch.object(keys_of_rows, "_MOST_IN_MEMORY", most_in_memory):
        keys = [key for at in range(0, len(rows), size) for key in occurrences.keys(rows[at : at + size])]
    occurrences.close()
    assert keys == [occurrence_key(content_keys([row])[0], rows[:at].count(row)) for at, row in enumerate(rows)]
    assert len(set(keys)) == len(rows)


def test_a_key_sees_every_value_and_no_order_of_columns() -> None:
    first, second = content_keys([{"a": 1, "b": 2}, {"b": 2, "a": 1}])
    assert first == second
    assert len(set(content_keys([{"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, {}]))) == 6


def test_keys_and_seeds_of_new_rows_differ_by_step_index_and_parent() -> None:
    made = {child_key(key, name, n) for key in IDS[:3] for name in ("a", "b") for n in range(3)}
    assert len(made) == 18
    seeds = {row_seed(key, name, seed) for key in IDS[:3] for name in ("a", "b") for seed in (0, 1, 2**64 - 1)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**48 for seed in seeds)
