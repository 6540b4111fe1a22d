"""The openai backend: any server that speaks OpenAI's HTTP API."""

from llmkit_openai.llm import OpenAILLM

__all__ = ["OpenAILLM"]
