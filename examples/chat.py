"""A conversation that the model object remembers, saved and continued by another object."""

import tempfile

import llmkit

with tempfile.TemporaryDirectory() as folder:
    with llmkit.load() as llm:
        print("1:", llm.chat("What is the capital of Japan?"))
        checkpoint = llm.save_checkpoint(folder)

    with llmkit.load() as llm:
        llm.load_checkpoint(checkpoint)
        print("2:", llm.chat("And of Italy?"))
        print(len(llm.history), "messages")
