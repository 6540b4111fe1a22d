"""Owns how examples become padded batches of token ids with a loss weight for each target.

It knows the tokenizer as a function from text to ids, and nothing of the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from tools.tiny.data import BOS, PAD, Example

TOKENS_PER_BATCH = 2048
# Few enough that tasks of like lengths still share a batch with others.
DOCUMENTS_PER_POOL = 384


@dataclass(frozen=True)
class Document:
    """Token ids from BOS on, and what each id weighs in the loss as a target."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """`inputs` and `targets`: (B, T) int64; `weights`: (B, T) float32, nought on padding."""

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def encode(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Document]:
    """Encodes each segment by itself: at inference, too, a prompt is encoded without its answer."""
    texts = [segment.text for example in examples for segment in example.segments]
    encoded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    bos = tokenizer.token_to_id(BOS)
    return [_document(example, [next(encoded).ids for _ in example.segments], bos) for example in examples]


def _document(example: Example, pieces: list[list[int]], bos: int) -> Document:
    ids, weights = [bos], [0.0]
    for segment, piece in zip(example.segments, pieces, strict=True):
        ids += piece
        weights += [segment.weight] * len(piece)
    return Document(ids, weights)


def batches(documents: Sequence[Document], pad: int, rng: random.Random) -> Iterator[Batch]:
    """Yields one pass in random order; each pool is sorted by length before it is cut, so that little is padding."""
    order = rng.sample(range(len(documents)), len(documents))
    for start in range(0, len(order), DOCUMENTS_PER_POOL):
        pool = sorted((documents[i] for i in order[start : start + DOCUMENTS_PER_POOL]), key=lambda one: len(one.ids))
        groups = list(_groups(pool))
        rng.shuffle(groups)
        yield from (_padded(group, pad) for group in groups)


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in documents:
        if group and len(document.ids) * (len(group) + 1) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(document)
    yield group


def _padded(group: Sequence[Document], pad: int) -> Batch:
    length = max(len(document.ids) for document in group)
    ids = torch.tensor([document.ids + [pad] * (length - len(document.ids)) for document in group])
    weights = torch.tensor([document.weights + [0.0] * (length - len(document.weights)) for document in group])
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that fills short rows."""
    return tokenizer.token_to_id(PAD)
