"""From a model's name to GGUF files on this machine, through the hub where it has to be.

It knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

from llmkit.errors import ModelInvalid
from llmkit.hub import from_hub
from llmkit.registry import EMBEDDED_MODEL

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model is.

    Attributes:
        name: as it was asked for.
        parts: its files; the first is the one to load, llama.cpp finds the others beside it.
    """

    name: str
    parts: tuple[Path, ...]


def find_model(name: str | None, *, local_files_only: bool = False) -> ModelFiles:
    """The files of the embedded model (no name), of a path, or of `org/repo:file.gguf` (also `org/repo@revision:...`).

    A path, or a copy in the hub's cache, is used without opening a socket.

    Raises:
        ModelInvalid: no such file, repository or revision.
        ModelNotDownloaded: not in the cache, and downloading is off.
        ModelDownloadError: the hub could not be reached.
    """
    if name is None or name == EMBEDDED_MODEL:
        return ModelFiles(EMBEDDED_MODEL, (Path(str(files("llmkit") / "tiny" / "model.gguf")),))
    path = Path(name).expanduser()
    if path.is_dir():
        raise ModelInvalid(f"a model is a GGUF file, {name!r} is a folder; name the file in it")
    repository, colon, file = name.partition(":")
    if path.is_file() or not colon or repository.count("/") != 1 or repository.startswith((".", "~", os.sep)):
        return ModelFiles(name, tuple(_present(path.with_name(part)) for part in _parts(path.name)))
    repository, _, revision = repository.partition("@")
    fetches = (partial(hf_hub_download, repository, part, revision=revision or None) for part in _parts(file))
    return ModelFiles(name, tuple(from_hub(name, fetch, local_files_only=local_files_only) for fetch in fetches))


def _parts(file: str) -> list[str]:
    """All files of a model whose name says that it is one of several, the first one first."""
    match = _PART.fullmatch(file)
    if match is None:
        return [file]
    stem, _, total = match.groups()
    return [f"{stem}-{part:05d}-of-{total}.gguf" for part in range(1, int(total) + 1)]


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ModelInvalid(f"there is no GGUF file at {str(path)!r}")
    return path
