"""Which tokens may come next, for every kind of constraint and tokenizer."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance.hf import from_tokenizer

from llmkit.errors import GenerationError, InvalidConstraint
from llmkit.structured import Constraint, Guide, Guides
from llmkit.structured.guide import MAX_GUIDES
from tests import tiny_models

TOKENIZERS = {
    "bytes": tiny_models.wrapped(tiny_models.byte_level_tokenizer()),
    "metaspace": tiny_models.wrapped(tiny_models.metaspace_tokenizer()),
}
GUIDES = {
    name: Guides(lambda t=tokenizer: from_tokenizer(t, n_vocab=len(t) + 5, eos_token=tiny_models.EOS))
    for name, tokenizer in TOKENIZERS.items()
}


def guide(tokenizer: str = "bytes", **asked: Any) -> Guide:
    constraint = Constraint.of(**asked)
    assert constraint is not None
    return GUIDES[tokenizer].get(constraint)


def allowed(mask: bytes) -> list[int]:
    return [n for n in range(len(mask) * 8) if mask[n // 8] >> n % 8 & 1]


def walk(guide: Guide, seed: int, eos_ids: Sequence[int] = (tiny_models.EOS,), limit: int = 400) -> tuple[str, bool]:
    """A random text of the guide, and whether it is whole."""
    draw, matcher, ids = random.Random(seed), guide.start(eos_ids), list[int]()
    while not matcher.is_finished and len(ids) < limit:
        ids.append(draw.choice(allowed(matcher.mask())))
        matcher.advance(ids[-1])
    return guide.decode([n for n in ids if n not in eos_ids]), matcher.is_finished


KINDS: list[dict[str, Any]] = [
    {"schema": {"enum": ["a", 1, None, {"b": []}]}},
    {"schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}},
    {"regex": r"[A-Z][a-zé]{0,5} [0-9]{2}"},
    {"regex": r" leading space"},
    {"choice": ["yes", "no", "çà et là", "日本語", "😀"]},
    {"grammar": 'start: "<" word ">"\nword: /[a-z]{1,4}/'},
    {"grammar": 'root ::= "x" ("a" | "b")'},
]


@pytest.mark.parametrize("tokenizer", sorted(GUIDES))
@pytest.mark.parametrize("asked", KINDS, ids=str)
def test_every_walk_through_the_masks_is_a_text_that_fits(asked: dict[str, Any], tokenizer: str) -> None:
    for seed in range(10):
        text, is_whole = walk(guide(tokenizer, **asked), seed)
        assert is_whole
        Constraint.of(**asked).parse(text)  # pyright: ignore[reportOptionalMemberAccess]


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Schemas whose texts have a bounded length."""
    simple = [
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(
            lambda low, n: {"type": "integer", "minimum": low, "maximum": low + n},
            st.integers(-99, 99),
            st.integers(0, 99),
        ),
        st.builds(
            lambda low, n: {"type": "string", "minLength": low, "maxLength": low + n},
            st.integers(0, 3),
            st.integers(0, 5),
        ),
        st.builds(
            lambda values: {"enum": values},
            st.lists(st.text(max_size=4) | st.integers(-(2**53), 2**53), min_size=1, max_size=3),
        ),
        st.just({"type": "string", "pattern": "^[a-c]{2,4}$"}),
    ]
    if depth == 0:
        return draw(st.one_of(simple))
    inner = schemas(depth - 1)
    arrays = st.builds(
        lambda item, n: {"type": "array", "items": item, "minItems": n, "maxItems": n + 1}, inner, st.integers(0, 2)
    )
    unions = st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=2))
    return draw(st.one_of(*simple, arrays, unions, objects(inner)))


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.text(max_size=5), inner, max_size=3))
    required = [key for key in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@given(schemas(), st.integers(0, 2**32), st.sampled_from(sorted(GUIDES)))
@settings(max_examples=60)
def test_every_walk_through_a_random_schema_validates_and_needs_the_tokens_that_were_promised(
    schema: dict[str, Any], seed: int, tokenizer: str
) -> None:
    made = guide(tokenizer, schema=schema)
    draw, matcher, ids = random.Random(seed), made.start([]), list[int]()
    while not matcher.is_finished:
        ids.append(draw.choice(allowed(matcher.mask())))
        matcher.advance(ids[-1])
    made.constraint.parse(made.decode(ids))
    assert made.fewest_tokens <= len(ids)


def test_an_eos_may_come_where_the_text_may_end_and_nowhere_else() -> None:
    matcher = guide(regex="ab*").start([7, 9])
    assert {7, 9}.isdisjoint(allowed(matcher.mask()))
    for token in TOKENIZERS["bytes"]("a")["input_ids"]:
        matcher.advance(token)
    assert {7, 9} <= set(allowed(matcher.mask()))
    assert tiny_models.EOS not in allowed(matcher.mask())
    matcher.advance(9)
    assert matcher.is_finished


def test_a_text_that_can_only_end_is_finished_without_an_eos() -> None:
    assert walk(guide(choice=["yes"]), 0, eos_ids=()) == ("yes", True)


def test_an_eos_that_is_also_text_ends_the_text() -> None:
    (letter,) = TOKENIZERS["bytes"]("b")["input_ids"]
    assert walk(guide(regex="ab*"), 3, eos_ids=[letter])[0] == "a"


def test_matchers_of_one_guide_are_independent() -> None:
    one, other = (guide(choice=["ab", "cd"]).start([]) for _ in range(2))
    before = other.mask()
    one.advance(TOKENIZERS["bytes"]("a")["input_ids"][0])
    assert one.mask() != before == other.mask()


def test_a_token_that_was_not_allowed_fails_the_text_with_the_reason() -> None:
    matcher = guide(choice=["ab"]).start([])
    matcher.advance(TOKENIZERS["bytes"]("x")["input_ids"][0])
    with pytest.raises(GenerationError, match="structured output failed"):
        _ = matcher.is_finished


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"schema": {"not": {}}}, "Unimplemented keys"),
        ({"schema": {"type": "integer", "minimum": 5, "maximum": 1}}, "Unsatisfiable"),
        ({"schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"schema": {"const": 2**53 + 1}}, r"within 2\*\*53, got 9007199254740993"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"grammar": "start: missing"}, "unknown name"),
        ({"grammar": "root ::= missing ("}, "."),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConstraint, match=reason):
        guide(**asked)


def test_a_constraint_is_compiled_once_and_the_oldest_are_forgotten() -> None:
    guides, first = GUIDES["bytes"], guide(choice=["first"])
    for n in range(MAX_GUIDES - 1):
        guide(choice=[str(n)])
    assert guide(choice=["first"]) is first
    for n in range(MAX_GUIDES):
        guides.get(Constraint.of(choice=[f"new {n}"]))  # pyright: ignore[reportArgumentType]
    assert guide(choice=["first"]) is not first


@pytest.mark.parametrize(
    ("asked", "fewest"),
    [
        ({"choice": ["hello", "hello world, how are you today my friend"]}, 2),
        ({"choice": ["zzz", "qqqq"]}, 3),
        ({"schema": {"type": "object", "properties": {"zz": {}, "qqq": {}}, "required": ["zz", "qqq"]}}, 9),
        ({"schema": {"type": "array", "minItems": 3, "items": {"const": "zz"}}}, 12),
        ({"schema": {"anyOf": [{"const": "zzzz"}, {"const": "qq"}]}}, 4),
        ({"schema": {"type": "string"}}, 1),
        ({"regex": "zzz[0-9]+"}, 3),
    ],
)
def test_the_fewest_tokens_are_counted(asked: dict[str, Any], fewest: int) -> None:
    assert guide(**asked).fewest_tokens == fewest


def test_a_schema_that_refers_to_itself_is_counted() -> None:
    tree = {"type": "object", "properties": {"zzz": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["zzz"]}
    assert 3 <= guide(schema=tree).fewest_tokens <= len(json.dumps({"zzz": None}))
