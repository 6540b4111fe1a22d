"""ChatGeneration: a conversation in, its next message out."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import InvalidRequest
from llmkit.tasks.step import Row
from llmkit.tasks.task import ChatType, Task
from llmkit.types import as_messages


class ChatGeneration(Task):
    """The model's next message in a conversation.

    Reads `messages`: dictionaries with `role` and `content`, the last one not the model's. Writes `generation`.
    """

    @property
    def inputs(self) -> Sequence[str]:
        """`messages`."""
        return ["messages"]

    @property
    def outputs(self) -> Sequence[str]:
        """`generation`."""
        return ["generation", "model_name"]

    def format_input(self, input: Row) -> ChatType:
        """The messages, checked.

        Raises:
            InvalidRequest: they are no conversation, or end with the model's own message.
        """
        messages = as_messages(input["messages"])
        if not messages or messages[-1].role not in ("user", "tool"):
            raise InvalidRequest(f"the last message must be a user's or a tool's, got {input['messages']!r}")
        return [message.to_dict() for message in messages]

    def format_output(self, output: str | None, input: Row) -> Row:
        """The text as it is."""
        return {"generation": output}
