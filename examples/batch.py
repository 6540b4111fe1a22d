"""Many tasks at once, with one seed a task: each text is the one that the task gets alone."""

import llmkit

TASKS = ["What is the capital of Spain?", "Tell me a joke.", "Translate to French: Good morning"]
SEEDS = [1, 2, 3]

with llmkit.load(temperature=0.8) as llm:
    texts = llm.batch_run(TASKS, seed=SEEDS)
    alone = [llm.run(task, seed=seed) for task, seed in zip(TASKS, SEEDS, strict=True)]

for task, text in zip(TASKS, texts, strict=True):
    print(f"{task} -> {text}")
print("equal to single runs:", texts == alone)
