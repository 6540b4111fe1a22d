"""The llama.cpp backend: GGUF models through llama-cpp-python's low-level functions."""

from llmkit_llama_cpp.llm import LlamaCppLLM

__all__ = ["LlamaCppLLM"]
