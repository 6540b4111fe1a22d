"""Attention for a flat step: the new tokens of many sequences end to end, each attending to its own past alone.

Registered with transformers as an attention implementation. It knows the step at hand (`flat_step.py`), and nothing of
requests or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from llmkit_transformers import flat_step
from llmkit_transformers.flat_step import AttentionKind, FlatStep, Piece, SharedRows, StackedRows
from llmkit_transformers.keys_values import TILE

NAME = "llmkit_flat"
_MANY_FOLDED = range(64, 129)
_MANY_KEYS = 256
"""Where one fused attention call takes longer than its parts; measured in `docs/lab-log.md`."""
_IGNORED = {
    "dropout",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "is_causal",
    "logits_to_keep",
}


class NotUnderstood(Exception):
    """A model passes its attention something that this function does not honour, so the flat route is not for it."""


class KeysAndValuesWritten(Exception):
    """The layer may stop here: nobody asks for more than its keys and values."""


def flat_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over the step's pieces.

    Args:
        module: the layer; not used.
        query: `(1, H, T, D)`.
        key: `(1, H_kv, T, D)`, of the new tokens.
        value: `(1, H_kv, T, D_v)`, likewise.
        attention_mask: must be None; positions say everything.
        scaling: factor of the scores.
        sliding_window: positions that a token sees, itself included; None for all.
        softcap: bound of the scores (Gemma 2: `softcap * tanh(score / softcap)`).
        others: whatever else the model passes; refused unless it changes nothing here.

    Returns:
        `(1, T, H, D_v)`, and no weights.

    Raises:
        NotUnderstood: an argument that is not honoured.
        KeysAndValuesWritten: the step attends no more.
    """
    step = flat_step.current()
    unknown = sorted(
        name for name, given in others.items() if given is not None and given is not False and name not in _IGNORED
    )
    if step is None or attention_mask is not None or unknown:
        raise NotUnderstood(f"attention arguments {unknown or 'mask'} are not honoured by the flat step")
    if query.stride(-1) != 1:  # as products of few rows leave it, and as kernels do not take it
        query = query.contiguous()
    size = query.shape[-1]
    scale = scaling if scaling is not None else size**-0.5
    kind = AttentionKind(query.shape[1], key.shape[1], size, value.shape[-1], scale, sliding_window, softcap)
    step.kinds.append(kind)
    if step.writes:
        _write(step, key, value)
    if not step.attends:
        raise KeysAndValuesWritten
    return _attended(step, query, kind), None


def _write(step: FlatStep, key: Tensor, value: Tensor) -> None:
    """Put the new keys and values, `(1, H_kv, T, D)`, into the sequences' buffers."""
    for stacked in step.stacks:
        stacked.write(step.layer, key, value)
    for piece in step.pieces:
        rows = slice(piece.first_row, piece.first_row + piece.n_rows)
        piece.buffers.write(step.layer, piece.start, key[0, :, rows], value[0, :, rows])


def _attended(step: FlatStep, query: Tensor, kind: AttentionKind) -> Tensor:
    """`(1, T, H, D_v)`: what rows with queries `(1, H, T, D)` find; rows of nobody, as padding has, find zeros."""
    make = query.new_zeros if step.reproducible else query.new_empty
    out = make(1, query.shape[2], query.shape[1], kind.value_size)
    if step.shared:
        step.log_sums = query.new_empty(query.shape[2], query.shape[1], dtype=torch.float32)
    for stacked in step.stacks:
        _side_by_side(step, stacked, query, kind, out)
    for piece in step.pieces:
        rows = slice(piece.first_row, piece.first_row + piece.n_rows)
        attend = _tiled if step.reproducible and piece.buffers.shared is None else _whole
        attend(step, piece, query[0, :, rows], kind, out[0, rows].transpose(0, 1))
    for beginning in step.shared:
        _before(step, beginning, query, kind, out)
    return out


def _side_by_side(step: FlatStep, stacked: StackedRows, query: Tensor, kind: AttentionKind, out: Tensor) -> None:
    """One row of each sequence of a stack, all in one call: each is in the last tile of its keys.

    `query` is `(1, H, T, D)` of all the step's rows, `out` is `(1, T, H, D_v)`.
    """
    keys, values = stacked.stack.of_layer(step.layer)
    rows = slice(stacked.first_row, stacked.first_row + len(keys))
    folded = query[0, :, rows].transpose(0, 1).reshape(len(keys), keys.shape[1], -1, query.shape[-1])
    mask = _mask_of_stack(step, stacked, kind.window)
    if stacked.stack.is_shared:
        scored, log_sums = _scored_with_sums(folded, keys, values, mask, kind)
        step.log_sums[rows] = log_sums.flatten(1)
    else:
        score = _scored_independently if step.reproducible else _scored
        scored = score(folded, keys, values, mask, kind)
    out[0, rows] = scored.flatten(1, 2)


