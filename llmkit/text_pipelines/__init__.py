"""Callables around one model: texts in, the new text of each out, always as a list.

They tell of prompts that are completed as they stand, greedily; for sampling, chats and everything else there is the
model itself. The `GPTJ` names are other names of the same, for notebooks that were written with them.
"""

from llmkit.text_pipelines.config import PipelineConfig
from llmkit.text_pipelines.entailment import (
    LABELS,
    EntailmentPipeline,
    GPTJEntailmentPipeline,
    entailment_prompt,
    extract_label,
)
from llmkit.text_pipelines.generation import GPTJPipeline, TextGenerationPipeline

__all__ = [
    "LABELS",
    "EntailmentPipeline",
    "GPTJEntailmentPipeline",
    "GPTJPipeline",
    "PipelineConfig",
    "TextGenerationPipeline",
    "entailment_prompt",
    "extract_label",
]
