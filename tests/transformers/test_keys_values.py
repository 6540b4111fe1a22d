"""Buffers of keys and values: what they take depends on the number of tokens alone, and they are copied rarely."""

from __future__ import annotations

import random

import pytest
import torch

from llmkit_transformers.keys_values import TILE, SequenceBuffers, capacity


def rows(start: int, n: int) -> torch.Tensor:
    """`(2, n, 4)`: every row is its position, and none is zero."""
    return torch.arange(start + 1.0, start + n + 1).expand(2, 4, n).transpose(1, 2)


def read(lengths: list[int]) -> SequenceBuffers:
    buffers, at = SequenceBuffers(), 0
    for n in lengths:
        buffers.write(0, at, rows(at, n), -rows(at, n))
        at += n
    return buffers


def cuts(n_tokens: int, draw: random.Random) -> list[int]:
    at = sorted(draw.sample(range(1, n_tokens), min(n_tokens - 1, draw.randint(0, 9))))
    return [b - a for a, b in zip([0, *at], [*at, n_tokens], strict=True)]


def test_capacity_is_in_whole_tiles_never_falls_and_is_a_tile_or_an_eighth_too_much_at_most() -> None:
    found = [capacity(n) for n in range(5000)]
    assert found == sorted(found)
    assert all(size % TILE == 0 and n <= size < n + max(TILE, n / 8) for n, size in enumerate(found) if n)
    assert [capacity(TILE * n) // TILE for n in (0, 1, 16, 17, 18, 19, 24, 25)] == [0, 1, 16, 18, 18, 20, 24, 27]


@pytest.mark.parametrize("n_tokens", [1, 64, 65, 1000, 1025, 1832])
def test_what_a_sequence_takes_does_not_depend_on_how_it_was_cut(n_tokens: int) -> None:
    draw, expected = random.Random(n_tokens), 2 * 2 * 4 * 4 * capacity(n_tokens)
    for _ in range(5):
        buffers = read(cuts(n_tokens, draw))
        assert buffers.n_bytes == expected
        for tensor, sign in zip(buffers.of_layer(0), (1, -1), strict=True):
            assert torch.equal(tensor[:, :n_tokens], sign * rows(0, n_tokens))
            assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("n_kept", [1, 64, 700, 1025])
def test_a_fork_takes_what_reading_its_tokens_takes_and_is_independent(n_kept: int) -> None:
    source = read([1200])
    copy = source.fork(n_kept)
    assert copy.tensors[0].data_ptr() == source.tensors[0].data_ptr(), "nothing is copied before a step needs it"
    copy.own()
    assert copy.n_bytes == read([n_kept]).n_bytes
    copy.write(0, n_kept, rows(0, 1), rows(0, 1))
    keys, _ = copy.of_layer(0)
    assert torch.equal(keys[:, :n_kept], rows(0, n_kept))
    assert bool(keys.isfinite().all())
    assert torch.equal(source.of_layer(0)[0][:, :1200], rows(0, 1200))


def test_a_long_sequence_that_reads_token_by_token_is_copied_a_few_times() -> None:
    buffers, n_copies, before = SequenceBuffers(), 0, None
    for at in range(2048):
        buffers.write(0, at, rows(at, 1), rows(at, 1))
        n_copies += buffers.tensors[0] is not before
        before = buffers.tensors[0]
    assert n_copies == 23  # and 32, tile by tile
