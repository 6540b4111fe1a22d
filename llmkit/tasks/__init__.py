"""Tasks: steps that ask a language model about each row of a data set.

`Task` is the base for one's own; the built-in ones are a file each.
"""

from llmkit.tasks.metadata import METADATA, failure
from llmkit.tasks.step import Columns, Row, Step
from llmkit.tasks.task import ChatType, Statistics, Task
from llmkit.tasks.text_generation import TextGeneration

__all__ = [
    "METADATA",
    "ChatType",
    "Columns",
    "Row",
    "Statistics",
    "Step",
    "Task",
    "TextGeneration",
    "failure",
]
