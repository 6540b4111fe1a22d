"""One step at work on items, which are rows with their keys: its rows, its seeds, and which result is whose.

Owns what happens to a row that fails: its outputs are None, the reason is noted in its metadata, and no other row
suffers. It knows neither the graph nor the journal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import PipelineError, UnsupportedParameter
from llmkit.params import GenerationParams
from llmkit.pipeline.functions import FunctionStep
from llmkit.pipeline.json_rows import RowEncoder
from llmkit.pipeline.keys import Row, digest, row_seed
from llmkit.pipeline.signature import code_signature, model_signature
from llmkit.tasks.generating import FAULTS_OF_ALL, check_params
from llmkit.tasks.metadata import METADATA, error_key, failure, merged
from llmkit.tasks.step import Step
from llmkit.tasks.task import Task

# Travels in the rows of steps that may add, drop and reorder them.
_MARK = "__llmkit_row__"
_ENCODER = RowEncoder()


@dataclass(slots=True)
class Item:
    """A row on its way.

    Attributes:
        key: names the row; the same in every run.
        origin: stands for the signatures of the steps that made it.
        row: the columns.
        path: its place in the order of the output: positions in the batch, among new rows, among branches ...
    """

    key: bytes
    origin: bytes
    row: Row
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """What a step made of an item.

    Attributes:
        id: names the result in the journal.
        rows: the new rows, as a JSON list.
        failed: one of them holds a reason instead of a result, so it is not to be kept for later runs.
    """

    id: bytes
    rows: str
    failed: bool


class Stage:
    """A step and its signature. Not for several threads.

    Args:
        name: the step's name in its graph.
        step: loaded when its signature or a result is first asked for.
        code: the signature of the step's code, where it was made in another process, since source is not found
            everywhere; empty where no result is kept, and nothing has to be described.
        model: the signature of its model, where that was loaded in another process.
    """

    def __init__(self, name: str, step: Step, *, code: bytes | None = None, model: bytes | None = None) -> None:
        self.name, self.step = name, step
        self.code = code_signature(step) if code is None else code
        self._model = model
        self._signature: bytes | None = None
        self._seed: int | None = None
        self._carries_mark = True

    @property
    def signature(self) -> bytes:
        """What the results depend on besides the rows. Loads the model."""
        if self._signature is None:
            model = self._model or self.load()
            self._signature = digest(self.code + model + self.name.encode())
        return self._signature

    @property
    def tokens(self) -> int:
        """Tokens generated so far, as far as they are counted."""
        return self.step.statistics.completion_tokens if isinstance(self.step, Task) else 0

    def origins(self, items: Sequence[Item]) -> list[bytes]:
        """For each item, what stands for the steps that its new rows come from."""
        known = {origin: digest(origin + self.signature) for origin in {item.origin for item in items}}
        return [known[item.origin] for item in items]

    def ids(self, items: Sequence[Item], origins: Sequence[bytes]) -> list[bytes]:
        """The names of the items' results: two are equal only where row, steps, code, parameters and models are."""
        return [digest(origin + item.key) for origin, item in zip(origins, items, strict=True)]

    def make(self, items: Sequence[Item], ids: Sequence[bytes]) -> list[Made]:
        """The results of these items, in their order; at most `input_batch_size` of them go to the step at once.

        Raises:
            LLMKitError: a fault that every row would meet, such as a model that cannot be had.
        """
        size = self.step.input_batch_size
        texts = [text for at in range(0, len(items), size) for text in self._texts(items[at : at + size])]
        return [Made(id, text, failed) for id, (text, failed) in zip(ids, texts, strict=True)]

    def unload(self) -> None:
        """Free the step's model; it is loaded again when it is needed again."""
        self._signature = None
        self.step.unload()

    def load(self) -> bytes:
        """Load the step's model; gives the model's signature where one is needed."""
        self.step.load()
        if isinstance(self.step, Task):
            own = self.step.params.get("seed", self.step.model.params.seed)
            self._seed = int(own or 0) if _takes_seeds(self.step) else None
        return model_signature(self.step) if self.code else b""

    def _texts(self, items: Sequence[Item]) -> list[tuple[str, bool]]:
        try:
            groups = self._groups(items)
        except (*FAULTS_OF_ALL, PipelineError):
            raise
        except Exception as error:  # noqa: BLE001 - a step may raise anything; the reason is noted in the row
            if len(items) == 1:
                return [self._failed(items[0].row, error)]
            # Which row it was is found by giving each alone.
            return [text for item in items for text in self._texts([item])]
        try:
            texts = _ENCODER.each(groups)
        except (TypeError, ValueError):
            return [self._text(item, rows) for item, rows in zip(items, groups, strict=True)]
        return [(text, self._has_failed(text, rows)) for text, rows in zip(texts, groups, strict=True)]

    def _groups(self, items: Sequence[Item]) -> list[list[Row]]:
        """The new rows of each item."""
        rows = [item.row for item in items]
        if isinstance(self.step, FunctionStep):
            return list(self.step.process(rows))
        if isinstance(self.step, Task):
            made = [row for batch in self.step.process(rows, seeds=self._seeds(items)) for row in batch]
            n_each = 1 if self.step.group_generations else self.step.num_generations
            if len(made) != n_each * len(rows):
                raise PipelineError(
                    f"{self.name} must give {n_each} rows for each row, got {len(made)} for {len(rows)}"
                )
            return [made[at : at + n_each] for at in range(0, len(made), n_each)]
        return self._marked_groups(rows)

    def _marked_groups(self, rows: list[Row]) -> list[list[Row]]:
        """For steps that may do anything to the rows: each is told by its mark, or goes alone where marks get lost."""
        if len(rows) == 1 or not self._carries_mark:
            return [[row for batch in self.step.process([row]) for row in batch] for row in rows]
        groups: list[list[Row]] = [[] for _ in rows]
        for batch in self.step.process([{**row, _MARK: at} for at, row in enumerate(rows)]):
            for row in batch:
                if _MARK not in row:
                    self._carries_mark = False
                    return self._marked_groups(rows)
                groups[int(row.pop(_MARK))].append(row)
        return groups

    def _seeds(self, items: Sequence[Item]) -> list[int] | None:
        if self._seed is None:
            return None
        return [row_seed(item.key, self.name, self._seed) for item in items]

    def _text(self, item: Item, rows: list[Row]) -> tuple[str, bool]:
        try:
            text = _ENCODER.one(rows)
        except (TypeError, ValueError) as error:
            problem = PipelineError(f"{self.name} must give what JSON holds (text, numbers, lists, mappings): {error}")
            return self._failed(item.row, problem)
        return text, self._has_failed(text, rows)

    def _has_failed(self, text: str, rows: list[Row]) -> bool:
        # Most rows are done with once the key was not found in the text.
        if not isinstance(self.step, Task) or error_key(self.step.name) not in text:
            return False
        return any(failure(row, self.step.name, self.step.metadata_column) is not None for row in rows)

    def _failed(self, row: Row, error: Exception) -> tuple[str, bool]:
        nothing = {column: None for column in self.step.output_columns if column not in row}
        return json.dumps([{**row, **nothing, **noted(row, self.name, error)}]), True


def noted(row: Row, name: str, error: Exception) -> dict[str, Any]:
    """The metadata column with the reason why this step failed on the row."""
    reason = {error_key(name): f"{type(error).__name__}: {error}"}
    return {METADATA: merged(row.get(METADATA), [reason], grouped=False)}


def _takes_seeds(task: Task) -> bool:
    try:
        check_params(task.model, GenerationParams(seed=0))
    except UnsupportedParameter:
        return False
    return True
