"""Two text generations over N rows on distilabel, with a model that answers at once.

Prints the seconds of the run, and those of its steps by hand.

    build/peers/distilabel/bin/python benchmarks/distilabel_peer.py N

Run by `pipeline.py` in an environment of distilabel's own; it imports nothing of llmkit.
"""

import logging
import sys
import tempfile
import time

from distilabel.models.llms.base import LLM  # pyright: ignore
from distilabel.pipeline import Pipeline  # pyright: ignore
from distilabel.steps import LoadDataFromDicts  # pyright: ignore
from distilabel.steps.tasks import TextGeneration  # pyright: ignore


class Stub(LLM):
    @property
    def model_name(self):
        return "stub"

    def generate(self, inputs, num_generations: int = 1):
        tokens = {"input_tokens": [1], "output_tokens": [1]}
        return [{"generations": [f"heard: {rows[-1]['content']}"], "statistics": tokens} for rows in inputs]


def main(n_rows: int) -> None:
    logging.disable(logging.CRITICAL)
    rows = [{"instruction": f"row {n}"} for n in range(n_rows)]
    with tempfile.TemporaryDirectory() as cache, Pipeline(name="bench", cache_dir=cache) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=50)
        one = TextGeneration(name="one", llm=Stub(), input_batch_size=50)
        two = TextGeneration(
            name="two",
            llm=Stub(),
            input_batch_size=50,
            input_mappings={"instruction": "generation"},
            output_mappings={"generation": "second"},
        )
        load >> one >> two
        started = time.perf_counter()
        made = pipeline.run(use_cache=False)
        elapsed_s = time.perf_counter() - started
        assert made["default"]["train"].num_rows == n_rows
        assert made["default"]["train"][n_rows - 1]["second"] == f"heard: heard: row {n_rows - 1}"
    print(elapsed_s, by_hand_s(rows))


def by_hand_s(rows):
    """Seconds of both steps without a pipeline."""
    started = time.perf_counter()
    for name in ("first", "second"):
        task = TextGeneration(name=name, llm=Stub(), input_batch_size=50)
        task.load()
        batches = [rows[at : at + 50] for at in range(0, len(rows), 50)]
        made = [row for batch in batches for out in task.process(batch) for row in out]
        rows = [{"instruction": row["generation"]} for row in made]
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]))
