"""The model without weights keeps the contract of those that have some."""

from __future__ import annotations

from typing import Any

from llmkit.testing import BackendContract, ScriptedLLM
from llmkit.testing.contract import UNICODE

ANSWERS: dict[str, str | list[str]] = {
    **{prompt: list(prompt[:5]) for prompt in UNICODE},
    "Is snow white? Answer in JSON.": '{"yes": true}',
    "Spell aab.": "aab",
    "Red or green?": "green",
    "Yes or no?": "yes",
    "Hi.": "Hello, what can I do for you?",
    "Hello! How can I help you?": "I have lost my key.",
}


class TestScripted(BackendContract):
    @classmethod
    def load(cls, **params: Any) -> ScriptedLLM:
        sentences = {
            prompt: [f"{prompt} one two three {n} five six seven eight nine" for n in ("four", "4", "IV")]
            for prompt in cls.prompts
        }
        return ScriptedLLM({**ANSWERS, **sentences}, context_length=4096, **params)
