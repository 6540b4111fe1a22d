"""Tasks: steps that ask a language model about each row of a data set.

`Task` is the base for one's own; the built-in ones are a file each.
"""

from llmkit.tasks.chat_generation import ChatGeneration
from llmkit.tasks.endpoints import InferenceEndpointsLLM
from llmkit.tasks.entailment import Entailment
from llmkit.tasks.few_shot import FewShot
from llmkit.tasks.metadata import METADATA, failure
from llmkit.tasks.pairwise_judge import PairwiseJudge
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.statistics import Statistics
from llmkit.tasks.step import Columns, Row, Step
from llmkit.tasks.structured_generation import StructuredGeneration
from llmkit.tasks.summarization import Summarization
from llmkit.tasks.task import ChatType, Task
from llmkit.tasks.text_classification import TextClassification
from llmkit.tasks.text_generation import TextGeneration
from llmkit.tasks.translation import Translation

__all__ = [
    "METADATA",
    "ChatGeneration",
    "ChatType",
    "Columns",
    "Entailment",
    "FewShot",
    "InferenceEndpointsLLM",
    "PairwiseJudge",
    "QuestionAnswering",
    "Row",
    "Statistics",
    "Step",
    "StructuredGeneration",
    "Summarization",
    "Task",
    "TextClassification",
    "TextGeneration",
    "Translation",
    "failure",
]
