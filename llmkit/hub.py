"""Files of the Hugging Face hub, for the backends that take them: the copy on this machine first, a download second.

It tells what went wrong in llmkit's errors, and knows nothing of what the files hold.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

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


class Fetch(Protocol):
    """`hf_hub_download` or `snapshot_download`, bound to a repository, a revision and what is wanted of them."""

    def __call__(self, *, local_files_only: bool) -> str:
        """The path of a file or of a folder."""
        ...


def from_hub(
    name: str, fetch: Fetch, *, local_files_only: bool, is_complete: Callable[[Path], bool] = Path.exists
) -> Path:
    """Where the wanted files are; opens no socket if they are on this machine.

    Args:
        name: what the user asked for, for messages.
        fetch: finds or downloads it.
        local_files_only: never download.
        is_complete: whether what is here is all of it; an interrupted download leaves a part.

    Raises:
        ModelInvalid: no such repository, revision or file.
        ModelNotDownloaded: not on this machine, and downloading is off.
        ModelDownloadError: gated, or the hub could not be reached.
    """
    found = _cached(name, fetch)
    if found is not None and is_complete(found):
        return found
    if local_files_only:
        raise ModelNotDownloaded(f"model {name!r} is not on this machine, and local_files_only is set")
    with _errors_about(name):
        return Path(fetch(local_files_only=False))


def _cached(name: str, fetch: Fetch) -> Path | None:
    """What the cache has of it, whole or not."""
    with _errors_about(name):
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            return None


@contextmanager
def _errors_about(name: str) -> Generator[None]:
    """Turn the hub's errors into llmkit's."""
    try:
        yield
    except HFValidationError as error:
        raise ModelInvalid(f"{name!r} is neither a path nor a hub id: {error}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
            raise ModelNotDownloaded(f"model {name!r} is not on this machine, and the hub is offline") from error
        raise ModelDownloadError(f"model {name!r} could not be downloaded: {error.__cause__ or error}") from error
    except GatedRepoError as error:
        raise ModelDownloadError(f"model {name!r} is gated: accept its terms and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelInvalid(f"the hub has no model {name!r}, or not for this user: no such repository") from error
    except RevisionNotFoundError as error:
        raise ModelInvalid(f"the hub has no model {name!r}: no such revision") from error
    except EntryNotFoundError as error:
        raise ModelInvalid(f"the hub has no model {name!r}: no such file") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelDownloadError(f"model {name!r} could not be downloaded: {error}") from error
