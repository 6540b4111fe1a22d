"""A pipeline: rows in, labelled rows out; run it again and nothing is computed twice."""

from pathlib import Path
from tempfile import TemporaryDirectory

import llmkit
from llmkit.pipeline import Pipeline, route, step
from llmkit.tasks import TextGeneration

ROWS = [{"country": "France"}, {"country": "Peru"}, {"country": ""}]


def question(row):
    return {**row, "instruction": f"What is the capital of {row['country']}?"}


def known(row):
    return "ask" if row["country"] else "skip"


def skip(row):
    return {**row, "generation": None}


with llmkit.load(max_tokens=20) as llm, TemporaryDirectory() as folder:
    ask = TextGeneration(name="ask", llm=llm, add_raw_output=False)
    pipeline = Pipeline("capitals") >> step(question, writes=["instruction"]) >> route(known) >> [ask, skip]
    print(pipeline.draw())
    for row in pipeline.stream(ROWS):
        print(row["country"] or "-", "->", row["generation"])
    for _ in range(2):
        report = pipeline.run(ROWS, Path(folder) / "capitals.csv")
        print(report.rows_out, "rows,", report.computed, "computed,", report.reused, "reused")
