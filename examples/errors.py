"""Mistakes, and what llmkit says about them before it generates anything."""

import llmkit
from llmkit.errors import ContextLengthExceeded, LLMKitError

MISTAKES = (
    {"top_p": 1.7},
    {"max_token": 5},
    {"num_beams": 2, "beam_width": 3},
    {"num_beams": 2, "n": 3},
)

with llmkit.load() as llm:
    for mistake in MISTAKES:
        try:
            llm.run("Hello!", **mistake)
        except LLMKitError as error:
            print(f"{type(error).__name__}: {error}")
    try:
        llm.run("word " * 2000)
    except ContextLengthExceeded as error:
        print("too long:", error.prompt_tokens > error.limit)
