"""A model of your own: define `run`, inherit everything else."""

from llmkit import BaseLLM


class Reversing(BaseLLM):
    """Answers with the task's words in reverse."""

    def run(self, task=None, *args, **kwargs):
        return " ".join(reversed(task.split()))


llm = Reversing(model_name="reversing")
print(llm.run("one two three"))
print(llm.batch_run(["a b", "c d"]))
print(llm.chat("how are you"))
print([message.role for message in llm.history])
print(llm.metrics().n_generations, "generations")
