"""Callables around one model: texts in, the new text of each out, always as a list.

They tell of prompts that are completed as they stand, greedily; for sampling, chats and everything else there is the
model itself.
"""

from llmkit.text_pipelines.config import PipelineConfig
from llmkit.text_pipelines.entailment import LABELS, EntailmentPipeline, entailment_prompt, extract_label
from llmkit.text_pipelines.generation import TextGenerationPipeline

__all__ = [
    "LABELS",
    "EntailmentPipeline",
    "PipelineConfig",
    "TextGenerationPipeline",
    "entailment_prompt",
    "extract_label",
]
