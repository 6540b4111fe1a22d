"""The event log of one model object: a file of its own, written through loguru.

Owns opening, sharing, rotating and closing log files. It does not know what the events mean, and never touches the
sinks, levels or filters that the application gave to loguru or to the standard logging module.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from loguru import Logger

_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} | {extra[level]: <8} | {message}{extra[fields]}"


class EventLog:
    """Writes the events of one owner to the file it was enabled with. Thread-safe.

    Every event also goes to loguru's global logger under the name "llmkit.events", where the application sees it after
    `loguru.logger.enable("llmkit")`. Several logs may write to one file; logs with different files never mix.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._file: _LogFile | None = None

    @property
    def enabled(self) -> bool:
        """Whether events are written to a file."""
        return self._file is not None

    @property
    def log_file(self) -> Path | None:
        """The absolute path written to; None while disabled."""
        file = self._file
        return None if file is None else file.path

    def enable(
        self,
        log_file: str | Path = "model.log",
        *,
        rotation: str | int | None = "10 MB",
        retention: str | int | None = 5,
    ) -> None:
        """Write events to this file from now on, appending; a file enabled before is closed.

        Args:
            log_file: Taken literally; missing folders are created.
            rotation: When to begin a new file, in loguru's terms (bytes, "10 MB", "1 day"); None never does.
            retention: How many rotated files to keep, or for how long ("10 days"); None keeps all.

        Raises:
            OSError: The path is a folder, or cannot be written. The log stays as it was.
            ValueError: The rotation or retention is not one, or differs from that of a log that has the file open.
        """
        file = _open_shared(Path(log_file).expanduser().resolve(), rotation, retention)
        with self._lock:
            self._file = file

    def disable(self) -> None:
        """Stop writing to the file and close it, unless another log still writes to it. Safe twice."""
        with self._lock:
            self._file = None

    close = disable

    def log(self, message: str, /, level: str = "INFO", **fields: object) -> None:
        """Record one event.

        Args:
            message: Written verbatim, whatever braces, markup or line breaks it contains.
            level: A level name that loguru knows, also one that the application registered.
            fields: Facts to keep with the event; written to the file as ` | key=value`.

        Raises:
            ValueError: There is no such level.
        """
        severity = logger.level(level)
        # loguru formats a message only when it gets arguments for it, so text that looks like a template is safe, and
        # the fields travel by bind, never as arguments.
        logger.bind(**fields).log(level, message)
        with self._lock:
            if self._file is not None:
                rendered = "".join(f" | {name}={value!r}" for name, value in fields.items())
                # By number: the file's own logger does not know the application's custom level names.
                self._file.logger.bind(level=severity.name, fields=rendered).log(severity.no, message)


class _LogFile:
    """One open file. It is closed when the last `EventLog` that holds it lets go, or at interpreter exit."""

    def __init__(self, path: Path, rotation: str | int | None, retention: str | int | None) -> None:
        self.path = path
        self.settings = (rotation, retention)
        self.logger = _independent_logger()
        self.logger.add(
            # loguru fills in {time} in file names; doubling the braces takes the name literally.
            str(path).replace("{", "{{").replace("}", "}}"),
            format=_FORMAT,
            level=0,
            rotation=rotation,
            retention=retention,
            colorize=False,
            encoding="utf-8",
            # Generated text may hold lone surrogates; a log line must not be lost to them.
            errors="backslashreplace",
        )
        weakref.finalize(self, self.logger.remove)


# Two handles on one file would rotate it under each other's feet, so logs of the same file share one.
_open_files: weakref.WeakValueDictionary[Path, _LogFile] = weakref.WeakValueDictionary()
_open_files_lock = threading.Lock()


def _open_shared(path: Path, rotation: str | int | None, retention: str | int | None) -> _LogFile:
    with _open_files_lock:
        file = _open_files.get(path)
        if file is not None and file.settings != (rotation, retention):
            raise ValueError(
                f"logs of one file must agree on (rotation, retention): {path} is open with {file.settings!r}, "
                f"got {(rotation, retention)!r}"
            )
        if file is None:
            file = _open_files[path] = _open(path, rotation, retention)
        return file


def _open(path: Path, rotation: str | int | None, retention: str | int | None) -> _LogFile:
    if path.is_dir():
        raise IsADirectoryError(f"log_file must be a file, got the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _LogFile(path, rotation, retention)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the log file ({error.strerror})", str(path)) from error


def _independent_logger() -> Logger:
    """A logger whose sinks are its own.

    All public loguru loggers share one set of sinks, so a line logged there for our file would reach the application's
    terminal too, and `logger.disable("llmkit")` would silence our file. loguru documents `copy.deepcopy(logger)` for
    separate sinks, but only after `logger.remove()`: it copies the application's sinks and fails on a terminal. So this
    builds the logger just as loguru builds its global one.
    """
    internals: Any = importlib.import_module("loguru._logger")
    return internals.Logger(
        core=internals.Core(),
        exception=None,
        depth=0,
        record=False,
        lazy=False,
        colors=False,
        raw=False,
        capture=True,
        patchers=[],
        extra={},
    )
