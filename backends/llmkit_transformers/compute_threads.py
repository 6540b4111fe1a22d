"""The threads that torch computes with, beside the one that asks for it: how many they are, and when they may go.

OpenMP keeps a pool for each thread that ever computed in parallel. Once the pools of a process have more threads than
there are cores, libgomp lets all of them sleep at once when they wait, instead of a few milliseconds later, and each
parallel loop begins by waking them: steps of small models took twice as long (`docs/lab-log.md`). So whoever computes
here gives its pool back when it has nothing to do; the next parallel loop starts another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft: the pool goes, settings stay


def give_back() -> None:
    """End the pool of the calling thread, if it has one and torch's OpenMP can (5.0 and later)."""
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all` of the very library that torch was linked with; a process may hold several."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            return ctypes.CDLL(str(path)).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
    return None


@contextmanager
def threads(n_threads: int) -> Generator[None]:
    """Let torch compute with so many threads here."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """With how many threads a promise about bits is tried: as many as torch has here, and one."""
    return sorted({1, torch.get_num_threads()}, reverse=True)
