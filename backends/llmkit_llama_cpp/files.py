"""From a model's name to GGUF files on this machine; the only place that may open a socket.

It maps the hub's errors and knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llmkit.errors import ModelDownloadError, ModelInvalid, ModelNotDownloaded
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
    found = (_from_hub(repository, part, revision or None, local_files_only) for part in _parts(file))
    return ModelFiles(name, tuple(found))


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


def _from_hub(repository: str, file: str, revision: str | None, local_files_only: bool) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelInvalid(f"{repository!r} is neither a path nor a hub id: {error}") from error
    if local_files_only:
        raise ModelNotDownloaded(f"{repository}:{file} is not on this machine, and local_files_only is set")
    return _download(repository, file, revision)


def _download(repository: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
            raise ModelNotDownloaded(f"{repository}:{file} is not on this machine, and the hub is offline") from error
        raise ModelDownloadError(
            f"{repository}:{file} is not on this machine, and the hub cannot be reached"
        ) from error
    except GatedRepoError as error:
        raise ModelDownloadError(f"model {repository!r} is gated: accept its terms and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelInvalid(f"the hub has no model {repository!r} at revision {revision or 'main'!r}") from error
    except EntryNotFoundError as error:
        raise ModelInvalid(f"the hub's model {repository!r} has no file {file!r}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelDownloadError(f"{repository}:{file} could not be downloaded: {error}") from error
