from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.checkpoint import FILE_NAME, load, save
from llmkit.errors import CheckpointError

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)

CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


def writer(text: str) -> Callable[[Path], None]:
    def write_weights(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "w.bin").write_text(text)

    return write_weights


def weights_text(checkpoint_weights: Path | None) -> str:
    assert checkpoint_weights is not None
    return (checkpoint_weights / "sub" / "w.bin").read_text()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def edit(directory: Path, **changes: Any) -> None:
    file = directory / FILE_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_any_json_state_comes_back_equal(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(folder, state)
        assert load(folder).state == state


def test_state_and_weights_come_back_by_folder_and_by_file(tmp_path: Path) -> None:
    file = save(tmp_path / "new" / "deep", {"a": (1, 2)}, write_weights=writer("W"))
    assert file == tmp_path / "new" / "deep" / "checkpoint.json"
    for path in (file, file.parent, str(file)):
        checkpoint = load(path)
        assert checkpoint.state == {"a": [1, 2]}
        assert weights_text(checkpoint.weights) == "W"


def test_a_checkpoint_survives_moving_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "a", {}, write_weights=writer("W"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert weights_text(load(tmp_path / "b").weights) == "W"


def test_without_weights_there_are_none(tmp_path: Path) -> None:
    save(tmp_path, {"a": 1})
    assert load(tmp_path).weights is None


def test_a_save_removes_superseded_weights_and_leftovers_of_dead_saves(tmp_path: Path) -> None:
    save(tmp_path, {"n": 1}, write_weights=writer("old"))
    (tmp_path / ".weights-0123456789abcdef.tmp").mkdir()
    (tmp_path / ".checkpoint-0123456789abcdef.tmp").write_text("{")
    (tmp_path / "weights-0123456789abcdef").mkdir()
    save(tmp_path, {"n": 2}, write_weights=writer("new"))
    checkpoint = load(tmp_path)
    assert weights_text(checkpoint.weights) == "new"
    assert checkpoint.weights is not None
    assert names(tmp_path) == {FILE_NAME, checkpoint.weights.name}


def test_a_save_leaves_files_of_others_alone(tmp_path: Path) -> None:
    for name in ("weights-final", ".weights-mine.tmp", "notes.txt", "weights-0123456789abcdeX"):
        (tmp_path / name).mkdir()
    save(tmp_path, {})
    assert names(tmp_path) == {FILE_NAME, "weights-final", ".weights-mine.tmp", "notes.txt", "weights-0123456789abcdeX"}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [{"b": math.nan}]}, r"finite numbers only, got nan at state\.a\[0\]\.b"),
        ({"a": math.inf}, r"finite numbers only, got inf at state\.a"),
        ({"a": {1: 2}}, r"keys of a checkpoint must be strings, got 1 at state\.a"),
        ({"a": b"x"}, r"JSON values only, got bytes at state\.a"),
        ({"a": {1, 2}}, r"JSON values only, got set at state\.a"),
        ([1], r"must be a mapping, got list"),
        (CYCLE, r"must not contain itself"),
    ],
)
def test_a_state_that_json_would_alter_is_refused_and_nothing_is_written(
    tmp_path: Path, state: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "c", state)
    assert not (tmp_path / "c").exists()


def test_an_error_while_writing_weights_passes_through_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, {"n": 1}, write_weights=writer("old"))
    before = names(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, {"n": 2}, write_weights=fail)
    checkpoint = load(tmp_path)
    assert (checkpoint.state, weights_text(checkpoint.weights)) == ({"n": 1}, "old")
    assert names(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_while_writing_weights_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, {"n": 1}, write_weights=writer("old"))
    before = names(tmp_path)

    def fill_disk(folder: Path) -> None:
        (folder / "half").write_text("x")
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(OSError, match="No space left") as caught:
        save(tmp_path, {"n": 2}, write_weights=fill_disk)
    assert caught.value.errno == errno.ENOSPC
    assert weights_text(load(tmp_path).weights) == "old"
    assert names(tmp_path) == before


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@posix_only
def test_a_document_that_outgrows_the_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, {"n": 1}, write_weights=writer("old"))
    before = names(tmp_path)
    code = """
import resource, sys
from pathlib import Path
from llmkit.checkpoint import save
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(sys.argv[1], {"n": "x" * 100_000}, write_weights=lambda folder: None)
except OSError as error:
    print("refused", error.errno)
"""
    assert run_python(code, str(tmp_path)).stdout == f"refused {errno.EFBIG}\n"
    checkpoint = load(tmp_path)
    assert (checkpoint.state, weights_text(checkpoint.weights)) == ({"n": 1}, "old")
    assert names(tmp_path) == before


