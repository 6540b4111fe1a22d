"""A `datasets.Dataset` that transformers' Trainer takes as it is, and the tokenizer that it is made with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from llmkit.errors import ExtraUnavailable, InvalidRequest, UnsupportedFeature
from llmkit.registry import backend_class, resolve_name
from llmkit.training_data.encode import IGNORED, EncodingOptions, Example, encode_records
from llmkit.training_data.records import Rows, parse_record, read_rows

if TYPE_CHECKING:
    from datasets import Dataset


def prepare_dataset(
    data: str | os.PathLike[str] | Rows,
    tokenizer: Any,
    *,
    data_col_dict: Mapping[str, str] | None = None,
    pad: bool = True,
    **options: Any,
) -> Dataset:
    """Records as a data set with `input_ids`, `attention_mask` and `labels`, in order.

    Args:
        data: a JSON, JSONL, CSV or Parquet file, or rows.
        tokenizer: the model's own, as `load_tokenizer` gives it.
        data_col_dict: renames columns: `{"question": "input", "answer": "output"}`.
        pad: lengthen every example to the longest, so that a `Trainer` needs no collator; labels of padding are -100.
        options: those of `EncodingOptions`.

    Raises:
        InvalidRequest: a row or a file is malformed, or no example is left.
        ParameterError: an option breaks its rule.
        PromptStyleError: no such prompt style.
        ExtraUnavailable: `datasets` is not installed.
    """
    settled = EncodingOptions(**options)
    rows = read_rows(data) if isinstance(data, (str, os.PathLike)) else data
    records = (parse_record(row, data_col_dict, at=at) for at, row in enumerate(rows))
    return to_dataset(list(encode_records(records, tokenizer, settled)), tokenizer, pad=pad)


def to_dataset(examples: Sequence[Example], tokenizer: Any, *, pad: bool = True) -> Dataset:
    """Examples as a data set; see `prepare_dataset`.

    Raises:
        InvalidRequest: there are none.
        ExtraUnavailable: `datasets` is not installed.
    """
    if not examples:
        raise InvalidRequest(
            "there must be at least one example, got none: no rows, or all of them were cut and dropped"
        )
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ExtraUnavailable("preparing data", "datasets", "data") from error
    logger.info("{} examples, {} of them cut", len(examples), sum(example.truncated for example in examples))
    return cast("Any", Dataset).from_dict(
        _columns(examples, _pad_id(tokenizer), max(map(_length, examples)) if pad else 0)
    )


def load_tokenizer(model: str | None = None) -> Any:
    """The tokenizer of a model, without its weights; names are those of `llmkit.load`.

    Raises:
        ModelError: it cannot be had.
        UnsupportedFeature: the backend has no tokenizer to give.
    """
    backend, name = resolve_name(model)
    load = getattr(backend_class(backend), "load_tokenizer", None)
    if load is None:
        raise UnsupportedFeature(
            f"the {backend} backend has no tokenizer to prepare data with; name a transformers model"
        )
    return load(name)


def _columns(examples: Iterable[Example], pad_id: int, length: int) -> dict[str, list[list[int]]]:
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        n_pad = max(0, length - _length(example))
        columns["input_ids"].append(example.input_ids + [pad_id] * n_pad)
        columns["attention_mask"].append([1] * _length(example) + [0] * n_pad)
        columns["labels"].append(example.labels + [IGNORED] * n_pad)
    return columns


def _length(example: Example) -> int:
    return len(example.input_ids)


def _pad_id(tokenizer: Any) -> int:
    """A token to pad with; which one makes no difference, since the mask hides it."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in ids if token is not None)
