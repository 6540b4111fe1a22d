"""The rounds of a chat with tools: the model calls, the calls are answered, and it goes on, a bounded number of times.

It keeps the messages and decides when it is over; it neither asks the model nor runs a tool by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import InvalidRequest, ToolRoundsExceeded
from llmkit.tools.definitions import Tool
from llmkit.types import Completion, Message, ToolCall

MAX_TOOL_ROUNDS = 8
"""How often a model may call tools in one turn, unless the caller says."""


class ToolRounds:
    """One turn of a chat while its tools are called.

    Args:
        messages: the conversation up to the turn to answer.
        tools: what the model may call; each must have a function.
        max_rounds: how often the model may call tools, several at once being one round.

    Attributes:
        added: the messages since: calls, results, and at last the answer.

    Raises:
        InvalidRequest: a tool has no function, or `max_rounds` is no positive integer.
    """

    def __init__(self, messages: Sequence[Message], tools: Sequence[Tool], max_rounds: int) -> None:
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"max_tool_rounds must be an integer >= 1, got {max_rounds!r}")
        bare = next((tool.name for tool in tools if tool.function is None), None)
        if bare is not None:
            raise InvalidRequest(
                f"chat runs the tools, and {bare!r} is a schema without a function; use complete and its tool_calls"
            )
        self._messages, self._max_rounds = tuple(messages), max_rounds
        self._tools = {tool.name: tool for tool in tools}
        self._n_rounds = 0
        self.added: tuple[Message, ...] = ()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What the model is to answer now."""
        return (*self._messages, *self.added)

    def take(self, completion: Completion) -> tuple[ToolCall, ...]:
        """Add what the model said; the calls that it wants answered, none once it is over.

        Raises:
            ToolRoundsExceeded: it calls again after its last round.
        """
        self.added = (*self.added, completion.message)
        if completion.tool_calls:
            if self._n_rounds == self._max_rounds:
                raise ToolRoundsExceeded(self._max_rounds)
            self._n_rounds += 1
        return completion.tool_calls

    def add_result(self, call: ToolCall, result: str) -> None:
        """Add what a call gave."""
        self.added = (*self.added, Message("tool", result, tool_call_id=call.id))

    def run(self, call: ToolCall) -> str:
        """What the model is told in answer to a call: the tool's result, or why the call cannot be carried out."""
        return f"error: {call.error}" if call.error else self._tools[call.name].run(call.arguments)

    async def arun(self, call: ToolCall) -> str:
        """`run` without blocking the event loop."""
        return f"error: {call.error}" if call.error else await self._tools[call.name].arun(call.arguments)

    def refuse_async(self) -> None:
        """Refuse tools that a caller without an event loop cannot run.

        Raises:
            InvalidRequest: a tool is async.
        """
        name = next((tool.name for tool in self._tools.values() if tool.is_async), None)
        if name is not None:
            raise InvalidRequest(f"the tool {name!r} is async; use achat")
