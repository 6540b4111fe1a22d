"""Loaded models that are kept for the next task: a bounded cache that counts who is using what.

It knows neither tasks nor loading; a key and a function that loads are all it gets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmkit.backend import BackendLLM
from llmkit.errors import ParameterError


@dataclass(slots=True, eq=False)
class _Entry:
    """A model, how many are using it, and the lock under which it is loaded once."""

    model: BackendLLM | None = None
    n_users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)

    def loaded(self, factory: Callable[[], BackendLLM]) -> BackendLLM:
        with self.loading:
            if self.model is None:
                self.model = factory()
            return self.model


class ModelCache:
    """Keeps the models that were used last, and closes the others.

    A model is never closed while it is in use, so there are more than `max_models` for as long as more than that are
    used at once. Safe to use from many threads.

    Args:
        max_models: how many to keep.

    Raises:
        ParameterError: `max_models` is less than 1.
    """

    def __init__(self, max_models: int = 1) -> None:
        if max_models < 1:
            raise ParameterError(f"max_models must be an integer >= 1, got {max_models!r}")
        self.max_models = max_models
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def load(self, key: Hashable, factory: Callable[[], BackendLLM]) -> Generator[BackendLLM]:
        """The model for a key, for as long as the `with` block lasts.

        Calls for one key at the same time load it once; room is made before loading. An error of the factory is
        raised to the caller, and the next call tries again.

        Args:
            key: what distinguishes the model from others.
            factory: loads it.
        """
        entry = self._taken(key)
        try:
            yield entry.loaded(factory)
        finally:
            self._given_back(key, entry)

    def clear(self) -> None:
        """Forget all models; those that nobody uses are closed now, the others when they are given back."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
            idle = [entry for entry in entries if not entry.n_users]
        _close(idle)

    def _taken(self, key: Hashable) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.n_users += 1
            superfluous = self._superfluous()
        _close(superfluous)
        return entry

    def _given_back(self, key: Hashable, entry: _Entry) -> None:
        with self._lock:
            entry.n_users -= 1
            forgotten = self._entries.get(key) is not entry
            if not forgotten and entry.model is None and not entry.n_users:
                del self._entries[key]
            superfluous = self._superfluous()
            if forgotten and not entry.n_users:
                superfluous.append(entry)
        _close(superfluous)

    def _superfluous(self) -> list[_Entry]:
        """Takes out the idle entries beyond the bound, least recently used first."""
        n_over = max(0, len(self._entries) - self.max_models)
        keys = [key for key, entry in self._entries.items() if not entry.n_users][:n_over]
        return [self._entries.pop(key) for key in keys]


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.model is not None:
            entry.model.close()