KILLED_AT = {
    "while writing weights": "save(sys.argv[1], {'n': 2}, write_weights=lambda folder: (write(folder), die()))",
    "just before the commit": "os.replace = die; save(sys.argv[1], {'n': 2}, write_weights=write)",
    "just after the commit": (
        "real = os.replace; os.replace = lambda a, b: (real(a, b), die()); save(sys.argv[1], {'n': 2}, "
        "write_weights=write)"
    ),
}


@posix_only
@pytest.mark.parametrize("moment", list(KILLED_AT))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, moment: str) -> None:
    save(tmp_path, {"n": 1}, write_weights=writer("old"))
    code = f"""
import os, signal, sys
from llmkit.checkpoint import save
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def write(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_text("new")
{KILLED_AT[moment]}
"""
    assert run_python(code, str(tmp_path)).returncode == -signal.SIGKILL
    committed = moment == "just after the commit"
    checkpoint = load(tmp_path)
    expected = ({"n": 2}, "new") if committed else ({"n": 1}, "old")
    assert (checkpoint.state, weights_text(checkpoint.weights)) == expected
    assert len(names(tmp_path)) > 2  # the dead save left something behind
    save(tmp_path, {"n": 3})
    assert names(tmp_path) == {FILE_NAME}
    assert load(tmp_path).state == {"n": 3}


def test_concurrent_saves_take_turns_and_the_last_is_whole(tmp_path: Path) -> None:
    def save_often(k: int) -> None:
        for i in range(10):
            save(tmp_path, {"text": f"{k}-{i}"}, write_weights=writer(f"{k}-{i}"))

    failures: list[threading.ExceptHookArgs] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = [threading.Thread(target=save_often, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert failures == []
    checkpoint = load(tmp_path)
    assert checkpoint.state == {"text": weights_text(checkpoint.weights)}
    assert checkpoint.weights is not None
    assert names(tmp_path) == {FILE_NAME, checkpoint.weights.name}


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*checkpoint\.json"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, {"a": [1, 2, 3], "b": "text"})
    text = file.read_text()
    for length in range(len(text.rstrip())):
        file.write_text(text[:length])
        with pytest.raises(CheckpointError, match=r"damaged or cut short: .* at line \d+, column \d+"):
            load(tmp_path)


def test_any_changed_state_fails_its_checksum(tmp_path: Path) -> None:
    save(tmp_path, {"temperature": 0.7})
    edit(tmp_path, state={"temperature": 0.8})
    with pytest.raises(CheckpointError, match="does not have the recorded sha256"):
        load(tmp_path)


def test_a_reformatted_file_still_loads(tmp_path: Path) -> None:
    file = save(tmp_path, {"b": 1, "a": {"y": 1.5, "x": "é"}})
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document, indent=8, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    assert load(tmp_path).state == {"b": 1, "a": {"y": 1.5, "x": "é"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "no llmkit checkpoint: format must be 'llmkit-checkpoint', got 'other'"),
        ({"version": 2}, "saved by a newer llmkit: its version is 2, this one reads 1"),
        ({"version": "1"}, "version must be an integer >= 1, got '1'"),
        ({"version": True}, "version must be an integer >= 1, got True"),
        ({"state": [1]}, "state must be an object, got list"),
        ({"sha256": None}, "sha256"),
        ({"weights": "../secret"}, "weights must be null or"),
        ({"weights": "weights-0123456789abcdef\n"}, "weights must be null or"),
        ({"weights": 3}, "weights must be null or"),
        ({"weights": "weights-0123456789abcdef"}, "weights of .* are missing"),
    ],
)
def test_a_foreign_newer_or_damaged_document_says_which(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path, {"a": 1})
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold an object, got list"),
        (b"{}", "format must be"),
        (b"\xff\xfe\x00", "byte 0 is no UTF-8"),
        (b'{"state": NaN}', "numbers must be finite, got NaN"),
        (b"[" * 200_000, "damaged"),
        (b"\x80\x05cos\nsystem\n", "no UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_missing_weights_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path, {}, write_weights=lambda folder: None)
    weights = load(tmp_path).weights
    assert weights is not None
    os.rmdir(weights)
    with pytest.raises(CheckpointError, match=f"there is no folder {weights}"):
        load(tmp_path)


def test_a_save_replaces_a_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    save(tmp_path, {"a": 1})
    assert load(tmp_path).state == {"a": 1}
