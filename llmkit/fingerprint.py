"""The name of everything that equal bits depend on.

A backend lists its own parts (weights, dtype, tokenizer, route ...); this module adds the machine's and hashes all of
them. It promises nothing across two fingerprints.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NUMERICS_VERSION = 5
"""Raised whenever llmkit computes anything differently that may change a generated bit."""


def fingerprint(parts: Mapping[str, object]) -> str:
    """A short hash of the parts, of the processor and of llmkit's numerics version.

    Args:
        parts: values that JSON can hold; the order of the keys does not matter.
    """
    everything = {**parts, "cpu": cpu_model(), "numerics": NUMERICS_VERSION}
    canonical = json.dumps(everything, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@cache
def cpu_model() -> str:
    """The processor's name and instruction set, since kernels are chosen by both."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.machine()}"
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in found.items()}
    return f"{facts.get('model name', platform.machine())} {facts.get('flags', facts.get('Features', ''))}"


def library_versions(*names: str) -> dict[str, str | None]:
    """The versions of installed distributions; None for those that are not there."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
