"""InferenceEndpointsLLM: a model behind Hugging Face's inference API, by the arguments that distilabel gives it.

It is a name for `llmkit.load` and no class of its own: scripts written for distilabel change their imports alone.
"""

from __future__ import annotations

import os
from typing import Any

from llmkit.backend import BackendLLM
from llmkit.errors import ParameterError
from llmkit.registry import load

BASE_URL = "https://router.huggingface.co/v1"


def InferenceEndpointsLLM(  # the capital is distilabel's
    model_id: str,
    tokenizer_id: str | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    **params: Any,
) -> BackendLLM:
    """A model on Hugging Face's inference API, or on another endpoint that speaks OpenAI's.

    Args:
        model_id: the model's hub id.
        tokenizer_id: the same again; the endpoint applies the model's own chat template, and can apply no other.
        base_url: of the endpoint; by default Hugging Face's router.
        api_key: by default what the environment has as `HF_TOKEN`.
        params: further parameters of the model.

    Raises:
        ParameterError: another tokenizer is asked for.
    """
    if tokenizer_id not in (None, model_id):
        raise ParameterError(f"tokenizer_id must be the model's own, {model_id!r}, got {tokenizer_id!r}")
    return load(
        f"openai:{model_id}", base_url=base_url or BASE_URL, api_key=api_key or os.environ.get("HF_TOKEN"), **params
    )
