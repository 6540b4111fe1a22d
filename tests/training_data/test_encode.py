from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import ContextLengthExceeded, InvalidRequest, ParameterError, PromptStyleError, UnsupportedFeature
from llmkit.prompts import get_style
from llmkit.training_data import EncodingOptions, Example, Record, encode_records, limit_new_tokens, load_tokenizer

TOKENIZER = load_tokenizer()
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
SNOW = Record(input="Tell me a joke about snow flakes.", output="No two are alike.", prompt_type="human_bot")


def encoded(*records: Record, **options: Any) -> list[Example]:
    return list(encode_records(records, TOKENIZER, EncodingOptions(**options)))


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


SEED_RECORDS = [
    ("", "Who are you?", "My name is h2oGPT.", "human_bot", "<human>: Who are you?<bot>: My name is h2oGPT."),
    ("", "<human>: Hi?\n<bot>: Yes, of course.", "", "plain", "<human>: Hi?\n<bot>: Yes, of course."),
    ("", "Long text.", "text.", "summarize", "## Main Text\n\nLong text.\n\n## Summary\n\ntext."),
]


@pytest.mark.parametrize(("record", "expected"), [(Record(*row[:4]), row[4]) for row in SEED_RECORDS])
def test_the_seeds_records_become_their_texts_byte_for_byte(record: Record, expected: str) -> None:
    [example] = encoded(record)
    assert text(example.input_ids) == expected
    assert (example.input_ids[0], example.input_ids[-1]) == (BOS, EOS)
    assert example.labels == example.input_ids
    assert not example.truncated


def test_a_row_names_its_style_and_the_others_take_the_option() -> None:
    first, second = encoded(SNOW, Record("Say hi."), prompt_type="instruct")
    assert text(first.input_ids).startswith("<human>: ")
    assert text(second.input_ids) == "### Instruction:\nSay hi.\n\n### Response:\n"


def test_only_the_output_is_learned_on_request() -> None:
    [example] = encoded(SNOW, train_on_inputs=False)
    learned = [token for token in example.labels if token != -100]
    assert text(learned).strip() == "No two are alike."
    assert learned[-1] == EOS
    n_prompt = len(example.labels) - len(learned)
    assert example.labels == [-100] * n_prompt + example.input_ids[n_prompt:]
    with pytest.raises(InvalidRequest, match="record 0: with train_on_inputs=False there must be an output"):
        encoded(Record(input="x"), train_on_inputs=False)


def test_a_lead_that_the_model_writes_itself_is_learned() -> None:
    [example] = encoded(Record("Hello!", output="Hi!", prompt_type="falcon"), train_on_inputs=False)
    assert text([token for token in example.labels if token != -100]) == " Hi!"


def test_eos_ends_complete_texts_once_and_can_be_left_out() -> None:
    assert encoded(SNOW, add_eos_token=False)[0].input_ids[-1] != EOS
    prompt_alone = Record(input="Hello?", prompt_type="human_bot")
    assert encoded(prompt_alone)[0].input_ids[-1] != EOS, "the model is to answer here, not to end"
    written_out = Record(input="x" + TOKENIZER.eos_token, prompt_type="plain")
    assert encoded(written_out)[0].input_ids.count(EOS) == 1


def test_a_long_input_is_cut_and_the_tags_and_the_output_stay() -> None:
    long = Record(input="A very long story about snow. " * 50, output="It snowed.", prompt_type="human_bot")
    [example] = encoded(long, cutoff_len=40)
    cut = text(example.input_ids)
    assert example.truncated
    assert len(example.input_ids) <= 40
    assert cut.startswith("<human>: A very long story")
    assert cut.endswith("<bot>: It snowed.")
    assert example.input_ids[-1] == EOS


def test_a_long_output_is_cut_and_does_not_end_with_eos() -> None:
    [example] = encoded(Record(input="Tell.", output="and then " * 100, prompt_type="human_bot"), cutoff_len=30)
    assert text(example.input_ids).startswith("<human>: Tell.<bot>: and then")
    assert len(example.input_ids) <= 30
    assert example.input_ids[-1] != EOS


def test_a_cut_never_splits_a_roles_tag() -> None:
    turns = "<human>: Who are you?\n<bot>: My name is h2oGPT.\n"
    for cutoff in range(5, 60):
        [example] = encoded(Record(input=turns * 4), cutoff_len=cutoff)
        cut = text(example.input_ids)
        left = cut[max(cut.rfind("<human>:"), cut.rfind("<bot>:")) + 1 :]
        assert "<" not in left, (cutoff, cut)


def test_what_would_be_cut_can_be_dropped() -> None:
    long = Record(input="snow " * 200, output="x")
    (short,) = encoded(long, SNOW, cutoff_len=60, drop_truncations=True)
    assert short == encoded(SNOW)[0]


def test_no_cutoff_cuts_nothing() -> None:
    [example] = encoded(Record(input="snow " * 700), cutoff_len=None)
    assert len(example.input_ids) > 700
    assert not example.truncated


@settings(max_examples=60)
@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.text(min_size=1, max_size=60),
    st.integers(60, 90),
    st.sampled_from(["plain", "human_bot", "summarize", "instruct", "llama2"]),
)
def test_no_example_is_longer_than_the_cutoff_and_the_style_stays_whole(
    instruction: str, input_text: str, output: str, cutoff: int, name: str
) -> None:
    [example] = encoded(Record(instruction, input_text, output, name), cutoff_len=cutoff)
    assert len(example.input_ids) == len(example.labels) <= cutoff
    decoded, style = TOKENIZER.decode(example.input_ids, clean_up_tokenization_spaces=False), get_style(name)
    assert style.response_prefix in decoded
    assert style.input_prefix in decoded or style.omit_empty_input


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        (Record(), {}, "record 0: instruction, input and output must not all be empty"),
        (SNOW, {"cutoff_len": 5}, "record 0: cutoff_len must leave room for the"),
        (SNOW, {"cutoff_len": 0}, "cutoff_len must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_encoded_is_refused(record: Record, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidRequest, ParameterError), match=message):
        encoded(record, **options)


def test_an_unknown_style_and_a_slow_tokenizer_are_refused() -> None:
    with pytest.raises(PromptStyleError, match="humanbot"):
        encoded(SNOW, prompt_type="humanbot")
    with pytest.raises(PromptStyleError, match="nosuch"):
        encoded(Record(input="x", prompt_type="nosuch"))
    with pytest.raises(UnsupportedFeature, match="fast tokenizer, got object"):
        list(encode_records([SNOW], object(), EncodingOptions()))


def test_a_prompt_of_1900_tokens_leaves_148_of_2048() -> None:
    assert limit_new_tokens(1900, 2048) == 148
    with pytest.raises(ContextLengthExceeded):
        limit_new_tokens(2048, 2048)
