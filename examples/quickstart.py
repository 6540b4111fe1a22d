"""Load the embedded model, ask it something, and watch an answer arrive."""

import llmkit

with llmkit.load() as llm:
    print(llm.run("What is the capital of France?"))

    for piece in llm.stream("Tell me a joke."):
        print(piece, end="", flush=True)
    print()

    completion = llm.complete("What is the capital of Peru?")
    print(completion.text, completion.usage.completion_tokens, completion.choices[0].finish_reason)
