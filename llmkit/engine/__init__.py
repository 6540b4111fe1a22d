"""Continuous batching as pure bookkeeping over token ids: what to compute next, and what to keep.

Tensors, tokenizers and models are unknown here; they are behind `runner.ModelRunner` and `sequence.Output`.
"""
