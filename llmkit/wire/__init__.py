"""The GPT task as it travels: the shapes of its request, its response and its stream, checked where bytes come in.

Requests are in `request.py`, responses in `response.py`; how a task is run is not known here.
"""

from llmkit.wire.request import GenerationConfig, GPTTask, TaskMessage, TextBlock
from llmkit.wire.response import (
    GPTTaskResponse,
    GPTTaskStreamChunk,
    ResponseChoice,
    ResponseMessage,
    StreamChoice,
    TaskFinishReason,
    TaskUsage,
)

__all__ = [
    "GPTTask",
    "GPTTaskResponse",
    "GPTTaskStreamChunk",
    "GenerationConfig",
    "ResponseChoice",
    "ResponseMessage",
    "StreamChoice",
    "TaskFinishReason",
    "TaskMessage",
    "TaskUsage",
    "TextBlock",
]
