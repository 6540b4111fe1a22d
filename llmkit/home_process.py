"""The process in which a thread was started: a fork copies what the thread knows, but not the thread.

It does not know what the thread does.
"""

from __future__ import annotations

import os

from llmkit.errors import GenerationError


class HomeProcess:
    """Tells calls in the process that made it from those in a forked one, where they would wait for ever.

    Args:
        name: the model's, for the message.
    """

    def __init__(self, name: str | None) -> None:
        self._name, self._pid = name, os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is the process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Refuse a call from another process, before it touches a lock that may have been copied locked.

        Raises:
            GenerationError: this is another process.
        """
        if not self.is_here:
            raise GenerationError(
                f"the model {self._name!r} was loaded in process {self._pid}, and this is process {os.getpid()}, which "
                "was forked without its threads; load the model in this one"
            )
