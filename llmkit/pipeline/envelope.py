"""A batch and what was made of it, as bytes: the form in which both travel between the driver and the workers.

It knows no Ray.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

from llmkit.pipeline.flow import Batch
from llmkit.pipeline.stage import Item, Made


@dataclass(slots=True)
class Envelope:
    """What travels.

    Attributes:
        batch: where its rows are.
        made: results that are to be recorded.
        tokens: tokens that were generated for it.
        error: why a worker had to give up; empty where none had to.
    """

    batch: Batch
    made: list[Made] = field(default_factory=list[Made])
    tokens: int = 0
    error: str = ""

    def pack(self) -> bytes:
        """JSON in UTF-8."""
        document = {
            "waiting": {name: list(map(_packed, items)) for name, items in self.batch.waiting.items()},
            "done": list(map(_packed, self.batch.done)),
            "n_failed": self.batch.n_failed,
            "made": [(made.id.hex(), made.rows, made.failed) for made in self.made],
            "tokens": self.tokens,
            "error": self.error,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """What was packed."""
        document = cast("dict[str, Any]", json.loads(data))
        waiting = {name: list(map(_item, items)) for name, items in document["waiting"].items()}
        batch = Batch(waiting, list(map(_item, document["done"])), document["n_failed"])
        made = [Made(bytes.fromhex(id), rows, failed) for id, rows, failed in document["made"]]
        return cls(batch, made, document["tokens"], document["error"])


def _packed(item: Item) -> tuple[str, str, dict[str, Any], tuple[int, ...]]:
    return item.key.hex(), item.origin.hex(), item.row, item.path


def _item(packed: list[Any]) -> Item:
    key, origin, row, path = packed
    return Item(bytes.fromhex(key), bytes.fromhex(origin), row, tuple(path))
