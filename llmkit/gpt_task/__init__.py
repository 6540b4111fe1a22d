"""GPT tasks: a text generation as one JSON document, run from start to end.

The shapes are in `llmkit.wire`, executing one on a loaded model is `BackendLLM.execute`; here are loading, caching and
the schema.
"""

from llmkit.gpt_task.cache import ModelCache
from llmkit.gpt_task.run import default_cache, run_task
from llmkit.gpt_task.schema import json_schema
from llmkit.wire import GPTTask, GPTTaskResponse, GPTTaskStreamChunk

__all__ = [
    "GPTTask",
    "GPTTaskResponse",
    "GPTTaskStreamChunk",
    "ModelCache",
    "default_cache",
    "json_schema",
    "run_task",
]
