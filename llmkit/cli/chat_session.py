"""A conversation at a prompt: its turns, and what Ctrl-C does to them, between any two streams of text.

It owns the history and knows neither terminals nor how a model is loaded; slash commands are in `chat_commands`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from llmkit.cli.chat_commands import run_command
from llmkit.errors import LLMKitError
from llmkit.types import Message, Role

if TYPE_CHECKING:
    from llmkit.base import BaseLLM


class ChatSession:
    """A conversation with a model.

    Args:
        llm: who answers; its own history is not used.
        read: returns the next line, raises EOFError at the end and KeyboardInterrupt at Ctrl-C.
        write: takes the pieces of an answer and the end of its line.
        say: takes a line for the person.
        system: the system prompt.

    Attributes:
        history: the messages so far, without the system prompt; both sides of a turn are added once it is complete.
        system: the system prompt, None without one.
        say: as it was given.
        n_failed: turns that ended with an error.
    """

    def __init__(
        self,
        llm: BaseLLM,
        read: Callable[[], str],
        write: Callable[[str], None],
        say: Callable[[str], None],
        system: str | None = None,
    ) -> None:
        self._llm, self._read, self._write = llm, read, write
        self.say, self.system = say, system
        self.history: list[Message] = []
        self.n_failed = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation as the model reads it."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.history]

    def converse(self) -> None:
        """Answer lines until there are no more, or the person leaves."""
        while True:
            try:
                line = self._read()
            except (EOFError, KeyboardInterrupt):
                return
            if line.split()[:1] == ["/exit"]:
                return
            if line.startswith("/") and not line.startswith("//"):
                run_command(self, line)
            elif line.strip():
                self._turn(line.removeprefix("/") if line.startswith("//") else line)

    def _turn(self, text: str) -> None:
        speaker, answerer = ("assistant", "user") if self._llm.role == "user" else ("user", "assistant")
        turn = Message(cast("Role", speaker), text)
        try:
            answer = self._answer([*self.messages, turn])
        except KeyboardInterrupt:
            self.say("(dropped)")
        except LLMKitError as error:
            self.n_failed += 1
            self.say(f"error: {error}")
        else:
            self.history += [turn, Message(cast("Role", answerer), answer)]

    def _answer(self, messages: list[Message]) -> str:
        """Write the answer as it comes, and return it."""
        pieces: list[str] = []
        try:
            # Closed at once when it is left early, so that the model stops before the next turn begins.
            with closing(cast("Any", self._llm.stream(messages))) as stream:
                for piece in stream:
                    pieces.append(piece)
                    self._write(piece)
        finally:
            self._write("\n")
        return "".join(pieces)
