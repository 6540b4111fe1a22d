"""Rows as JSON: many at once are what each is alone."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.pipeline.json_rows import RowEncoder

TEXT = st.text(st.characters())  # half surrogate pairs, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"ensure_ascii": False},
    {"sort_keys": True, "separators": (",", ":")},
]


@pytest.mark.parametrize("options", OPTIONS)
@given(values=st.lists(VALUES, max_size=5))
def test_many_at_once_are_what_each_is_alone(options: dict[str, Any], values: list[Any]) -> None:
    encoder = RowEncoder(**options)
    alone = [json.dumps(value, **options) for value in values]
    assert encoder.each(values) == alone
    assert [encoder.one(value) for value in values] == alone


@pytest.mark.parametrize("value", [math.nan, -math.inf, {1, 2}, b"bytes", object()])
def test_what_json_does_not_hold_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        RowEncoder().each([{"a": 1}, {"a": [value]}])
