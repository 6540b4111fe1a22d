"""Pipelines: data through steps, from one row to a cluster, going on where a crash left it.

`graph` is how steps follow each other, `keys` the names of rows, `journal` what is kept, `local` and `ray` how steps
are run; `pipeline` puts them together.
"""

from llmkit.pipeline.functions import FunctionStep, Route, route, step
from llmkit.pipeline.pipeline import Pipeline
from llmkit.pipeline.progress import Report
from llmkit.pipeline.ray import RayRunner
from llmkit.pipeline.sources import Source, jsonl_rows, open_source

__all__ = [
    "FunctionStep",
    "Pipeline",
    "RayRunner",
    "Report",
    "Route",
    "Source",
    "jsonl_rows",
    "open_source",
    "route",
    "step",
]
