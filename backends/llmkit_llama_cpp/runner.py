"""Runs a GGUF model for the engine: sequences are numbers, their keys and values are cells of one context.

It knows nothing of requests, queues or the prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import cast

from llmkit.engine.runner import TILE, KeysValues, Slice, TokenSampler
from llmkit_llama_cpp.context import MAX_SEQUENCES, Context, Logits
from llmkit_llama_cpp.sampling import ChoiceSampler
from llmkit_llama_cpp.settings import Sizes


@dataclass(eq=False, slots=True)
class Cells:
    """The cells of one sequence.

    Attributes:
        sequence: its number in the context.
        n_tokens: tokens that have been read.
        bytes_per_tile: what a tile of them counts.
        tile: tokens in a tile.
    """

    sequence: int
    n_tokens: int
    tile: int
    bytes_per_tile: int

    @property
    def n_bytes(self) -> int:
        """Bytes that they count; cells shared with another sequence count for each."""
        return -(-max(1, self.n_tokens) // self.tile) * self.bytes_per_tile


class CellRunner:
    """The `ModelRunner` of llama.cpp. One thread uses it.

    A sequence counts whole tiles, so large that the budget cannot hold more sequences than llama.cpp tells apart.

    Args:
        context: where the model runs; closed with the runner.
        sizes: how many tokens the context holds, and what one takes.
        lock: held while the model runs, for others who run it.
    """

    def __init__(self, context: Context, sizes: Sizes, lock: Lock) -> None:
        self._context, self._lock = context, lock
        self._tile = max(TILE, sizes.n_cells // MAX_SEQUENCES)
        self._bytes_per_tile = self._tile * sizes.cell_bytes
        self._free = list(range(MAX_SEQUENCES))

    def new(self) -> Cells:
        """Cells of a sequence without tokens."""
        return Cells(self._free.pop(), 0, self._tile, self._bytes_per_tile)

    def fork(self, source: KeysValues, n_tokens: int) -> Cells:
        """A sequence that begins as another does; they share cells, so this costs nothing."""
        copy = self.new()
        self._context.copy(_cells(source).sequence, copy.sequence, n_tokens)
        copy.n_tokens = n_tokens
        return copy

    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        """Forget all tokens after the first."""
        cells = _cells(keys_values)
        self._context.cut(cells.sequence, n_tokens)
        cells.n_tokens = n_tokens

    def free(self, keys_values: KeysValues) -> None:
        """Give the cells back, and the number."""
        sequence = _cells(keys_values).sequence
        self._context.cut(sequence, 0)
        self._free.append(sequence)

    def bytes_for(self, n_tokens: int) -> int:
        """Bytes that so many tokens count."""
        return -(-max(1, n_tokens) // self._tile) * self._bytes_per_tile

    def step(self, slices: Sequence[Slice]) -> list[list[int]]:
        """Read all slices in one call; for each slice one token per sampler."""
        logits = self._logits(slices)
        rows = iter(zip(logits, cast("list[int]", logits.argmax(axis=-1).tolist()), strict=True))
        return [_chosen(piece.samplers, *next(rows)) if piece.samplers else [] for piece in slices]

    def _logits(self, slices: Sequence[Slice]) -> Logits:
        """`(slices with samplers, V)`, in their order."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[bool] = []
        for piece in slices:
            n_tokens = len(piece.token_ids)
            tokens += piece.token_ids
            positions += range(piece.start, piece.start + n_tokens)
            sequences += [_cells(piece.keys_values).sequence] * n_tokens
            wanted += [False] * (n_tokens - 1) + [bool(piece.samplers)]
        with self._lock:
            logits = self._context.read(tokens, positions, sequences, wanted)
        for piece in slices:
            _cells(piece.keys_values).n_tokens = piece.start + len(piece.token_ids)
        return logits

    def close(self) -> None:
        """Free the context."""
        self._context.close()


def _cells(keys_values: KeysValues) -> Cells:
    return cast("Cells", keys_values)


def _chosen(samplers: Sequence[TokenSampler], logits: Logits, likeliest: int) -> list[int]:
    return [cast("ChoiceSampler", sampler).choose(logits, likeliest) for sampler in samplers]
