"""The transformers backend: any causal or encoder-decoder language model of Hugging Face transformers."""

from llmkit_transformers.llm import TransformersLLM

__all__ = ["TransformersLLM"]
