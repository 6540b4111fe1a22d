from __future__ import annotations

import gc
import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from llmkit.events import EventLog


@pytest.fixture
def log() -> Iterator[EventLog]:
    events = EventLog()
    yield events
    events.close()


@pytest.fixture
def app_sink() -> Iterator[io.StringIO]:
    """What an application that logs with loguru sees, llmkit disabled as its import leaves it."""
    sink = io.StringIO()
    logger.disable("llmkit")
    sink_id = logger.add(sink, format="{level}:{message}:{extra}", level=0)
    yield sink
    logger.remove(sink_id)
    logger.disable("llmkit")


def test_events_reach_the_file_with_level_message_and_fields(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "model.log")
    log.log("loaded", level="WARNING", model="tiny", n=3)
    line = (tmp_path / "model.log").read_text()
    assert line.endswith("| WARNING  | loaded | model='tiny' | n=3\n")


def test_the_default_file_is_model_log_in_the_working_folder(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log.enable()
    log.log("here")
    assert "here" in (tmp_path / "model.log").read_text()
    assert log.log_file == (tmp_path / "model.log").resolve()


def test_before_enable_nothing_is_written_and_nothing_fails(log: EventLog, app_sink: io.StringIO) -> None:
    log.log("unheard")
    assert not log.enabled
    assert log.log_file is None
    assert app_sink.getvalue() == ""


def test_the_file_gets_events_that_the_application_does_not_see(
    log: EventLog, tmp_path: Path, app_sink: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    log.enable(tmp_path / "a.log")
    log.log("mine")
    assert "mine" in (tmp_path / "a.log").read_text()
    assert app_sink.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_an_application_that_enables_llmkit_sees_the_events_with_or_without_a_file(
    log: EventLog, tmp_path: Path, app_sink: io.StringIO
) -> None:
    logger.enable("llmkit")
    log.log("one", n=1)
    log.enable(tmp_path / "a.log")
    log.log("two", level="ERROR")
    assert app_sink.getvalue() == "INFO:one:{'n': 1}\nERROR:two:{}\n"
    assert "two" in (tmp_path / "a.log").read_text()


def test_the_applications_own_lines_stay_out_of_the_file(log: EventLog, tmp_path: Path, app_sink: io.StringIO) -> None:
    log.enable(tmp_path / "a.log")
    logger.info("application")
    logging.getLogger().warning("root")
    assert (tmp_path / "a.log").read_text() == ""
    assert app_sink.getvalue() == "INFO:application:{}\n"
    log.close()
    logger.info("still")
    assert app_sink.getvalue().endswith("INFO:still:{}\n")


def test_a_configured_root_logger_changes_nothing(log: EventLog, tmp_path: Path) -> None:
    root = logging.getLogger()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handlers, level = list(root.handlers), root.level
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        log.enable(tmp_path / "a.log")
        log.log("quiet root", level="DEBUG")
        assert root.handlers == [*handlers, handler]
        assert root.level == logging.CRITICAL
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert "quiet root" in (tmp_path / "a.log").read_text()
    assert stream.getvalue() == ""


def test_two_logs_with_two_files_never_mix(tmp_path: Path) -> None:
    one, two = EventLog(), EventLog()
    one.enable(tmp_path / "1.log")
    two.enable(tmp_path / "2.log")
    one.log("first")
    two.log("second")
    one.close()
    one.log("late")
    two.log("third")
    two.close()
    assert [line.split(" | ")[2] for line in (tmp_path / "1.log").read_text().splitlines()] == ["first"]
    assert [line.split(" | ")[2] for line in (tmp_path / "2.log").read_text().splitlines()] == ["second", "third"]


def test_two_logs_share_one_file_through_rotation_and_the_close_of_one(tmp_path: Path) -> None:
    logs = [EventLog(), EventLog()]
    for log in logs:
        log.enable(tmp_path / "m.log", rotation=2000, retention=None)

    def write(log: EventLog, name: str) -> None:
        for i in range(100):
            log.log(f"{name}{i}")

    threads = [threading.Thread(target=write, args=(log, name)) for log, name in zip(logs, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs[0].close()
    logs[1].log("last")
    logs[1].close()
    files = list(tmp_path.glob("m*.log"))
    messages = [line.split(" | ")[2] for file in files for line in file.read_text().splitlines()]
    assert len(files) > 3
    assert sorted(messages) == sorted([f"{name}{i}" for name in "ab" for i in range(100)] + ["last"])


def test_logs_of_one_file_must_agree_on_rotation(log: EventLog, tmp_path: Path) -> None:
    other = EventLog()
    other.enable(tmp_path / "m.log", rotation="1 MB")
    with pytest.raises(ValueError, match=r"must agree on .*'1 MB'.*'2 MB'"):
        log.enable(tmp_path / "m.log", rotation="2 MB")
    other.close()
    log.enable(tmp_path / "m.log", rotation="2 MB")
    assert log.enabled


def test_retention_limits_the_rotated_files(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "m.log", rotation=200, retention=2)
    for i in range(50):
        log.log(f"event {i}")
    assert len(list(tmp_path.glob("m*.log"))) <= 3


def test_enabling_again_switches_the_file_and_appends(log: EventLog, tmp_path: Path) -> None:
    for name in ("a.log", "b.log", "a.log"):
        log.enable(tmp_path / name)
        log.log(f"to {name}")
    assert (tmp_path / "a.log").read_text().count("to a.log\n") == 2
    assert (tmp_path / "b.log").read_text().count("to b.log\n") == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])),
    value=st.text(),
)
def test_any_text_is_written_verbatim(log: EventLog, tmp_path: Path, message: str, value: str) -> None:
    path = tmp_path / "m.log"
    log.enable(path)
    before = path.stat().st_size
    log.log(message, value=value)
    written = path.read_bytes()[before:].decode()
    assert written.endswith(f"| INFO     | {message} | value={value!r}\n")


