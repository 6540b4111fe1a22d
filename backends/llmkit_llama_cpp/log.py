"""llama.cpp's own log: silent unless asked for, and read where it says why something failed.

The log is global to the process, so whoever reads it takes turns.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import llama_cpp

_native: Any = llama_cpp
SILENT = logging.CRITICAL + 10
_WARNING, _ERROR = 3, 4  # ggml_log_level; a line that goes on with the one before has another
_reading = threading.Lock()
_logger = logging.getLogger("llama-cpp-python")
# llama-cpp-python prints every line at or above its logger's level to stderr, and a new logger has level 0.
if _logger.level == logging.NOTSET:
    _logger.setLevel(SILENT)


@contextmanager
def read_problems() -> Generator[list[str]]:
    """The lines of warnings and errors that llama.cpp logs meanwhile; then the log is as it was."""
    lines: list[str] = []

    def collect(level: int, text: bytes, _: Any) -> None:
        if level in (_WARNING, _ERROR) and (line := text.decode(errors="replace").strip()):
            lines.append(line)

    with _reading:
        before, its_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
        _native.llama_log_get(ctypes.byref(before), ctypes.byref(its_data))
        collecting = llama_cpp.llama_log_callback(collect)
        _native.llama_log_set(collecting, None)
        try:
            yield lines
        finally:
            _native.llama_log_set(before, its_data)
