"""Finding backends through entry points, and choosing one for a model's name.

Listing reads metadata alone; a backend is imported when a model is loaded with it. It knows no backend's code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Any

from llmkit.errors import BackendUnavailable, InvalidRequest, UnknownBackend

if TYPE_CHECKING:
    from llmkit.backend import BackendLLM

GROUP = "llmkit.backends"
EMBEDDED_MODEL = "llmkit-tiny"
"""The name of the model that ships with llmkit."""

_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without importing it.

    Attributes:
        name: as in `load("name:model")`.
        target: module and class.
        distribution: the package that provides it, with its version.
        missing: distributions that its extra names and that are not installed.
        install: the command that installs what is missing.
    """

    name: str
    target: str
    distribution: str
    missing: tuple[str, ...]
    install: str

    @property
    def available(self) -> bool:
        """Whether everything that it needs is installed."""
        return not self.missing


def available_backends() -> dict[str, BackendInfo]:
    """Every registered backend by name, sorted; none is imported."""
    return {name: _info(point) for name, point in sorted(_points().items())}


def load(model: str | os.PathLike[str] | None = None, **params: Any) -> BackendLLM:
    """A model, ready to run.

    Args:
        model: nothing for the embedded model; a hub id, `id@revision` or a path (transformers); `file.gguf` or
            `org/repo:file.gguf` (llama.cpp); `http://host/v1#name` (an OpenAI-compatible server); or `backend:model`.
        params: parameters of `BaseLLM`, and what the backend adds.

    Raises:
        UnknownBackend: no installed backend has the name.
        BackendUnavailable: the backend's dependencies are missing.
        ModelError: the model cannot be had.
    """
    backend, name = resolve_name(os.fspath(model) if isinstance(model, os.PathLike) else model)
    return backend_class(backend)(name, **params)


def resolve_name(model: str | None) -> tuple[str, str | None]:
    """The backend that a model's name means, and the name that the backend gets."""
    if model is None:
        return _default_backend(), None
    if not isinstance(model, str) or not model.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"model must be a non-empty string, got {model!r}")
    prefix, colon, rest = model.partition(":")
    if model.startswith(("http://", "https://")):
        return "openai", model
    if colon and prefix in _points():
        return prefix, rest or None
    if model.endswith(".gguf"):
        return "llama_cpp", model
    if colon and len(prefix) > 1 and re.fullmatch(r"\w+", prefix):
        raise UnknownBackend(prefix, _points())
    return "transformers", model


def backend_class(name: str) -> type[BackendLLM]:
    """A backend's class, imported now.

    Raises:
        UnknownBackend: no such backend is registered.
        BackendUnavailable: something it imports is not installed.
    """
    points = _points()
    if name not in points:
        raise UnknownBackend(name, points)
    try:
        return points[name].load()
    except ModuleNotFoundError as error:
        info = _info(points[name])
        raise BackendUnavailable(name, ", ".join(info.missing) or str(error.name), info.install) from error


def _points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _default_backend() -> str:
    backends = available_backends()
    usable = [name for name in ("transformers", "llama_cpp") if name in backends and backends[name].available]
    return usable[0] if usable else "transformers"


def _info(point: EntryPoint) -> BackendInfo:
    distribution = point.dist
    if distribution is None:
        return BackendInfo(point.name, point.value, "unknown", (), "")
    extra = _extra_of(point.name, distribution)
    package = distribution.name + (f"[{extra}]" if extra else "")
    missing = tuple(name for name in _requirements(distribution, extra) if not _is_installed(name))
    origin = f"{distribution.name} {distribution.version}"
    return BackendInfo(point.name, point.value, origin, missing, f'pip install "{package}"')


def _extra_of(backend: str, distribution: Distribution) -> str | None:
    """The extra that carries the backend's name, `-` and `_` being the same."""
    wanted = backend.replace("_", "-").lower()
    extras: list[str] = distribution.metadata.get_all("Provides-Extra") or []
    return next((extra for extra in extras if extra.replace("_", "-").lower() == wanted), None)


def _requirements(distribution: Distribution, extra: str | None) -> list[str]:
    """Names of the distributions that the extra asks for on every platform."""
    if extra is None:
        return []
    marker = re.compile(rf"""^\s*extra\s*==\s*['"]{re.escape(extra)}['"]\s*$""")
    lines = [line.partition(";") for line in distribution.requires or []]
    found = (_REQUIREMENT_NAME.match(line) for line, _, condition in lines if marker.match(condition))
    return [match.group() for match in found if match]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
