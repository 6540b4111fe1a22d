"""Saving and loading a model object's state: atomic, versioned, checked, and without pickle.

Owns the file format and the order of disk operations that makes a save all or nothing. It knows nothing about what the
state means, nor about the weights beyond the folder that a callback fills.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

from llmkit.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FILE_NAME = "checkpoint.json"
FORMAT = "llmkit-checkpoint"
VERSION = 1
_TOKEN_PATTERN = "[0-9a-f]" * 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back: the state as saved, and the folder of weights where one was saved."""

    state: dict[str, JSON]
    weights: Path | None


def save(
    directory: str | Path, state: Mapping[str, Any], *, write_weights: Callable[[Path], None] | None = None
) -> Path:
    """Write a checkpoint, replacing the one in the folder, and return the path of its JSON file.

    All or nothing: whenever the save fails or the process is killed, the checkpoint before is whole. Weights belong to
    their checkpoint, so a save without weights supersedes saved ones. Savers of one folder take turns, across threads
    and processes (where the file system has locks); a reader of superseded weights may see them vanish.

    Args:
        directory: Created where missing.
        state: JSON values under string keys. Tuples become lists, any mapping an object.
        write_weights: Called with an empty folder to fill.

    Raises:
        CheckpointError: The state is not JSON, or holds a number that is not finite; nothing was written.
        OSError: The disk failed or is full. What `write_weights` raises passes through, too.
    """
    token = secrets.token_hex(8)
    document = _document(_plain_state(state), f"weights-{token}" if write_weights else None)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _one_saver(directory):
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(_remove_unreferenced, directory, token)
            if write_weights:
                _write_weights(directory, token, write_weights)
            staged = _stage_document(directory, token, document)
            os.replace(staged, directory / FILE_NAME)  # the commit point
            _sync_folder(directory)
            on_failure.pop_all()
        # Only now: until the rename is on disk, a crash may bring the old document back, and it needs its weights.
        _remove_unreferenced(directory, _TOKEN_PATTERN)
    return directory / FILE_NAME


def load(path: str | Path) -> Checkpoint:
    """Read the checkpoint in this folder, or in this JSON file. Nothing is executed or unpickled.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged, foreign, or of a newer version; the message says
            which.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    document = _parse(file, _read(file))
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} is no llmkit checkpoint: format must be {FORMAT!r}, got {document.get('format')!r}"
        )
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{file} is damaged: version must be an integer >= 1, got {version!r}")
    if version > VERSION:
        raise CheckpointError(f"{file} was saved by a newer llmkit: its version is {version}, this one reads {VERSION}")
    state = document.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is damaged: state must be an object, got {type(state).__name__}")
    if document.get("sha256") != _checksum(state):
        raise CheckpointError(f"{file} is damaged: its state does not have the recorded sha256")
    return Checkpoint(state, _weights_folder(file, document.get("weights")))


def _document(state: JSON, weights_name: str | None) -> str:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "state": state,
        "weights": weights_name,
        "sha256": _checksum(state),
    }
    return json.dumps(document, indent=1) + "\n"


def _checksum(state: JSON) -> str:
    # Sorted keys, no spaces, ASCII: one spelling for equal states, whatever formatted the file.
    canonical = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _plain_state(state: object) -> JSON:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the state of a checkpoint must be a mapping, got {type(state).__name__}")
    try:
        return _plain(cast("Mapping[object, object]", state), "state")
    except RecursionError as error:
        raise CheckpointError("the state of a checkpoint must not contain itself, nor nest hundreds deep") from error


def _plain(value: object, where: str) -> JSON:
    """The value in JSON's own types. json.dumps would turn keys into strings and let NaN pass: both alter the state."""
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"a checkpoint holds finite numbers only, got {value!r} at {where}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = cast("list[object] | tuple[object, ...]", value)
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    if isinstance(value, Mapping):
        return _plain_object(cast("Mapping[object, object]", value), where)
    raise CheckpointError(f"a checkpoint holds JSON values only, got {type(value).__name__} at {where}")


def _plain_object(mapping: Mapping[object, object], where: str) -> dict[str, JSON]:
    result: dict[str, JSON] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            raise CheckpointError(f"keys of a checkpoint must be strings, got {key!r} at {where}")
        result[key] = _plain(item, f"{where}.{key}")
    return result


@contextlib.contextmanager
def _one_saver(directory: Path) -> Generator[None]:
    """Hold the folder's lock: whatever unfinished files lie in it are then those of savers that died."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems have no locks for folders; a single saver is safe there all the same.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_weights(directory: Path, token: str, write_weights: Callable[[Path], None]) -> None:
    staged = directory / f".weights-{token}.tmp"
    staged.mkdir()
    write_weights(staged)
    for folder, _, names in os.walk(staged):
        for name in names:
            _sync_file(Path(folder, name))
        _sync_folder(Path(folder))
    staged.rename(directory / f"weights-{token}")


def _stage_document(directory: Path, token: str, text: str) -> Path:
    staged = directory / f".checkpoint-{token}.tmp"
    with staged.open("w", encoding="ascii", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    # Also makes the rename of the weights durable before the document that names them.
    _sync_folder(directory)
    return staged


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there, and need no sync
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_unreferenced(directory: Path, token_pattern: str) -> None:
    """Remove, as far as possible, the savers' files with such a token that the committed checkpoint does not name."""
    kept: str | None = None
    with contextlib.suppress(CheckpointError):
        weights = load(directory).weights
        kept = weights.name if weights else None
    for pattern in (f".checkpoint-{token_pattern}.tmp", f".weights-{token_pattern}.tmp", f"weights-{token_pattern}"):
        for path in directory.glob(pattern):
            if path.name == kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {file}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is damaged or no llmkit checkpoint: byte {error.start} is no UTF-8") from error


def _parse(file: Path, text: str) -> dict[str, JSON]:
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{file} is damaged or cut short: {error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is no llmkit checkpoint: it must hold an object, got {type(document).__name__}")
    return cast("dict[str, JSON]", document)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {name}")


def _weights_folder(file: Path, name: JSON) -> Path | None:
    if name is None:
        return None
    # A strict name keeps an edited file from pointing outside of its folder.
    if not isinstance(name, str) or not re.fullmatch(f"weights-{_TOKEN_PATTERN}", name):
        raise CheckpointError(f"{file} is damaged: weights must be null or 'weights-<16 hex digits>', got {name!r}")
    folder = file.parent / name
    if not folder.is_dir():
        raise CheckpointError(f"the weights of {file} are missing: there is no folder {folder}")
    return folder