def _whole(step: FlatStep, piece: Piece, query: Tensor, kind: AttentionKind, out: Tensor) -> None:
    """All rows of a piece at once: as fast as it goes. `query` and `out`: `(H, n, D)`."""
    keys, values = piece.buffers.of_layer(step.layer)
    first = 0 if kind.window is None else max(0, piece.start - kind.window + 1)
    keys, values = keys[:, first : piece.end], values[:, first : piece.end]
    folded = _folded(query, keys.shape[0])
    is_unfused = piece.buffers.shared is None and _is_unfused_faster(folded, keys, kind)
    at = (piece.start, piece.n_rows, piece.start if is_unfused else first, piece.end)
    mask = None if piece.n_rows == 1 else _mask(step, at, folded.shape[1], kind.window)
    if piece.buffers.shared is None:
        attend = _scored_unfused if is_unfused else _scored
        scored = attend(folded[None], keys[None], values[None], mask, kind)
    else:
        scored, log_sums = _scored_with_sums(folded[None], keys[None], values[None], mask, kind)
        rows = slice(piece.first_row, piece.first_row + piece.n_rows)
        step.log_sums[rows] = log_sums.reshape(out.shape[:2]).T
    out.copy_(scored.reshape(out.shape))


def _before(step: FlatStep, shared: SharedRows, query: Tensor, kind: AttentionKind, out: Tensor) -> None:
    """Let rows look at the prefix that they share, too, all in one call, and weigh what they find against the rest.

    Two attentions over parts of the keys make the attention over all: each counts as much as the sum of its
    exponentials. Source: Juravsky et al., Hydragen, https://arxiv.org/abs/2402.05099.

    `query` is `(1, H, T, D)`, `out` is `(1, T, H, D)` and holds what the rows found among their own keys.
    """
    keys, values = shared.prefix.of_layer(step.layer)
    asked = query[0, :, shared.rows]
    found, log_sums = _scored_with_sums(_folded(asked, len(keys))[None], keys[None], values[None], None, kind)
    log_sums = log_sums.reshape(asked.shape[:2]).T
    weights = torch.sigmoid(log_sums - step.log_sums[shared.rows])[..., None]
    own, found = out[0, shared.rows].float(), found.reshape(asked.shape).transpose(0, 1).float()
    out[0, shared.rows] = torch.lerp(own, found, weights).to(out.dtype)


