"""Structured output: an object instead of a text, a choice instead of an essay, and an error instead of half a JSON."""

from pydantic import BaseModel, Field

import llmkit


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=40_000_000)
    coastal: bool


with llmkit.load() as llm:
    # The demo model has never seen JSON: the values mean nothing, the form is certain.
    print(type(llm.complete("Tell me about Lisbon.", schema=City).parsed).__name__)
    pair = "mnli hypothesis: The man is sleeping. premise: The man is playing in the park. target: "
    print(llm.run(pair, raw=True, choice=["entailment", "neutral", "contradiction"]))
    print(llm.run("What is the capital of France?", regex=r"The capital of [A-Z][a-z]+ is [A-Z][a-z]+\."))
    try:
        llm.run("Tell me about Lisbon.", schema=City, max_tokens=3)
    except llmkit.errors.ParameterError as error:
        print("too few tokens:", "max_tokens" in str(error))
    try:
        llm.run("hello", schema={"type": "array", "uniqueItems": True})
    except llmkit.errors.InvalidConstraint as error:
        print(error)
