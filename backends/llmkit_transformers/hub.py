"""From a model's name to a local folder, through the hub where it has to be.

It knows nothing of what the files hold, beyond that weights are safetensors.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

from llmkit.errors import ModelInvalid
from llmkit.hub import from_hub
from llmkit.registry import EMBEDDED_MODEL

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_UNWANTED = ["original/*", "onnx/*", "consolidated*", "*/*.safetensors"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are.

    Attributes:
        folder: holds config, tokenizer and weights.
        name: the name without the revision.
        revision: the revision that was asked for, if any.
    """

    folder: Path
    name: str
    revision: str | None = None


def find_model(name: str | None, *, local_files_only: bool = False) -> ModelFiles:
    """The files of the embedded model (no name), of a folder, or of a hub repository (`id` or `id@revision`).

    A folder or a complete copy in the hub's cache is used without opening a socket.

    Raises:
        ModelInvalid: no such folder or repository, or no safetensors in it.
        ModelNotDownloaded: not in the cache, and downloading is off.
        ModelDownloadError: the hub could not be reached.
    """
    if name is None or name == EMBEDDED_MODEL:
        return _checked(ModelFiles(Path(str(files("llmkit") / "tiny")), EMBEDDED_MODEL))
    if name.startswith(f"{EMBEDDED_MODEL}@"):
        raise ModelInvalid(f"the embedded model has no revisions, got {name!r}")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(ModelFiles(path, name))
    if path.is_file():
        raise ModelInvalid(f"a model is a folder or a hub id, {name!r} is a file")
    if path.is_absolute() or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelInvalid(f"there is no model folder at {name!r}")
    repository, _, revision = name.partition("@")
    fetch = partial(
        snapshot_download,
        repository,
        revision=revision or None,
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
    )
    folder = from_hub(name, fetch, local_files_only=local_files_only, is_complete=_is_complete)
    return _checked(ModelFiles(folder, repository, revision or None))


def _is_complete(folder: Path) -> bool:
    """Whether config and all weight files are there; an interrupted download leaves a part of them."""
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return all((folder / file).exists() for file in set(weight_map.values()))
    return any(folder.glob("*.safetensors"))


def _checked(found: ModelFiles) -> ModelFiles:
    """The files, if they can be a model.

    Raises:
        ModelInvalid: config or safetensors are missing.
    """
    if not (found.folder / "config.json").is_file():
        raise ModelInvalid(f"{found.name!r} is not a model: {found.folder} has no config.json")
    if not any(found.folder.glob("*.safetensors")):
        raise ModelInvalid(f"{found.name!r} has no safetensors weights in {found.folder}; other formats are not loaded")
    return found