def _tiled(step: FlatStep, piece: Piece, query: Tensor, kind: AttentionKind, out: Tensor) -> None:
    """Rows cut at tiles, each against all keys up to its tile's end, so that the bits depend on positions only."""
    keys, values = piece.buffers.of_layer(step.layer)
    at = piece.start
    while at < piece.end:
        n_keys = (at // TILE + 1) * TILE
        n = min(piece.end, n_keys) - at
        rows = slice(at - piece.start, at - piece.start + n)
        folded = _folded(query[:, rows], keys.shape[0])
        mask = _mask(step, (at, n, 0, n_keys), folded.shape[1], kind.window, _n_missing(folded))
        scored = _scored_independently(folded[None], keys[None, :, :n_keys], values[None, :, :n_keys], mask, kind)
        out[:, rows] = scored.reshape(out[:, rows].shape)
        at += n


def _folded(query: Tensor, n_kv_heads: int) -> Tensor:
    """`(H, n, D)` as `(H_kv, G * n, D)`: the query heads that share keys become rows of one matrix."""
    return query.reshape(n_kv_heads, -1, query.shape[-1])


def _mask(
    step: FlatStep, place: tuple[int, int, int, int], n_folded: int, window: int | None, n_padding: int = 0
) -> Tensor:
    """Additive float mask: 0 where a row may look, -inf elsewhere; `(G * n + padding, L)`, or `(1, L)` where n is 1.

    Args:
        step: the step, which keeps it for its other layers.
        place: position of the first row, number of rows n, the first key, and the one behind the last.
        n_folded: rows with the heads that share keys, G * n.
        window: positions that a row sees.
        n_padding: rows that see whatever they may.
    """

    def make() -> Tensor:
        start, n_rows, first, end = place
        reference = step.pieces[0].buffers.tensors[0]
        if n_rows == 1:
            return _mask_of_one(reference, start - first, end - first, window)
        rows = torch.arange(start, start + n_rows, device=reference.device)
        seen = _seen(torch.arange(first, end, device=reference.device), rows[:, None], window)
        return pad(_additive(seen, reference).repeat(n_folded // n_rows, 1), (0, 0, 0, n_padding))

    return _once(step, (place, n_folded, window, n_padding), make)


def _mask_of_one(like: Tensor, position: int, n_keys: int, window: int | None) -> Tensor:
    """`(1, L)` for all heads of a row at a position among the keys: most steps are such ones, so it is made quickly."""
    mask = like.new_zeros(1, n_keys)
    mask[:, position + 1 :] = -torch.inf
    if window is not None:
        mask[:, : max(0, position + 1 - window)] = -torch.inf
    return mask


def _mask_of_stack(step: FlatStep, stacked: StackedRows, window: int | None) -> Tensor:
    """`(N, 1, 1, C)` additive float mask of the rows of a stack, for all heads."""

    def make() -> Tensor:
        reference = stacked.stack.tensors[0]
        at = torch.arange(stacked.stack.capacity, device=reference.device)
        return _additive(_seen(at, stacked.positions[:, None, None, None], window), reference)

    return _once(step, (stacked.first_row, window), make)


def _once(step: FlatStep, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """A mask of this step, made for the first layer that needs it."""
    if key not in step.masks:
        step.masks[key] = make()
    return step.masks[key]


def _seen(keys: Tensor, rows: Tensor, window: int | None) -> Tensor:
    """Whether rows at some positions see keys at some positions."""
    return keys <= rows if window is None else (keys <= rows) & (keys > rows - window)


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)


def _scored(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kind: AttentionKind) -> Tensor:
    """`(N, H_kv, R, D)` queries against `(N, H_kv, L, D)` keys, under a mask that broadcasts to `(N, H_kv, R, L)`."""
    if kind.softcap is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=kind.scaling)
    scores = torch.matmul(query, keys.transpose(2, 3)) * kind.scaling
    scores = kind.softcap * torch.tanh(scores / kind.softcap)
    scores = scores if mask is None else scores + mask
    return torch.matmul(torch.softmax(scores.float(), dim=-1).to(values.dtype), values)


def _scored_independently(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kind: AttentionKind
) -> Tensor:
    """`_scored` in a form in which no row sees its neighbours; a mask with rows has those of the padding, too."""
    n_sequences, n_heads, n_rows, _ = query.shape
    missing = _n_missing(query)
    if missing:  # whatever rows: the same ones again
        query = torch.cat((query,) * (1 + -(-missing // n_rows)), dim=2)[:, :, : n_rows + missing]
    if n_sequences * n_heads == 1:  # a product that is alone is split among threads
        query, keys, values = (tensor.expand(2, -1, -1, -1) for tensor in (query, keys, values))
    return _scored(query, keys, values, mask, kind)[:n_sequences, :, :n_rows]


def _n_missing(query: Tensor) -> int:
    """Rows by which `(..., R, D)` queries fall short of a multiple of 4, with D up to 64, of 8 up to 128, and so on.

    The products within attention are MKL's, which takes another way for the last rows if they are few for their size.
    """
    n_rows, size = query.shape[-2:]
    return -n_rows % max(4, 1 << (size - 1).bit_length() >> 4)


def _is_unfused_faster(query: Tensor, keys: Tensor, kind: AttentionKind) -> bool:
    """Whether `_scored_unfused` takes less time for `(H_kv, R, D)` queries and `(H_kv, L, D)` keys: by a fifth at best.

    The fused kernel cuts queries into slices of 32 rows, which are few for so many keys.
    """
    is_plain = kind.softcap is None and kind.window is None and query.device.type == "cpu"
    return is_plain and query.dtype == torch.float32 and query.shape[1] in _MANY_FOLDED and keys.shape[1] >= _MANY_KEYS


def _scored_unfused(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kind: AttentionKind) -> Tensor:
    """`_scored` in single operations; the mask is for the last keys alone, every row sees all others."""
    scores = torch.matmul(query * kind.scaling, keys.transpose(2, 3))
    if mask is not None:
        scores[..., -mask.shape[-1] :] += mask
    return torch.matmul(torch.softmax(scores, dim=-1, out=scores), values)


def _scored_with_sums(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kind: AttentionKind
) -> tuple[Tensor, Tensor]:
    """`_scored` on a processor, and the logarithm of the sum of each row's exponentials, `(N, H_kv, R)` in float32."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, attn_mask=mask, scale=kind.scaling
    )


AttentionInterface.register(NAME, flat_attention)
