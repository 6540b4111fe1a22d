"""The last layer on the last rows: behind its keys and values, nobody asks for the other rows of a prompt.

It finds the layer and calls it twice; with which models that works is for `proof.py` to try.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit_transformers import flat_step
from llmkit_transformers.flat_attention import KeysAndValuesWritten
from llmkit_transformers.flat_step import FlatStep, Piece, shared_rows


@dataclass(frozen=True, slots=True)
class LastRows:
    """The last row of each sequence in a step.

    Attributes:
        step: what attention sees of them.
        rows: where they stand in the whole step, in the order in which they stand here.
    """

    step: FlatStep
    rows: list[int]


def last_rows(step: FlatStep) -> LastRows:
    """Those of a step in which stacks stand first."""
    n_stacked = sum(len(stacked.stack.members) for stacked in step.stacks)
    pieces = [
        Piece(piece.buffers, row, n_rows=1, start=piece.end - 1) for row, piece in enumerate(step.pieces, n_stacked)
    ]
    narrow = FlatStep(pieces, step.stacks, shared_rows(step.stacks, pieces), step.reproducible, writes=False)
    return LastRows(narrow, [*range(n_stacked), *(piece.first_row + piece.n_rows - 1 for piece in step.pieces)])


def find(model: PreTrainedModel) -> nn.Module | None:
    """The last layer of a model, where one list holds all of them."""
    n_layers: int = cast("Any", model.config.get_text_config()).num_hidden_layers
    lists = [found for found in model.modules() if isinstance(found, nn.ModuleList) and len(found) == n_layers]
    return lists[0][-1] if len(lists) == 1 else None


@contextmanager
def narrowed(layer: nn.Module, wide: FlatStep, last: FlatStep, n_rows: int, kept: Tensor) -> Generator[None]:
    """Let a layer write the keys and values of all rows, and compute the rest for the last rows alone.

    Args:
        layer: the last one.
        wide: the step that runs.
        last: what attention sees of its last rows.
        n_rows: of the whole step, T.
        kept: `(R,)`, which of them are computed to the end; behind the last rows there may be others as padding.
    """
    own, plain = vars(layer).get("forward"), layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        wide.attends = False
        with suppress(KeysAndValuesWritten):
            plain(*args, **kwargs)
        last.kinds = wide.kinds[:-1]
        with flat_step.running(last):
            return plain(*_of_rows(args, n_rows, kept), **_of_rows(kwargs, n_rows, kept))

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def _of_rows(given: Any, n_rows: int, kept: Tensor) -> Any:
    """What a layer is given, for some rows only: a tensor `(1, T, ...)` holds something for each row."""
    if isinstance(given, Tensor):
        return given[:, kept] if given.dim() > 1 and given.shape[:2] == (1, n_rows) else given
    if isinstance(given, tuple | list):
        several = cast("Sequence[Any]", given)
        return tuple(_of_rows(one, n_rows, kept) for one in several)
    if isinstance(given, dict):
        named = cast("dict[str, Any]", given)
        return {name: _of_rows(one, n_rows, kept) for name, one in named.items()}
    return given