@pytest.mark.parametrize("message", ["{", "{0} {name} {}", "<red>x</red> </b> <", "a\nb\n", "%s %d", "{extra[x]}"])
def test_templates_and_markup_are_plain_text(
    log: EventLog, tmp_path: Path, app_sink: io.StringIO, message: str
) -> None:
    logger.enable("llmkit")
    log.enable(tmp_path / "m.log")
    log.log(message, note=message)
    assert f"| INFO     | {message} | note=" in (tmp_path / "m.log").read_text()
    assert app_sink.getvalue().startswith(f"INFO:{message}:")


def test_a_lone_surrogate_is_escaped_and_not_lost(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "m.log")
    log.log("bad \ud800 text")
    assert "bad \\ud800 text" in (tmp_path / "m.log").read_text()


def test_fields_may_be_named_like_the_logs_own_arguments(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "m.log")
    log.log("x", message="m", fields=1, self=2)
    assert "| x | message='m' | fields=1 | self=2\n" in (tmp_path / "m.log").read_text()


def test_an_unknown_level_is_refused_and_a_custom_one_of_the_application_works(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "m.log")
    with pytest.raises(ValueError, match="NOPE"):
        log.log("x", level="NOPE")
    logger.level("LLMKIT_TEST_AUDIT", no=33)
    log.log("y", level="LLMKIT_TEST_AUDIT")
    assert "| LLMKIT_TEST_AUDIT | y" in (tmp_path / "m.log").read_text()


def test_missing_folders_are_created_and_braces_in_names_are_literal(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "a{x}" / "b" / "{time}.log"
    log.enable(path)
    log.log("x")
    assert "x" in path.read_text()


def test_a_folder_is_refused_at_enable_and_the_log_stays_as_it_was(log: EventLog, tmp_path: Path) -> None:
    log.enable(tmp_path / "m.log")
    with pytest.raises(IsADirectoryError, match="must be a file, got the folder"):
        log.enable(tmp_path)
    log.log("still here")
    assert "still here" in (tmp_path / "m.log").read_text()


def test_a_path_that_cannot_be_written_is_refused_at_enable(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the log file .*m\.log"):
        log.enable(tmp_path / "file" / "m.log")
    assert not log.enabled


def test_a_rotation_that_is_none_is_refused(log: EventLog, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="often"):
        log.enable(tmp_path / "m.log", rotation="often")
    assert not log.enabled


def test_disable_is_safe_twice_and_closes_the_file(tmp_path: Path) -> None:
    log = EventLog()
    log.enable(tmp_path / "m.log")
    log.disable()
    log.disable()
    assert not log.enabled
    log.log("late")
    gc.collect()
    assert (tmp_path / "m.log").read_text() == ""
    open_files = [Path(link).resolve() for link in Path("/proc/self/fd").glob("*")] if Path("/proc").exists() else []
    assert (tmp_path / "m.log").resolve() not in open_files


def test_a_log_that_is_forgotten_closes_its_file(tmp_path: Path) -> None:
    # Warnings are errors here, so a file left open to the garbage collector would fail the run.
    log = EventLog()
    log.enable(tmp_path / "m.log")
    log.log("x")
    del log
    gc.collect()
    again = EventLog()
    again.enable(tmp_path / "m.log", rotation="3 MB")  # refused if the first were still open
    again.close()
